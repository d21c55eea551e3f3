"""Slide-PVT and Slide-PVTv2 (Slide-Transformer, arXiv 2304.04237): slide attention in the first two stages of PVT and PVTv2.

Inferred: the authors published figures of these models, and neither code nor weights. From their parameter counts it follows that the
spatial-reduction attention of stages 1 and 2 is replaced, and nothing else: 12.2 M (tiny), 22.7 M (small), 13.0 M (v2 b1). For v2 b2
the same rule gives 23.6 M, where the paper's table has 22.8 M; no reading of it is known that gives that figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nasvit.arch import Arch, Block, Head, MixerSpec, Stage, Stem
from nasvit.errors import CheckpointError
from nasvit.zoo.checkpoint import Checkpoint
from nasvit.zoo.family import FAMILIES, Family, cfg, checkpoint_filter_fn, create

from timm.models import generate_default_cfgs, register_model  # isort: skip (behind ours, which make torchvision importable)

__all__ = ["checkpoint_filter_fn", "slide_pvt_medium", "slide_pvt_small", "slide_pvt_tiny", "slide_pvtv2_b1", "slide_pvtv2_b2"]


def mixer(s: int, *, num_heads: int, reduction: int, slide_stages: int, kernel_size: int) -> MixerSpec:
    """Slide attention in the first `slide_stages` stages, PVT's attention behind them, which without a reduction is the plain one."""
    if s < slide_stages:
        return MixerSpec.of("slide", num_heads=num_heads, kernel_size=kernel_size)
    if reduction == 1:
        return MixerSpec.of("global", num_heads=num_heads)
    return MixerSpec.of("sra", num_heads=num_heads, reduction=reduction)


def arch(*, embed_dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], mlp_ratios: Sequence[float],
         reductions: Sequence[int], slide_stages: int = 2, kernel_size: int = 3, second: bool = False, **size: Any) -> Arch:
    """PVT (H and W divisible by 32): patches that do not overlap, learned positions, a class token in the last stage. second: PVTv2
    (any H, W): overlapping patches, a convolution in the MLP, a norm behind each stage, the mean of the tokens.

    size: image_size, in_channels, num_classes. Raises ArchError for a reduction above a stage's shorter side.
    """
    kind, stages = "overlap_norm" if second else "patch_norm", []
    for s, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
        spec = mixer(s, num_heads=num_heads[s], reduction=reductions[s], slide_stages=slide_stages, kernel_size=kernel_size)
        block = Block(mixers=(spec,), mlp_dim=int(dim * mlp_ratios[s]), mlp="conv" if second else "gelu")
        stages.append(Stage(embed_dim=dim, blocks=(block,) * depth, downsample=kind if s else "conv", pos_embed=bool(s) and not second,
                            norm=second and s + 1 < len(depths)))
    return Arch(**size, stem=Stem(kind=kind, stride=4, pos_embed=not second), stages=tuple(stages),
                head=Head(kind="norm_mean" if second else "class_token"), norm_eps=1e-6)


def second_arch(**arguments: Any) -> Arch:
    """`arch` on PVTv2."""
    return arch(second=True, **arguments)


