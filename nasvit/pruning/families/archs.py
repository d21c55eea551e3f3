"""Networks of an Arch: everything in nasvit.zoo and every network of a search. A pruned one is an Arch again.

What an Arch can say is what can be cut: mlp_dim, whole blocks, heads, the width of a stage, and the slow path's keep_ratio. Heads keep
their channels, for the scale is theirs, and are ranked apart from the stage's channels: a narrower stage keeps all its heads unless the
plan cuts them. The mixers of a block keep equally many, each its own best; where they have different numbers, none are cut. A group
"inner.I.M" holds the channels inside mixer M of block I, "units.I.M" its heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import nn

from nasvit.arch import Arch, Block, MixerSpec
from nasvit.errors import ArchError
from nasvit.models.build import build as build_arch
from nasvit.models.mixers.levit import KEY_DIM
from nasvit.models.network import Network
from nasvit.pruning.families.base import FAMILIES, Axis, BlockLayout, Family, Layout, Read, Units
from nasvit.pruning.families.reading import refuse
from nasvit.pruning.plan import OPERATORS, BlockPlan, Plan, PlanError, Source

SET_MIXERS = ("global", "levit")
HEADED = ("cross_window", "fsla", "global", "levit", "slide", "sra", "window")
KNOWN = (*HEADED, "catm", "integration")


def arch_of(source: Source) -> Arch:
    """The dense Arch."""
    return Arch.from_dict(source.options["arch"])


def streams(arch: Arch) -> list[int]:
    """For each stage the residual stream it stands on: downsample "none" goes on with the one before."""
    found: list[int] = []
    for s, stage in enumerate(arch.stages):
        found.append(0 if s == 0 else found[-1] + (stage.downsample != "none"))
    return found


def read(model: Any) -> Read:
    """Raises UnsupportedModelError for an inference form, whose tensors are others."""
    faults = [f"{path or 'the model'} (in its inference form)" for path, m in model.named_modules() if getattr(m, "deployed", False)]
    refuse(model, faults[:1])
    refuse(model, [f"stages.{s}.blocks.{b}.mixers.{m} ({spec.name}, a mixer that pruning does not know)"
                   for s, stage in enumerate(model.arch.stages) for b, block in enumerate(stage.blocks)
                   for m, spec in enumerate(block.mixers) if spec.name not in KNOWN])
    if model.num_classes != model.arch.num_classes:
        refuse(model, [f"head (for {model.num_classes} classes, and its Arch says {model.arch.num_classes})"])
    description = {"arch": model.arch.to_dict(), "image_size": list(model.arch.image_size), "in_channels": model.arch.in_channels,
                   "num_classes": model.arch.num_classes}
    return Read(description=description, state={n: v.detach().clone() for n, v in model.state_dict().items()})


def _heads(spec: MixerSpec) -> int:
    return int(spec.kwargs["num_heads"])


def _head_dim(spec: MixerSpec, dim: int) -> int:
    """Channels of a head, of its queries where others differ."""
    return int(spec.kwargs.get("key_dim", KEY_DIM) if spec.name == "levit" else spec.kwargs.get("head_dim", dim // _heads(spec)))


def _headed(block: Block) -> list[MixerSpec]:
    return [spec for spec in block.mixers if spec.name in HEADED]


def _alike(block: Block) -> bool:
    """Whether its mixers have heads, and equally many."""
    return len({_heads(spec) for spec in _headed(block)}) == 1


def _granule(arch: Arch) -> int:
    """What the widths of all streams must be multiples of: the heads of LeViT's downsampling."""
    last = [before.blocks[-1].mixers[-1] for before, stage in pairwise(arch.stages) if stage.downsample == "levit"]
    return math.lcm(*(_head_dim(spec, 0) for spec in last))


def _branches(spec: MixerSpec, arch: Arch, s: int) -> int:
    return 2 if spec.name == "cross_window" and int(spec.kwargs["split_size"]) < max(arch.grid(s)) else 1


