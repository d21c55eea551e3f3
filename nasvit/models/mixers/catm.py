"""CATM, convolutional additive token mixer (CAS-ViT, arXiv 2408.03703): gated queries and keys are added, not multiplied.

No softmax and no matrix product between tokens: context comes from depthwise convolutions and from one pooled gate.
Convolutions see (B, C, H, W) views that lie channels_last in memory; pointwise ones are linear layers on (B, H, W, C).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Grid
from nasvit.models.mixers.base import MIXERS, Mixer, to_channels_first, to_channels_last


def depthwise(dim: int) -> nn.Conv2d:
    """Depthwise 3x3 convolution with bias that keeps H and W."""
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class SpatialOperation(nn.Module):
    """Multiplies each token by a gate of its neighbourhood, the same for all channels: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = depthwise(dim)
        self.norm = nn.BatchNorm2d(dim)
        self.gate = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        near = F.relu(self.norm(self.conv(to_channels_first(x))))
        return x * self.gate(to_channels_last(near)).sigmoid()  # (B, H, W, 1) spreads over C


class ChannelOperation(nn.Module):
    """Multiplies each channel by a gate computed from the mean over the grid: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        pooled = F.adaptive_avg_pool2d(to_channels_first(x), 1).flatten(1)  # (B, C)
        return x * self.gate(pooled).sigmoid()[:, None, None, :]


@MIXERS.register("catm")
class CATMMixer(Mixer):
    """Additive token mixer: conv(conv(gates(q) + gates(k)) * v), both convolutions depthwise 3x3.

    qkv_bias: whether the projection to q, k and v has a bias (in the published variants it has none).
    """

    norm: ClassVar[str] = "batch"
    default_initialisation: ClassVar[bool] = True

    def __init__(self, dim: int, *, resolution: Grid, qkv_bias: bool = False) -> None:
        super().__init__()
        self.dim, self.resolution = dim, resolution
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.gates_q = nn.Sequential(SpatialOperation(dim), ChannelOperation(dim))
        self.gates_k = nn.Sequential(SpatialOperation(dim), ChannelOperation(dim))
        self.mix = depthwise(dim)
        self.proj = depthwise(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        context = self.mix(to_channels_first(self.gates_q(q) + self.gates_k(k)))
        return to_channels_last(self.proj(context * to_channels_first(v)))

    def macs(self) -> int:
        """Multiply-adds of one image: qkv, four depthwise convolutions, and norm, gate and pooling of q and of k."""
        tokens = self.resolution[0] * self.resolution[1]
        return tokens * self.dim * (3 * self.dim + 4 * 9 + 2 * (2 + 1 + 1)) + 2 * self.dim**2
