"""Slide-Swin (Slide-Transformer, arXiv 2304.04237; released code, three sizes): slide attention in the first two stages of Swin.

The authors' configurations have window 56, which at 224 px is global attention in the last two stages; their paper's FLOPs fit
window 7. Both are here: the names without ending have 56, as released, those with _w7 have 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nasvit.arch import Arch, Grid, MixerSpec
from nasvit.errors import CheckpointError
from nasvit.models.mixers.slide import displacement
from nasvit.zoo.checkpoint import Checkpoint
from nasvit.zoo.family import FAMILIES, Family, cfg, checkpoint_filter_fn, create
from nasvit.zoo.swin import around, from_timm, swin_arch, window, window_attention

from timm.models import generate_default_cfgs, register_model  # isort: skip (behind ours, which make torchvision importable)

__all__ = ["checkpoint_filter_fn", "slide_swin_base", "slide_swin_base_w7", "slide_swin_small", "slide_swin_small_w7",
           "slide_swin_tiny", "slide_swin_tiny_w7"]


def arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int],
         kernel_size: int = 3, slide_stages: int = 2, window_size: int = 56, mlp_ratio: float = 4.0, patch_size: int = 4,
         pos_embed: bool = False, patch_norm: bool = True) -> Arch:
    """Slide attention of `kernel_size` in the first `slide_stages` stages, windows of `window_size` behind them.

    Windows are shifted in every second block, and cover the map where it is smaller. Any H, W divisible by `patch_size`. pos_embed:
    learned absolute positions (the code's `ape`).
    """
    def mixers(s: int, b: int, grid: Grid) -> tuple[MixerSpec, ...]:
        if s < slide_stages:
            return (MixerSpec.of("slide", num_heads=num_heads[s], kernel_size=kernel_size),)
        return (window(grid, num_heads=num_heads[s], window_size=window_size, shift=b % 2 == 1),)

    return swin_arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes, embed_dim=embed_dim, depths=depths,
                     mixers=mixers, mlp_ratio=mlp_ratio, patch_size=patch_size, pos_embed=pos_embed, patch_norm=patch_norm)


def paths(checkpoint: Checkpoint, theirs: str, *, head_dim: int, kernel_size: int, learned: str = "dep_conv1"
          ) -> tuple[Tensor, Tensor, Tensor]:
    """The learned kernel (d, T, k, k), its bias and the fixed path's bias (d, T), from the authors' (d * T, ..), channel-major.

    Raises CheckpointError for a fixed path that is not the fixed displacement: this family has no place for another.
    """
    taps, d, k = kernel_size**2, head_dim, kernel_size
    fixed = checkpoint.take(f"{theirs}.dep_conv.weight", shape=(d * taps, 1, k, k)).view(d, taps, k, k)
    if not torch.equal(fixed, displacement(k).to(fixed).expand_as(fixed)):
        raise CheckpointError(f"{theirs}.dep_conv.weight is not the displacement by one tap each, which is a constant of the design")
    kernel = checkpoint.take(f"{theirs}.{learned}.weight", shape=(d * taps, 1, k, k)).view(d, taps, k, k)
    learned_bias, fixed_bias = (checkpoint.take(f"{theirs}.{conv}.bias", shape=(d * taps,)).view(d, taps) for conv in (learned, "dep_conv"))
    return kernel, learned_bias, fixed_bias


def slide_attention(checkpoint: Checkpoint, theirs: str, to: str, *, dim: int, num_heads: int, kernel_size: int) -> dict[str, Tensor]:
    """The authors' layout to ours: their qkv is head first (h, 3, d), ours (3, h, d). No bias of q, k and v is a bias of zeros."""
    def standard(t: Tensor) -> Tensor:
        return t.view(num_heads, 3, dim // num_heads, -1).transpose(0, 1).reshape(t.shape)

    kernel, kernel_bias, fixed_bias = paths(checkpoint, theirs, head_dim=dim // num_heads, kernel_size=kernel_size)
    bias = f"{theirs}.qkv.bias"
    table = checkpoint.take(f"{theirs}.relative_position_bias_table", shape=(1, num_heads, 1, kernel_size**2, 1, 1))
    return {f"{to}.qkv.weight": standard(checkpoint.take(f"{theirs}.qkv.weight", shape=(3 * dim, dim))),
            f"{to}.qkv.bias": standard(checkpoint.take(bias, shape=(3 * dim,)) if bias in checkpoint else kernel.new_zeros(3 * dim)),
            f"{to}.kernel": kernel, f"{to}.kernel_bias": kernel_bias, f"{to}.fixed_bias": fixed_bias,
            f"{to}.relative_position_bias_table": table.view(num_heads, -1), **checkpoint.take_all(f"{theirs}.proj", f"{to}.proj")}


def attention(checkpoint: Checkpoint, theirs: str, to: str, *, dim: int, mixer: MixerSpec) -> dict[str, Tensor]:
    """The attention of a block, of either kind."""
    if mixer.name != "slide":
        return window_attention(checkpoint, theirs, to)
    heads, kernel_size = int(mixer.kwargs["num_heads"]), int(mixer.kwargs["kernel_size"])
    return slide_attention(checkpoint, theirs, to, dim=dim, num_heads=heads, kernel_size=kernel_size)


def official(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """The authors' names and layouts to ours."""
    ours = around(checkpoint, arch)
    for s, stage in enumerate(arch.stages):
        for b, block in enumerate(stage.blocks):
            ours |= attention(checkpoint, f"layers.{s}.blocks.{b}.attn", f"stages.{s}.blocks.{b}.mixers.0", dim=stage.embed_dim,
                              mixer=block.mixers[0])
    return ours


FAMILIES.register("slide_swin")(Family(name="slide_swin", arch=arch, official=official,
                                       relatives={"swintransformer": from_timm}))

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}

default_cfgs = generate_default_cfgs({f"slide_swin_{size}{form}.authors_in1k": cfg("stem.proj", license="none stated")
                                      for size in SIZES for form in ("", "_w7")})


def _slide_swin(size: str, window_size: int, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    defaults = {"kernel_size": 3, "slide_stages": 2, "window_size": window_size, "mlp_ratio": 4.0, "patch_size": 4, "pos_embed": False,
                "patch_norm": True, **SIZES[size]}
    name = f"slide_swin_{size}" + ("_w7" if window_size == 7 else "")
    return create("slide_swin", name, pretrained=pretrained, defaults=defaults, **kwargs)


@register_model
def slide_swin_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-Swin-T as released, with windows of 56: 82.3 % top-1 on ImageNet-1k in the paper."""
    return _slide_swin("tiny", 56, pretrained, {"drop_path_rate": 0.2, **kwargs})


@register_model
def slide_swin_tiny_w7(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-Swin-T with windows of 7, which is what the paper's FLOPs fit."""
    return _slide_swin("tiny", 7, pretrained, {"drop_path_rate": 0.2, **kwargs})


@register_model
def slide_swin_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-Swin-S as released, with windows of 56: 83.7 % top-1 on ImageNet-1k in the paper."""
    return _slide_swin("small", 56, pretrained, {"drop_path_rate": 0.3, **kwargs})


@register_model
def slide_swin_small_w7(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-Swin-S with windows of 7, which is what the paper's FLOPs fit."""
    return _slide_swin("small", 7, pretrained, {"drop_path_rate": 0.3, **kwargs})


@register_model
def slide_swin_base(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-Swin-B as released, with windows of 56: 84.2 % top-1 on ImageNet-1k in the paper."""
    return _slide_swin("base", 56, pretrained, {"drop_path_rate": 0.5, **kwargs})


@register_model
def slide_swin_base_w7(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-Swin-B with windows of 7, which is what the paper's FLOPs fit."""
    return _slide_swin("base", 7, pretrained, {"drop_path_rate": 0.5, **kwargs})