def layout(source: Source) -> Layout:
    """slow_fast where the class token is there from the stem and every mixer runs on any set of tokens, for then nothing new is needed."""
    arch, blocks = arch_of(source), []
    for s, stage in enumerate(arch.stages):
        for b, block in enumerate(stage.blocks):  # the first stays: a stage needs one
            headed, dim = _headed(block), stage.embed_dim
            heads, head_dim = (_heads(headed[0]), _head_dim(headed[0], dim)) if headed else (1, dim)
            step = max((_branches(spec, arch, s) for spec in headed), default=1)
            blocks.append(BlockLayout(stage=streams(arch)[s], heads=heads, head_dim=head_dim, mlp_dim=block.mlp_dim,
                                      cut_heads=_alike(block), head_step=step, cut_head_dim=False, drop_attention=False, drop_mlp=False,
                                      drop_block=b > 0))
    sets = arch.stem.class_token and all(m.name in SET_MIXERS for stage in arch.stages for b in stage.blocks for m in b.mixers)
    refused = dict.fromkeys(("merge", "topk_fuse"), "an Arch has no such operator")
    if not sets:
        refused["slow_fast"] = "the network has no class token from the stem on, or mixers that need the grid"
    dims = {stream: stage.embed_dim for stream, stage in zip(streams(arch), arch.stages, strict=True)}
    height, width = arch.grid(0)
    return Layout(blocks=tuple(blocks), embed_dims=tuple(dims.values()), tokens=height * width,
                  operators=tuple(name for name in OPERATORS if name not in refused), refused=refused, embed_granule=_granule(arch))


def smaller(plan: Plan) -> Arch:
    """The Arch of a plan. Raises PlanError naming the stage."""
    arch, left, stages = arch_of(plan.source), iter(plan.blocks), []
    for s, stage in enumerate(arch.stages):
        dim, blocks = plan.embed_dims[streams(arch)[s]], []
        for block in stage.blocks:
            plan_block = next(left)
            if plan_block.gone:
                continue
            mixers = tuple(_narrower(spec, stage.embed_dim, dim, _heads_left(block, spec, plan_block)) for spec in block.mixers)
            blocks.append(replace(block, mixers=mixers, mlp_dim=plan_block.mlp_dim,
                                  keep_ratio=min(block.keep_ratio, plan_block.keep_ratio)))
        if not blocks:
            raise PlanError(f"stage {s}: all its blocks are dropped, and a stage needs at least one")
        stages.append(replace(stage, embed_dim=dim, blocks=tuple(blocks)))
    try:
        return replace(arch, stages=tuple(stages))
    except ArchError as error:
        raise PlanError(f"{plan.source.name}: {error}") from None


def _heads_left(block: Block, spec: MixerSpec, left: BlockPlan) -> int:
    """How many heads a mixer of a block keeps; 0 of one without heads."""
    if spec.name not in HEADED:
        return 0
    return left.heads if _alike(block) else _heads(spec)


def _narrower(spec: MixerSpec, dense: int, dim: int, heads: int) -> MixerSpec:
    """With fewer heads, in a stage of `dim` channels: head_dim is said where they do not fill it."""
    if spec.name not in HEADED:
        return spec
    params, head_dim = {**spec.kwargs, "num_heads": heads}, _head_dim(spec, dense)
    params.pop("head_dim", None)
    own = spec.name != "levit" and heads * head_dim != dim
    return MixerSpec.of(spec.name, **params, **({"head_dim": head_dim} if own else {}))


def build(plan: Plan) -> nn.Module:
    """The network of the smaller Arch."""
    return build_arch(smaller(plan), seed=0)


def _numbered(arch: Arch) -> list[tuple[int, int]]:
    """(stage, block) of each block of a plan."""
    return [(s, b) for s, stage in enumerate(arch.stages) for b in range(len(stage.blocks))]


