"""Patch embeddings: from the image to the first grid of tokens (stems), and from a grid to one of half the side (downsampling).

Legend: B images, H x W the grid, C channels. Tokens are channels-last, (B, H, W, C).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Arch
from nasvit.errors import ArchError
from nasvit.models.folding import fold_norm_
from nasvit.models.mixers.base import to_channels_first, to_channels_last


class ConvStem(nn.Module):
    """(B, in, H, W) -> (B, ceil(H/stride), ceil(W/stride), dim): one 3x3 stride-2 convolution, batch norm and activation per factor
    of 2, the width doubling up to dim. CAS-ViT's has biases and ReLU behind each; LeViT's has hardswish between them."""

    def __init__(self, in_channels: int, dim: int, *, stride: int, levit: bool = False, bias: bool = False) -> None:
        super().__init__()
        steps = stride.bit_length() - 1
        widths = [in_channels, *(max(1, dim >> (steps - 1 - i)) for i in range(steps))]
        layers = []
        for step, (a, b) in enumerate(pairwise(widths), start=1):
            active: list[nn.Module] = [nn.ReLU()] if not levit else [nn.Hardswish()] if step < steps else []
            layers.append(nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=bias), nn.BatchNorm2d(b), *active))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return to_channels_last(self.layers(x)).contiguous()


class PatchStem(nn.Module):
    """(B, in, H, W) -> (B, H', W', dim): one convolution, and a layer norm where `norm` says so.

    kernel_size = stride, no padding: ViT's patch embedding. A larger one overlaps: 2 * stride - 1 with padding stride - 1 is
    PVTv2's, with padding stride / 2 CSWin's.
    """

    def __init__(self, in_channels: int, dim: int, *, stride: int, kernel_size: int | None = None, padding: int = 0,
                 norm: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size or stride, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(to_channels_last(self.proj(x)).contiguous())


def make_stem(arch: Arch) -> nn.Module:
    """The stem an Arch asks for."""
    kind, stride, dim = arch.stem.kind, arch.stem.stride, arch.stages[0].embed_dim
    if kind in ("conv", "conv_bias", "levit"):
        return ConvStem(arch.in_channels, dim, stride=stride, levit=kind == "levit", bias=kind == "conv_bias")
    if kind in ("patch", "patch_norm"):
        return PatchStem(arch.in_channels, dim, stride=stride, norm=kind == "patch_norm")
    padding = stride - 1 if kind == "overlap_norm" else stride // 2
    return PatchStem(arch.in_channels, dim, stride=stride, kernel_size=2 * stride - 1, padding=padding, norm=True)


class ConvDownsample(nn.Module):
    """(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C'): 3x3 stride-2 convolution and batch norm (CAS-ViT's patch embedding)."""

    def __init__(self, dim: int, out_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=bias)
        self.norm: nn.Module = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return to_channels_last(self.norm(self.proj(to_channels_first(x)))).contiguous()

    def deploy_(self) -> None:
        self.norm = fold_norm_(self.proj, self.norm)


class PatchDownsample(nn.Module):
    """(B, H, W, C) -> (B, H', W', C'): a stride-2 convolution with bias and a layer norm; kernel 2 (PVT) or 3 with padding 1 (PVTv2,
    CSWin: H' = ceil(H/2))."""

    def __init__(self, dim: int, out_dim: int, *, kernel_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, kernel_size, stride=2, padding=kernel_size // 2 if kernel_size % 2 else 0)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(to_channels_last(self.proj(to_channels_first(x))).contiguous())


class PatchMerging(nn.Module):
    """(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C'): the four tokens of each 2x2 patch side by side, layer norm, linear (Swin).

    Order of the four: (even row, even column), (odd, even), (even, odd), (odd, odd). Odd sides are padded with zeros.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


def make_downsample(kind: str, *, dim: int, out_dim: int) -> nn.Module:
    """The module a stage begins with, by the kind of `Stage.downsample`; "levit" has its own file, for it carries the class token."""
    if kind == "none":
        return nn.Identity()
    if kind == "merge":
        return PatchMerging(dim, out_dim)
    if kind in ("patch_norm", "overlap_norm"):
        return PatchDownsample(dim, out_dim, kernel_size=2 if kind == "patch_norm" else 3)
    if kind not in ("conv", "conv_bias"):
        raise ArchError(f"downsample {kind!r} is not made here; accepted: none, merge, patch_norm, overlap_norm, conv, conv_bias")
    return ConvDownsample(dim, out_dim, bias=kind == "conv_bias")
