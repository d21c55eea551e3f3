"""Slide-Swin (Slide-Transformer, arXiv 2304.04237; released code, three sizes): slide attention in the first two stages of Swin.

The authors' configurations have window 56, which at 224 px is global attention in the last two stages; their paper's FLOPs fit
window 7. Both are here: `window_size=56` is the default, as released.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nasvit.arch import Arch, Grid, MixerSpec
from nasvit.zoo.checkpoint import Checkpoint
from nasvit.zoo.family import FAMILIES, Family, cfg, checkpoint_filter_fn, create
from nasvit.zoo.swin import around, swin_arch, window, window_attention

from timm.models import generate_default_cfgs, register_model  # isort: skip (behind ours, which make torchvision importable)

__all__ = ["checkpoint_filter_fn", "slide_swin_base", "slide_swin_small", "slide_swin_tiny"]


def arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int],
         kernel_size: int = 3, slide_stages: int = 2, window_size: int = 56, mlp_ratio: float = 4.0) -> Arch:
    """Slide attention of `kernel_size` in the first `slide_stages` stages, windows of `window_size` behind them.

    Windows are shifted in every second block, and cover the map where it is smaller. Any H, W divisible by 4.
    """
    def mixers(s: int, b: int, grid: Grid) -> tuple[MixerSpec, ...]:
        if s < slide_stages:
            return (MixerSpec.of("slide", num_heads=num_heads[s], kernel_size=kernel_size),)
        return (window(grid, num_heads=num_heads[s], window_size=window_size, shift=b % 2 == 1),)

    return swin_arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes, embed_dim=embed_dim, depths=depths,
                     mixers=mixers, mlp_ratio=mlp_ratio)


def slide_attention(checkpoint: Checkpoint, theirs: str, to: str, *, dim: int, num_heads: int) -> dict[str, Tensor]:
    """The authors' layout to ours: their qkv is head first (h, 3, d), ours (3, h, d); their kernels are (d * T, 1, k, k)."""
    def standard(t: Tensor) -> Tensor:
        return t.view(num_heads, 3, dim // num_heads, -1).transpose(0, 1).reshape(t.shape)

    kernel = checkpoint.take(f"{theirs}.dep_conv1.weight")
    size = kernel.shape[-1]
    checkpoint.take(f"{theirs}.dep_conv.weight")  # the fixed path: a constant of the design
    bias = checkpoint.take(f"{theirs}.qkv.bias") if f"{theirs}.qkv.bias" in checkpoint else torch.zeros(3 * dim, dtype=kernel.dtype)
    return {f"{to}.qkv.weight": standard(checkpoint.take(f"{theirs}.qkv.weight")), f"{to}.qkv.bias": standard(bias),
            f"{to}.kernel": kernel.view(-1, size**2, size, size),
            f"{to}.kernel_bias": checkpoint.take(f"{theirs}.dep_conv1.bias").view(-1, size**2),
            f"{to}.fixed_bias": checkpoint.take(f"{theirs}.dep_conv.bias").view(-1, size**2),
            f"{to}.relative_position_bias_table": checkpoint.take(f"{theirs}.relative_position_bias_table").view(num_heads, -1),
            **checkpoint.take_all(f"{theirs}.proj", f"{to}.proj")}


def official(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """The authors' names and layouts to ours."""
    ours = around(checkpoint, arch)
    for s, stage in enumerate(arch.stages):
        for b, block in enumerate(stage.blocks):
            theirs, to, mixer = f"layers.{s}.blocks.{b}.attn", f"stages.{s}.blocks.{b}.mixers.0", block.mixers[0]
            if mixer.name == "slide":
                ours |= slide_attention(checkpoint, theirs, to, dim=stage.embed_dim, num_heads=int(mixer.kwargs["num_heads"]))
            else:
                ours |= window_attention(checkpoint, theirs, to)
    return ours


FAMILIES.register("slide_swin")(Family(name="slide_swin", arch=arch, official=official, relatives={}))

default_cfgs = generate_default_cfgs({f"slide_swin_{size}.authors_in1k": cfg("stem.proj", license="none stated")
                                      for size in ("tiny", "small", "base")})


def _slide_swin(variant: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> Any:
    defaults = {"kernel_size": 3, "slide_stages": 2, "window_size": 56, "mlp_ratio": 4.0, **sizes}
    return create("slide_swin", variant, pretrained=pretrained, defaults=defaults, **kwargs)


@register_model
def slide_swin_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-Swin-T: 82.3 % top-1 on ImageNet-1k in the paper."""
    return _slide_swin("slide_swin_tiny", pretrained, {"drop_path_rate": 0.2, **kwargs}, embed_dim=96, depths=(2, 2, 6, 2),
                       num_heads=(3, 6, 12, 24))


@register_model
def slide_swin_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-Swin-S: 83.7 % top-1 on ImageNet-1k in the paper."""
    return _slide_swin("slide_swin_small", pretrained, {"drop_path_rate": 0.3, **kwargs}, embed_dim=96, depths=(2, 2, 18, 2),
                       num_heads=(3, 6, 12, 24))


@register_model
def slide_swin_base(pretrained: bool = False, **kwargs: Any) -> Any:
    """Slide-Swin-B: 84.2 % top-1 on ImageNet-1k in the paper."""
    return _slide_swin("slide_swin_base", pretrained, {"drop_path_rate": 0.5, **kwargs}, embed_dim=128, depths=(2, 2, 18, 2),
                       num_heads=(4, 8, 16, 32))
