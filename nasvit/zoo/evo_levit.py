"""Evo-LeViT (Evo-ViT, arXiv 2108.01390; released code, five sizes): LeViT with a class token and positions in place of its attention
biases, whose later blocks update half of the tokens.

The schedule is a share of kept tokens for each layer (`keep_ratios`). Stage by stage, as the authors infer, the slow layers of a
resolution share one selection; layer by layer, as they train at first, each has its own (`layer_wise=True`, with
`learned_tradeoff=False`). Placeholders follow a representative token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nasvit.arch import Arch, Block, Grid, Head, MixerSpec, Scalar, Stage, Stem
from nasvit.errors import ArchError, CheckpointError
from nasvit.zoo.checkpoint import Checkpoint
from nasvit.zoo.family import CLASSIFIERS, FAMILIES, Family, cfg, checkpoint_filter_fn, create

from timm.models import generate_default_cfgs, register_model  # isort: skip (behind ours, which make torchvision importable)

__all__ = ["checkpoint_filter_fn", "evo_levit_128", "evo_levit_128s", "evo_levit_192", "evo_levit_256", "evo_levit_384"]


def keep_half(depths: Sequence[int], *, plain: int = 2) -> tuple[float, ...]:
    """The published schedule: the first `plain` layers update all tokens, the others half of them."""
    return (1.0,) * plain + (0.5,) * (sum(depths) - plain)


def arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dims: Sequence[int], num_heads: Sequence[int],
         depths: Sequence[int], key_dim: int, keep_ratios: Sequence[float] | None = None, layer_wise: bool = False,
         learned_tradeoff: bool = True, attn_ratio: int = 2, mlp_ratio: int = 2, distillation: bool = True,
         representative: bool = True) -> Arch:
    """Any H, W: each halving rounds up.

    keep_ratios: of each layer, through all resolutions; None for 1 in the first two layers and 0.5 behind. layer_wise: each slow
    layer selects anew. learned_tradeoff: how much a layer's class attention counts in the score is learned; else it is 0.5.
    distillation: a second classifier, and a second one of the class token.
    """
    ratios = keep_half(depths) if keep_ratios is None else tuple(keep_ratios)
    if len(ratios) != sum(depths):
        raise ArchError(f"{len(ratios)} keep ratios for {sum(depths)} layers; give one for each")
    options: dict[str, Scalar] = {**({"attn_ratio": attn_ratio} if attn_ratio != 2 else {}),
                                  **({"learned_tradeoff": True} if learned_tradeoff else {})}
    stages: list[Stage] = []
    for s, (dim, heads, depth) in enumerate(zip(embed_dims, num_heads, depths, strict=True)):
        mixer, first = MixerSpec.of("levit", num_heads=heads, key_dim=key_dim, **options), sum(depths[:s])
        blocks = [Block(mixers=(mixer,), mlp_dim=mlp_ratio * dim, keep_ratio=ratio, mlp="levit") for ratio in ratios[first : first + depth]]
        # layer by layer, a stage begins at each slow block and at a plain one behind it
        cuts = [b for b in range(1, depth) if layer_wise and (blocks[b].keep_ratio < 1 or blocks[b - 1].keep_ratio < 1)]
        for start, stop in zip([0, *cuts], [*cuts, depth], strict=True):
            downsample = "none" if start else "levit" if s else "conv"
            stages.append(Stage(embed_dim=dim, blocks=tuple(blocks[start:stop]), downsample=downsample))
    return Arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes,
                stem=Stem(kind="levit", stride=16, pos_embed=True, class_token=True), stages=tuple(stages),
                head=Head(kind="mean", norm="batch", distillation=distillation),
                representative=representative or all(ratio == 1 for ratio in ratios))


def take_linear(checkpoint: Checkpoint, theirs: str, to: str) -> dict[str, Tensor]:
    """A linear map and its batch norm."""
    return {**checkpoint.take_all(f"{theirs}.c", f"{to}.linear"), **checkpoint.take_all(f"{theirs}.bn", f"{to}.bn")}


def take_tradeoff(checkpoint: Checkpoint, theirs: str, to: str, *, learned: bool) -> dict[str, Tensor]:
    """Their scalar stands in every checkpoint; a fixed trade-off does not use it."""
    value = checkpoint.take(f"{theirs}.learn_tradeoff")
    return {f"{to}.learn_tradeoff": value} if learned else {}


def take_attention(checkpoint: Checkpoint, theirs: str, to: str, *, learned: bool) -> dict[str, Tensor]:
    """Attention: their qkv is head first (h, d + d + e), and so is ours."""
    return {**take_tradeoff(checkpoint, theirs, to, learned=learned), **take_linear(checkpoint, f"{theirs}.qkv", f"{to}.qkv"),
            **take_linear(checkpoint, f"{theirs}.proj.1", f"{to}.proj")}


def take_mlp(checkpoint: Checkpoint, theirs: str, to: str) -> dict[str, Tensor]:
    return {**take_linear(checkpoint, f"{theirs}.0", f"{to}.fc1"), **take_linear(checkpoint, f"{theirs}.2", f"{to}.fc2")}


def take_positions(positions: Tensor, grid: Grid, to: str) -> dict[str, Tensor]:
    """(1, 1 + N, C), the class token's first."""
    if positions.shape[1] != 1 + grid[0] * grid[1]:
        raise CheckpointError(f"poss has {positions.shape[1]} positions, not {grid[0]}x{grid[1]} and the class token's; "
                              "build the model for the checkpoint's image size")
    return {f"{to}class_position": positions[:, :1], f"{to}pos_embed": positions[:, 1:].unflatten(1, grid)}