def official(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """Refused: there are no such weights."""
    raise CheckpointError("the authors released no weights of Slide-PVT and Slide-PVTv2; accepted: a state dict of our own names, and for "
                          "Slide-PVTv2 load_relative with timm's PVTv2")


def from_timm(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """timm's PVTv2: everything but the slide attentions' kernels and positions, which keep their initial values."""
    last = len(arch.stages) - 1
    ours = checkpoint.take_all("patch_embed.proj", "stem.proj") | checkpoint.take_all("patch_embed.norm", "stem.norm")
    if "head.weight" in checkpoint:
        ours |= checkpoint.take_all("head", "head")
    for s, stage in enumerate(arch.stages):
        ours |= checkpoint.take_all(f"stages.{s}.norm", "norm" if s == last else f"stages.{s}.norm")
        for part in ("proj", "norm") if s else ():
            ours |= checkpoint.take_all(f"stages.{s}.downsample.{part}", f"stages.{s}.downsample.{part}")
        for b, block in enumerate(stage.blocks):
            where = f"stages.{s}.blocks.{b}"
            for theirs, to in (("norm1", "norms.0"), ("norm2", "mlp_norm"), ("mlp.fc1", "mlp.fc1"), ("mlp.dwconv", "mlp.conv"),
                               ("mlp.fc2", "mlp.fc2"), ("attn.proj", "mixers.0.proj")):
                ours |= checkpoint.take_all(f"{where}.{theirs}", f"{where}.{to}")
            ours |= _projections(checkpoint, f"{where}.attn", f"{where}.mixers.0", block.mixers[0])
    return ours


def _projections(checkpoint: Checkpoint, theirs: str, to: str, mixer: MixerSpec) -> dict[str, Tensor]:
    """q and kv, one under the other where our mixer has one matrix, and the reduction where it has one."""
    ours: dict[str, Tensor] = {}
    if mixer.name == "sra":
        for old, new in (("q", "q"), ("kv", "kv"), ("sr", "reduce"), ("norm", "reduced_norm")):
            ours |= checkpoint.take_all(f"{theirs}.{old}", f"{to}.{new}")
        return ours
    for ending in ("weight", "bias"):
        ours[f"{to}.qkv.{ending}"] = torch.cat([checkpoint.take(f"{theirs}.{part}.{ending}") for part in ("q", "kv")])
    return ours


FAMILIES.register("slide_pvt")(Family(name="slide_pvt", arch=arch, official=official, relatives={}))
FAMILIES.register("slide_pvtv2")(Family(name="slide_pvtv2", arch=second_arch, official=official,
                                        relatives={"pyramidvisiontransformerv2": from_timm}))

SHARED: dict[str, Any] = {"embed_dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8), "mlp_ratios": (8, 8, 4, 4),
                          "reductions": (8, 4, 2, 1), "slide_stages": 2, "kernel_size": 3}

default_cfgs = generate_default_cfgs({name: cfg("stem.proj", license="none stated") for name in __all__ if name.startswith("slide")})


def _slide_pvt(name: str, depths: Sequence[int], pretrained: bool, kwargs: dict[str, Any]) -> Any:
    return create(name.rsplit("_", 1)[0], name, pretrained=pretrained, defaults={**SHARED, "depths": depths}, **kwargs)


@register_model
def slide_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-PVT-T, inferred: 78.0 % top-1 on ImageNet-1k in the paper."""
    return _slide_pvt("slide_pvt_tiny", (2, 2, 2, 2), pretrained, {"drop_path_rate": 0.1, **kwargs})


@register_model
def slide_pvt_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-PVT-S, inferred: 81.7 % top-1 on ImageNet-1k in the paper."""
    return _slide_pvt("slide_pvt_small", (3, 4, 6, 3), pretrained, {"drop_path_rate": 0.1, **kwargs})


@register_model
def slide_pvt_medium(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-PVT-M, inferred: about 82.9 % top-1 on ImageNet-1k, read off a plot of the paper."""
    return _slide_pvt("slide_pvt_medium", (3, 4, 18, 3), pretrained, {"drop_path_rate": 0.3, **kwargs})


@register_model
def slide_pvtv2_b1(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-PVTv2-B1, inferred: 79.5 % top-1 on ImageNet-1k in the paper."""
    return _slide_pvt("slide_pvtv2_b1", (2, 2, 2, 2), pretrained, {"drop_path_rate": 0.1, **kwargs})


@register_model
def slide_pvtv2_b2(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-PVTv2-B2, inferred: 82.7 % top-1 on ImageNet-1k in the paper."""
    return _slide_pvt("slide_pvtv2_b2", (3, 4, 6, 3), pretrained, {"drop_path_rate": 0.1, **kwargs})
