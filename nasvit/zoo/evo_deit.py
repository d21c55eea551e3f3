"""Evo-DeiT (Evo-ViT, arXiv 2108.01390; released code, three sizes): DeiT whose later blocks update half of the tokens.

The schedule is a share of kept tokens for each layer (`keep_ratios`) and the layers that begin with a selection (`selections`). The
authors train layer by layer at first (`layer_wise=True`: every layer with a ratio below 1 selects anew) and infer stage by stage:
the tokens selected at layers 4 and 8 stay for four layers. In their DeiT form the placeholders pass by unchanged;
`representative=True` is their paper's form, in which they follow a representative token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nasvit.arch import Arch, Block, Grid, Head, MixerSpec, Scalar, Stage, Stem
from nasvit.errors import ArchError, CheckpointError
from nasvit.zoo.checkpoint import Checkpoint
from nasvit.zoo.family import FAMILIES, Family, cfg, checkpoint_filter_fn, create

from timm.models import generate_default_cfgs, register_model  # isort: skip (behind ours, which make torchvision importable)

__all__ = ["checkpoint_filter_fn", "evo_deit_base", "evo_deit_small", "evo_deit_tiny"]

KEEP_RATIOS = (1.0,) * 4 + (0.5,) * 8
SELECTIONS = (4, 8)


def begins(keep_ratios: Sequence[float], selections: Sequence[int]) -> tuple[int, ...]:
    """The layers where an Arch stage begins: layer 0, the selections, and where plain layers follow slow ones.

    Raises ArchError for a layer that is none of the network's, and where a keep ratio changes without a selection.
    """
    depth, chosen = len(keep_ratios), set(selections)
    if not all(0 <= i < depth for i in chosen):
        raise ArchError(f"selections {sorted(chosen)} are not among the layers 0 to {depth - 1}")
    after_slow = {i for i in range(1, depth) if keep_ratios[i] == 1 > keep_ratios[i - 1]}
    found = {0, *chosen, *after_slow}
    unmarked = [i for i, ratio in enumerate(keep_ratios) if i not in found and ratio != keep_ratios[i - 1]]
    if unmarked or (keep_ratios[0] < 1 and 0 not in chosen):
        raise ArchError(f"the keep ratio of layer {[*unmarked, 0][0]} begins there, so a selection must: selections {sorted(chosen)}, "
                        f"keep ratios {tuple(keep_ratios)}")
    return tuple(sorted(found))


def arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dim: int, num_heads: int, patch_size: int = 16,
         mlp_ratio: float = 4.0, keep_ratios: Sequence[float] = KEEP_RATIOS, selections: Sequence[int] = SELECTIONS,
         layer_wise: bool = False, score_shares: Sequence[float] | None = None, prunecls: bool = False,
         representative: bool = False) -> Arch:
    """The depth is the number of `keep_ratios`. Any H, W divisible by the patch size.

    selections: the layers that select tokens by the score; layer_wise: instead, every layer with a ratio below 1. score_shares: of each
    layer, how much its class attention counts in the score; None for 1 in plain layers and 0.5 in slow ones, as published. prunecls: the
    prediction is from the tokens kept last alone. representative: see the head of this file.
    """
    starts = begins(keep_ratios, [i for i, ratio in enumerate(keep_ratios) if ratio < 1] if layer_wise else selections)
    usual = [1.0 if ratio == 1 else 0.5 for ratio in keep_ratios]
    shares = usual if score_shares is None else [float(share) for share in score_shares]

    def block(i: int) -> Block:
        params: dict[str, Scalar] = {} if shares[i] == usual[i] else {"score_share": shares[i]}
        mixer = MixerSpec.of("global", num_heads=num_heads, **params)
        return Block(mixers=(mixer,), mlp_dim=int(embed_dim * mlp_ratio), keep_ratio=keep_ratios[i])

    stages = tuple(Stage(embed_dim=embed_dim, blocks=tuple(block(i) for i in range(start, stop)), downsample="none" if start else "conv")
                   for start, stop in zip(starts, (*starts[1:], len(keep_ratios)), strict=True))
    slow = any(ratio < 1 for ratio in keep_ratios)
    return Arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes,
                stem=Stem(kind="patch", stride=patch_size, pos_embed=True, class_token=True), stages=stages,
                head=Head(kind="mean_kept" if prunecls and keep_ratios[-1] < 1 else "mean"), norm_eps=1e-6,
                representative=representative or not slow)


def layers(arch: Arch) -> list[str]:
    """Our name of each block, in order."""
    return [f"stages.{s}.blocks.{b}" for s, stage in enumerate(arch.stages) for b in range(len(stage.blocks))]


def embedding(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """DeiT's patch embedding, class token and positions (1, 1 + N, C), the class token's first."""
    positions, grid = checkpoint.take("pos_embed"), arch.grid(0)
    if positions.shape[1] != 1 + grid[0] * grid[1]:
        raise CheckpointError(f"pos_embed has {positions.shape[1]} positions, not {grid[0]}x{grid[1]} and the class token's; "
                              "build the model for the checkpoint's image size")
    return {"class_token": checkpoint.take("cls_token"), "class_position": positions[:, :1],
            "pos_embed": positions[:, 1:].unflatten(1, grid), **checkpoint.take_all("patch_embed.proj", "stem.proj")}


def official(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """The authors' names to ours; their queries and keys are one linear map, the values another."""
    ours = embedding(checkpoint, arch)
    for i, to in enumerate(layers(arch)):
        for kind in ("weight", "bias"):
            ours[f"{to}.mixers.0.qkv.{kind}"] = torch.cat([checkpoint.take(f"qks.{i}.qk.{kind}"), checkpoint.take(f"vs.{i}.v.{kind}")])
        for theirs, part in ((f"norms.{i}", "norms.0"), (f"projs.{i}", "mixers.0.proj"), (f"blocks.{i}.norm2", "mlp_norm"),
                             (f"blocks.{i}.mlp.fc1", "mlp.fc1"), (f"blocks.{i}.mlp.fc2", "mlp.fc2")):
            ours |= checkpoint.take_all(theirs, f"{to}.{part}")
    for theirs, part in (("norm", "norm"), ("head", "head"), ("norm_cls", "aux_norm"), ("head_cls", "aux_head")):
        ours |= checkpoint.take_all(theirs, part)
    return ours


