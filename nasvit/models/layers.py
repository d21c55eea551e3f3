"""Layers around the mixers: norms, MLP, stem, downsampling. The only file of `models` that imports `timm.layers`.

Legend: B images, H x W the grid, n tokens, C channels. Tokens stay channels-last, (B, H, W, C), everywhere.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from nasvit.models.mixers.base import Mixer, to_channels_first, to_channels_last
from nasvit.torchvision_ops import ensure

ensure()
from timm.layers import DropPath, Mlp, trunc_normal_  # noqa: E402 (timm needs torchvision importable first)

__all__ = ["ChannelBatchNorm", "ConvDownsample", "ConvStem", "DropPath", "Mlp", "PatchStem", "initialise", "make_norm", "trunc_normal_"]


class ChannelBatchNorm(nn.Module):
    """Batch norm over the last axis of (.., C): every token is a sample."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.reshape(-1, x.shape[-1])).view(x.shape)


def make_norm(kind: str, dim: int) -> nn.Module:
    """The norm before a residual branch: "layer", "batch" or "none"."""
    if kind == "none":
        return nn.Identity()
    return ChannelBatchNorm(dim) if kind == "batch" else nn.LayerNorm(dim)


class ConvStem(nn.Module):
    """(B, in, H, W) -> (B, ceil(H/stride), ceil(W/stride), dim): one 3x3 stride-2 convolution, batch norm and ReLU per
    factor of 2, the width doubling up to dim (CAS-ViT's stem; LeViT's is the same with stride 16)."""

    def __init__(self, in_channels: int, dim: int, *, stride: int) -> None:
        super().__init__()
        steps = stride.bit_length() - 1
        widths = [in_channels, *(max(1, dim >> (steps - 1 - i)) for i in range(steps))]
        self.layers = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        return to_channels_last(self.layers(x)).contiguous()


class PatchStem(nn.Module):
    """(B, in, H, W) -> (B, H/stride, W/stride, dim): one convolution with kernel = stride (ViT's patch embedding)."""

    def __init__(self, in_channels: int, dim: int, *, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return to_channels_last(self.proj(x)).contiguous()


class ConvDownsample(nn.Module):
    """(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C'): 3x3 stride-2 convolution and batch norm (CAS-ViT's patch embedding)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return to_channels_last(self.norm(self.proj(to_channels_first(x)))).contiguous()


def initialise(module: nn.Module) -> None:
    """Linear layers: truncated normal of std 0.02 and zero bias, as all four papers do; convolutions keep PyTorch's default, and so
    do the mixers that say so."""
    if isinstance(module, Mixer) and module.default_initialisation:
        return
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for child in module.children():
        initialise(child)