def take_downsample(checkpoint: Checkpoint, theirs: str, to: str, *, grid: Grid, learned: bool) -> dict[str, Tensor]:
    """Attention with every second query; grid is the map before it. `theirs` ends in a dot where it is not empty, and so does `to`."""
    tradeoff = take_tradeoff(checkpoint, theirs.removesuffix("."), to.removesuffix("."), learned=learned) if theirs else (
        {"learn_tradeoff": checkpoint.take("learn_tradeoff")} if learned else {})
    return {**tradeoff, **take_positions(checkpoint.take(f"{theirs}poss"), grid, to),
            **take_linear(checkpoint, f"{theirs}kv", f"{to}kv"), **take_linear(checkpoint, f"{theirs}q.1", f"{to}q"),
            **take_linear(checkpoint, f"{theirs}proj.1", f"{to}proj")}


def is_learned(arch: Arch, stage: int) -> bool:
    """Whether the mixers of this stage learn their trade-off."""
    return arch.stages[stage].blocks[-1].mixers[0].kwargs.get("learned_tradeoff") is True


def official(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """The authors' names to ours. Their `blocks` count attention with its MLP, the halving, and the halving's MLP as one each; the
    trunk stands a second time under stage_blocks."""
    for name in checkpoint.left:
        if name.startswith("stage_blocks."):
            checkpoint.take(name)
    ours = {"class_token": checkpoint.take("cls_token"), **take_positions(checkpoint.take("poss"), arch.grid(0), "")}
    for i in range(4):
        ours |= checkpoint.take_all(f"patch_embed.{2 * i}.c", f"stem.layers.{i}.0")
        ours |= checkpoint.take_all(f"patch_embed.{2 * i}.bn", f"stem.layers.{i}.1")
    count = 0
    for s, stage in enumerate(arch.stages):
        if stage.downsample == "levit":
            ours |= take_downsample(checkpoint, f"blocks.{count}.", f"stages.{s}.downsample.", grid=arch.grid(s - 1),
                                    learned=is_learned(arch, s - 1))
            ours |= take_mlp(checkpoint, f"blocks.{count + 1}.m", f"stages.{s}.downsample.mlp")
            count += 2
        for b in range(len(stage.blocks)):
            to = f"stages.{s}.blocks.{b}"
            ours |= take_attention(checkpoint, f"blocks.{count}.m1.m", f"{to}.mixers.0", learned=is_learned(arch, s))
            ours |= take_mlp(checkpoint, f"blocks.{count}.m2.m", f"{to}.mlp")
            count += 1
    heads = {"head": "", "head_cls": "aux_", **({"head_dist": "", "head_cls_dist": "aux_"} if arch.head.distillation else {})}
    for theirs, prefix in heads.items():
        suffix = "_dist" if theirs.endswith("_dist") else ""
        ours |= checkpoint.take_all(f"{theirs}.bn", f"{prefix}norm{suffix}.bn")
        ours |= checkpoint.take_all(f"{theirs}.l", f"{prefix}head{suffix}")
    return ours


def from_levit(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """timm's LeViT of the same size: everything but what it does not have, class token, positions and the class token's classifiers. Its
    attention biases have no place here."""
    def linear(theirs: str, to: str) -> dict[str, Tensor]:
        return {**checkpoint.take_all(f"{theirs}.linear", f"{to}.linear"), **checkpoint.take_all(f"{theirs}.bn", f"{to}.bn")}

    def mlp(theirs: str, to: str) -> dict[str, Tensor]:
        return {**linear(f"{theirs}.ln1", f"{to}.fc1"), **linear(f"{theirs}.ln2", f"{to}.fc2")}

    ours: dict[str, Tensor] = {}
    for i in range(4):
        ours |= checkpoint.take_all(f"stem.conv{i + 1}.linear", f"stem.layers.{i}.0")
        ours |= checkpoint.take_all(f"stem.conv{i + 1}.bn", f"stem.layers.{i}.1")
    resolution, b = -1, 0
    for s, stage in enumerate(arch.stages):
        if stage.downsample != "none":
            resolution, b = resolution + 1, 0
        if stage.downsample == "levit":
            theirs, to = f"stages.{resolution}.downsample", f"stages.{s}.downsample"
            for their_part, part in (("kv", "kv"), ("q.ln", "q"), ("proj.ln", "proj")):
                ours |= linear(f"{theirs}.attn_downsample.{their_part}", f"{to}.{part}")
            ours |= mlp(f"{theirs}.mlp", f"{to}.mlp")
        for own in range(len(stage.blocks)):
            theirs, to = f"stages.{resolution}.blocks.{b}", f"stages.{s}.blocks.{own}"
            ours |= linear(f"{theirs}.attn.qkv", f"{to}.mixers.0.qkv") | linear(f"{theirs}.attn.proj.ln", f"{to}.mixers.0.proj")
            ours |= mlp(f"{theirs}.mlp", f"{to}.mlp")
            b += 1
    for suffix in ("", "_dist") if arch.head.distillation else ("",):
        if f"head{suffix}.bn.weight" not in checkpoint:
            continue
        ours |= checkpoint.take_all(f"head{suffix}.bn", f"norm{suffix}.bn")
        ours |= checkpoint.take_classifier(f"head{suffix}.linear", f"head{suffix}", classes=arch.num_classes)
    return ours


FAMILIES.register("evo_levit")(Family(name="evo_levit", arch=arch, official=official,
                                      relatives={"levit": from_levit, "levitdistilled": from_levit}))

default_cfgs = generate_default_cfgs({f"evo_levit_{size}.authors_in1k": cfg("stem.layers.0.0", license="none stated", pool_size=(4, 4),
                                                                            classifier=CLASSIFIERS)
                                      for size in ("128s", "128", "192", "256", "384")})


def _evo_levit(variant: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> Any:
    defaults = {"keep_ratios": None, "layer_wise": False, "learned_tradeoff": True, "attn_ratio": 2, "mlp_ratio": 2, "distillation": True,
                "representative": True, **sizes}
    return create("evo_levit", variant, pretrained=pretrained, defaults=defaults, **kwargs)


@register_model
def evo_levit_128s(pretrained: bool = False, **kwargs: Any) -> Any:
    """Evo-LeViT-128S: 73.0 % top-1 on ImageNet-1k in the authors' table."""
    return _evo_levit("evo_levit_128s", pretrained, kwargs, embed_dims=(128, 256, 384), num_heads=(4, 6, 8), depths=(2, 3, 4), key_dim=16)


@register_model
def evo_levit_128(pretrained: bool = False, **kwargs: Any) -> Any:
    """Evo-LeViT-128: 74.4 % top-1 on ImageNet-1k in the authors' table."""
    return _evo_levit("evo_levit_128", pretrained, kwargs, embed_dims=(128, 256, 384), num_heads=(4, 8, 12), depths=(4, 4, 4), key_dim=16)


@register_model
def evo_levit_192(pretrained: bool = False, **kwargs: Any) -> Any:
    """Evo-LeViT-192: 76.8 % top-1 on ImageNet-1k in the authors' table."""
    return _evo_levit("evo_levit_192", pretrained, kwargs, embed_dims=(192, 288, 384), num_heads=(3, 5, 6), depths=(4, 4, 4), key_dim=32)


@register_model
def evo_levit_256(pretrained: bool = False, **kwargs: Any) -> Any:
    """Evo-LeViT-256: 78.8 % top-1 on ImageNet-1k in the authors' table."""
    return _evo_levit("evo_levit_256", pretrained, kwargs, embed_dims=(256, 384, 512), num_heads=(4, 6, 8), depths=(4, 4, 4), key_dim=32)


@register_model
def evo_levit_384(pretrained: bool = False, **kwargs: Any) -> Any:
    """Evo-LeViT-384: 80.7 % top-1 on ImageNet-1k in the authors' table."""
    return _evo_levit("evo_levit_384", pretrained, {"drop_path_rate": 0.1, **kwargs}, embed_dims=(384, 512, 768), num_heads=(6, 9, 12),
                      depths=(4, 4, 4), key_dim=32)