def from_deit(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """timm's DeiT (and ViT of these shapes). Its norm and classifier read the class token: they become the class token's own, and the
    classifier of the tokens' mean starts from them too."""
    ours = embedding(checkpoint, arch)
    for i, to in enumerate(layers(arch)):
        for theirs, part in (("norm1", "norms.0"), ("attn.qkv", "mixers.0.qkv"), ("attn.proj", "mixers.0.proj"), ("norm2", "mlp_norm"),
                             ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            ours |= checkpoint.take_all(f"blocks.{i}.{theirs}", f"{to}.{part}")
    taken = checkpoint.take_all("norm", "norm") if "norm.weight" in checkpoint else {}
    taken |= checkpoint.take_classifier("head", "head", classes=arch.num_classes)
    return ours | taken | {f"aux_{key}": value for key, value in taken.items()}


FAMILIES.register("evo_deit")(Family(name="evo_deit", arch=arch, official=official, relatives={"visiontransformer": from_deit}))

default_cfgs = generate_default_cfgs({f"evo_deit_{size}.authors_in1k": cfg("stem.proj", license="none stated", pool_size=(14, 14),
                                                                           classifier=("head", "aux_head"))
                                      for size in ("tiny", "small", "base")})


def _evo_deit(variant: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> Any:
    defaults = {"patch_size": 16, "mlp_ratio": 4.0, "keep_ratios": KEEP_RATIOS, "selections": SELECTIONS, "layer_wise": False,
                "score_shares": None, "prunecls": False, "representative": False, **sizes}
    return create("evo_deit", variant, pretrained=pretrained, defaults=defaults, **kwargs)


@register_model
def evo_deit_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """Evo-DeiT-T: 72.0 % top-1 on ImageNet-1k in the authors' table."""
    return _evo_deit("evo_deit_tiny", pretrained, kwargs, embed_dim=192, num_heads=3)


@register_model
def evo_deit_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """Evo-DeiT-S: 79.4 % top-1 on ImageNet-1k in the authors' table."""
    return _evo_deit("evo_deit_small", pretrained, {"drop_path_rate": 0.1, **kwargs}, embed_dim=384, num_heads=6)


@register_model
def evo_deit_base(pretrained: bool = False, **kwargs: Any) -> Any:
    """Evo-DeiT-B: 81.3 % top-1 on ImageNet-1k in the authors' table."""
    return _evo_deit("evo_deit_base", pretrained, {"drop_path_rate": 0.1, **kwargs}, embed_dim=768, num_heads=12)