def names(plan: Plan) -> Callable[[str], str]:
    """From a tensor's name in the pruned network to that in the dense one: blocks that are gone shift the others."""
    arch = arch_of(plan.source)
    left: dict[int, list[int]] = {s: [] for s in range(len(arch.stages))}
    for (s, b), block in zip(_numbered(arch), plan.blocks, strict=True):
        if not block.gone:
            left[s].append(b)

    def dense(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "stages" and parts[2] in ("blocks", "class_attention"):
            parts[3] = str(left[int(parts[1])][int(parts[3])])
        return ".".join(parts)

    return dense


def extra(plan: Plan) -> dict[str, Units]:
    """The channels inside mixers, of stems and of LeViT's downsampling, which follow the widths of their stages."""
    arch, dims = arch_of(plan.source), plan.embed_dims
    now = [dims[stream] for stream in streams(arch)]
    groups: dict[str, Units] = {}
    for i, ((s, b), left) in enumerate(zip(_numbered(arch), plan.blocks, strict=True)):
        dense, block = arch.stages[s].embed_dim, arch.stages[s].blocks[b]
        for m, spec in enumerate(block.mixers):
            groups |= _mixer_groups(f"{i}.{m}", spec, dense, now[s], heads=_heads_left(block, spec, left),
                                    branches=_branches(spec, arch, s))
    for s, stage in enumerate(arch.stages):
        if stage.downsample == "levit":
            before = arch.stages[s - 1]
            d = int(before.blocks[-1].mixers[-1].kwargs.get("key_dim", KEY_DIM))
            heads, keep = max(1, before.embed_dim // d), max(1, now[s - 1] // d)
            groups |= {f"down.{s}.{part}": Units(count=heads, keep=keep, width=width, by=f"down.{s}.units")
                       for part, width in (("q", d), ("kv", 5 * d), ("v", 4 * d))}
            groups[f"down.{s}.mlp"] = Units(count=2 * stage.embed_dim, keep=2 * now[s])
    if arch.stem.kind in ("conv", "conv_bias", "levit"):
        steps = arch.stem.stride.bit_length() - 1
        for step in range(steps - 1):
            shift = steps - 1 - step
            groups[f"stem.{step}"] = Units(count=max(1, arch.stages[0].embed_dim >> shift), keep=max(1, now[0] >> shift))
    return groups


def _mixer_groups(place: str, spec: MixerSpec, dense: int, dim: int, *, heads: int, branches: int) -> dict[str, Units]:
    if spec.name == "catm":  # depthwise throughout: its channels are the stage's
        return {}
    if spec.name == "integration":
        return {f"inner.{place}": Units(count=dense, keep=dim)}
    count, d = _heads(spec), _head_dim(spec, dense)
    if spec.name == "levit":
        ratio = int(spec.kwargs.get("attn_ratio", 2))
        return {f"{part}.{place}": Units(count=count, keep=heads, width=width, by=f"units.{place}")
                for part, width in (("inner", (2 + ratio) * d), ("values", ratio * d))}
    groups = {f"inner.{place}" if branches == 1 else f"inner.{place}.{j}":
              Units(count=count // branches, keep=heads // branches, width=d,
                    by=f"units.{place}" if branches == 1 else f"units.{place}.{j}") for j in range(branches)}
    if spec.name == "sra":
        groups[f"reduced.{place}"] = Units(count=dense, keep=dim)
    return groups


def axes(source: Source, name: str) -> tuple[Axis, ...]:
    """The axes of a tensor of the dense network; raises KeyError for a name that no part of the search space has."""
    arch, parts = arch_of(source), name.split(".")
    if parts[-1] == "num_batches_tracked":
        return ()
    if parts[0] == "stages":
        return _stage_axes(arch, int(parts[1]), parts[2:])
    stream = streams(arch)
    first, last = f"embed.{stream[0]}", f"embed.{stream[-1]}"
    if parts[0] == "stem":
        return _stem_axes(arch, parts[1:], first)
    if parts[0] == "pos_embed":
        return (None, None, None, (first,))
    if parts[0] in ("class_token", "class_position"):
        return (None, None, (f"embed.{stream[_class_from(arch)]}",))
    if parts[0] == "feature_norms":
        ends = [i for i in range(len(stream)) if i + 1 == len(stream) or stream[i + 1] != stream[i]]
        return ((f"embed.{stream[ends[int(parts[1])]]}",),)
    embed: Axis = (f"embed.{stream[_class_until(arch)]}",) if parts[0].startswith("aux") else (last,)
    if parts[0] in ("head", "head_dist", "aux_head", "aux_head_dist"):
        return (None, embed) if parts[1] == "weight" else (None,)
    if parts[0] in ("norm", "norm_dist", "aux_norm", "aux_norm_dist"):
        return (embed,)
    raise KeyError(name)


def _slow(arch: Arch) -> list[int]:
    return [s for s, stage in enumerate(arch.stages) if any(b.keep_ratio < 1 for b in stage.blocks)]


def _class_from(arch: Arch) -> int:
    """The stage where the class token begins, as Network has it."""
    if arch.stem.class_token:
        return 0
    return min([*_slow(arch), *([len(arch.stages) - 1] if arch.head.kind == "class_token" else [])])


def _class_until(arch: Arch) -> int:
    return len(arch.stages) - 1 if arch.stem.class_token or arch.head.kind == "class_token" else max(_slow(arch))


def _stem_axes(arch: Arch, parts: list[str], embed: str) -> tuple[Axis, ...]:
    if parts[0] != "layers":  # a patch embedding
        return ((embed,), None, None, None) if parts == ["proj", "weight"] else ((embed,),)
    step, last = int(parts[1]), arch.stem.stride.bit_length() - 2
    out: Axis = (embed,) if step == last else (f"stem.{step}",)
    return (out, (f"stem.{step - 1}",) if step else None, None, None) if parts[2] == "0" and parts[3] == "weight" else (out,)


def _stage_axes(arch: Arch, s: int, parts: list[str]) -> tuple[Axis, ...]:
    stream = streams(arch)
    embed: Axis = (f"embed.{stream[s]}",)
    before: Axis = (f"embed.{stream[s - 1]}",) if s else None
    if parts[0] == "blocks":
        return _block_axes(arch, s, int(parts[1]), parts[2:], embed)
    if parts[0] == "norm":
        return (embed,)
    if parts[0] == "pos_embed":
        return (None, None, None, embed)
    if parts[0] == "class_proj":
        return (embed, before) if parts[1] == "weight" else (embed,)
    if parts[0] == "class_attention":
        return (embed, embed) if parts[2] != "norm" and parts[3] == "weight" else (embed,)
    if parts[0] != "downsample":
        raise KeyError(f"stages.{s}.{'.'.join(parts)}")
    kind, name = arch.stages[s].downsample, ".".join(parts[1:])
    if kind == "levit":
        table: dict[str, tuple[Axis, Axis]] = {
            "q": ((f"down.{s}.q",), before), "kv": ((f"down.{s}.kv",), before), "proj": (embed, (f"down.{s}.v",)),
            "mlp.fc1": ((f"down.{s}.mlp",), embed), "mlp.fc2": (embed, (f"down.{s}.mlp",))}
        if name in ("pos_embed", "class_position", "learn_tradeoff"):
            return {"pos_embed": (None, None, None, before), "class_position": (None, None, before), "learn_tradeoff": (None,)}[name]
        outputs, inputs = table[name.rsplit(".", 2)[0]]
        return (outputs, inputs) if name.endswith("linear.weight") else (outputs,)
    if kind == "merge":
        four: Axis = (before or ()) * 4
        return (embed, four) if parts[1] == "reduction" else (four,)
    return (embed, before, None, None) if name == "proj.weight" else (embed,)


def _block_axes(arch: Arch, s: int, b: int, parts: list[str], embed: Axis) -> tuple[Axis, ...]:
    i = sum(len(stage.blocks) for stage in arch.stages[:s]) + b
    if parts[0] in ("norms", "mlp_norm"):
        return (embed,)
    if parts[0] == "mlp":
        mlp: Axis = (f"mlp.{i}",)
        if parts[1] == "conv":
            return (mlp, None, None, None) if parts[2] == "weight" else (mlp,)
        outputs, inputs = (mlp, embed) if parts[1] == "fc1" else (embed, mlp)
        return (outputs, inputs) if parts[-1] == "weight" and parts[2] != "bn" else (outputs,)
    if parts[0] != "mixers":
        raise KeyError(".".join(parts))
    spec = arch.stages[s].blocks[b].mixers[int(parts[1])]
    return _mixer_axes(spec, f"{i}.{parts[1]}", ".".join(parts[2:]), embed, branches=_branches(spec, arch, s))


def _mixer_axes(spec: MixerSpec, place: str, name: str, embed: Axis, *, branches: int) -> tuple[Axis, ...]:
    inner: Axis = (f"inner.{place}",) if branches == 1 else tuple(f"inner.{place}.{j}" for j in range(branches))
    assert inner is not None and embed is not None
    heads: Axis = (f"units.{place}",)
    parts = name.split(".")
    if spec.name == "catm":
        return _catm_axes(parts, embed)
    if spec.name == "levit":
        outputs, inputs = {"qkv": (inner, embed), "proj": (embed, (f"values.{place}",)), "learn_tradeoff": (None, None)}[parts[0]]
        return (outputs, inputs) if name.endswith("linear.weight") else (outputs,)
    if spec.name == "integration":
        outputs, inputs = (embed, inner) if parts[0] == "project" else (inner, embed)
        if parts[0] == "conv":
            return (inner, None, None, None) if parts[1] == "weight" else (inner,)
        return (outputs, inputs) if parts[-1] == "weight" and parts[0] != "norm_inner" else (outputs,)
    if parts[0] == "branches":
        lepe: Axis = (inner[int(parts[1])],)
        return (lepe, None, None, None) if parts[-1] == "weight" else (lepe,)
    if parts[0] == "relative_position_bias_table":
        return (heads, None) if spec.name == "slide" else (None, heads)
    reduced: Axis = (f"reduced.{place}",)
    known: dict[str, tuple[Axis, ...]] = {
        "qkv.weight": (inner * 3, embed), "qkv.bias": (inner * 3,), "proj.weight": (embed, inner), "proj.bias": (embed,),
        "lepe.weight": (inner, None, None, None), "lepe.bias": (inner,), "kernel": (None,) * 4, "kernel_bias": (None,) * 2,
        "fixed_bias": (None,) * 2, "q.weight": (inner, embed), "q.bias": (inner,), "kv.weight": (inner * 2, reduced),
        "kv.bias": (inner * 2,), "reduce.weight": (reduced, embed, None, None), "reduce.bias": (reduced,),
        "reduced_norm.weight": (reduced,), "reduced_norm.bias": (reduced,)}
    return known[name]


def _catm_axes(parts: list[str], embed: Axis) -> tuple[Axis, ...]:
    assert embed is not None
    if parts[0] == "qkv":
        return (embed * 3, embed) if parts[1] == "weight" else (embed * 3,)
    if parts[-2:] == ["gate", "weight"]:  # of the neighbourhood: one for all channels; of the mean: one for each
        return (None, embed) if parts[1] == "0" else (embed, embed)
    return (embed, None, None, None) if parts[-1] == "weight" and parts[-2] in ("conv", "mix", "proj") else (embed,)


FAMILIES.register("arch")(Family(name="arch", recognises=lambda model: type(model) is Network, read=read, layout=layout, build=build,
                                 axes=axes, extra=extra, names=names, check=smaller))
