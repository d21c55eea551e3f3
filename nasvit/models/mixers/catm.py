"""CATM, convolutional additive token mixer (CAS-ViT, arXiv 2408.03703): gated queries and keys are added, not multiplied.

No softmax and no matrix product between tokens: context comes from depthwise convolutions and from one pooled gate.
Convolutions see (B, C, H, W) views that lie channels_last in memory; pointwise ones are linear layers on (B, H, W, C).
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Grid
from nasvit.errors import ArchError
from nasvit.models.folding import fold_norm_, scale_input_
from nasvit.models.mixers.base import MIXERS, Mixer, to_channels_first, to_channels_last


def depthwise(dim: int) -> nn.Conv2d:
    """Depthwise 3x3 convolution with bias that keeps H and W."""
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class SpatialOperation(nn.Module):
    """Multiplies each token by a gate of its neighbourhood, the same for all channels: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = depthwise(dim)
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.gate = nn.Linear(dim, 1, bias=False)

    def gates(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, 1), in (0, 1)"""
        near = F.relu(self.norm(self.conv(to_channels_first(x))), inplace=True)
        return self.gate(to_channels_last(near)).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        return x * self.gates(x)

    def deploy_(self) -> None:
        self.norm = fold_norm_(self.conv, self.norm)


class ChannelOperation(nn.Module):
    """Multiplies each channel by a gate computed from the mean over the grid: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, dim, bias=False)

    def gates(self, pooled: Tensor) -> Tensor:
        """(B, C) -> (B, 1, 1, C), in (0, 1)"""
        return self.gate(pooled).sigmoid()[:, None, None, :]

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        return x * self.gates(x.mean(dim=(1, 2)))


def gated(x: Tensor, operations: nn.Sequential) -> tuple[Tensor, Tensor]:
    """(B, H, W, C) -> x through the spatial operation, and the channel gates (B, 1, 1, C) still to be multiplied with it.

    The mean of the gated tokens is a product of a row of gates with the tokens, so it is had without reading them again.
    """
    spatial, channel = cast(SpatialOperation, operations[0]), cast(ChannelOperation, operations[1])
    gates = spatial.gates(x)
    if torch.compiler.is_compiling():  # what is behind an export fuses what it likes
        x = x * gates
        return x, channel.gates(x.mean(dim=(1, 2)))
    batch, height, width, dim = x.shape
    tokens = height * width
    pooled = torch.bmm((gates / tokens).view(batch, 1, tokens), x.view(batch, tokens, dim)).squeeze(1)  # half precision holds no sum
    return times(x, gates), channel.gates(pooled)


def times(x: Tensor, y: Tensor) -> Tensor:
    """x * y, in the memory of x where no gradient will ask for it: the maps are large, and writing new ones is most of the time."""
    return x * y if x.requires_grad or y.requires_grad else x.mul_(y)


def plus_product(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x + y * z, in the memory of x likewise."""
    if torch.compiler.is_compiling():
        return x + y * z
    return torch.addcmul(x, y, z) if x.requires_grad or y.requires_grad or z.requires_grad else x.addcmul_(y, z)


@MIXERS.register("catm")
class CATMMixer(Mixer):
    """Additive token mixer: conv(conv(gates(q) + gates(k)) * v), both convolutions depthwise 3x3.

    qkv_bias: whether the projection to q, k and v has a bias (in the published variants it has none).
    """

    norm: ClassVar[str] = "batch"
    default_initialisation: ClassVar[bool] = True

    def __init__(self, dim: int, *, resolution: Grid, qkv_bias: bool = False) -> None:
        super().__init__()
        if not isinstance(qkv_bias, bool):  # 1 would be another id than true
            raise ArchError(f"mixer catm: qkv_bias {qkv_bias!r} is not possible; accepted: true or false")
        self.dim, self.resolution = dim, resolution
        self.qkv: nn.Linear | nn.ModuleList = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.gates_q = nn.Sequential(SpatialOperation(dim), ChannelOperation(dim))
        self.gates_k = nn.Sequential(SpatialOperation(dim), ChannelOperation(dim))
        self.mix = depthwise(dim)
        self.proj = depthwise(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        q, k, v = self.project(x)
        (q, q_channels), (k, k_channels) = gated(q, self.gates_q), gated(k, self.gates_k)
        context = self.mix(to_channels_first(plus_product(times(q, q_channels), k, k_channels)))
        return to_channels_last(self.proj(times(context, to_channels_first(v))))

    def project(self, x: Tensor) -> list[Tensor]:
        """(B, H, W, C) -> q, k and v, each (B, H, W, C) in a memory of its own: what follows reads and writes them one by one."""
        if isinstance(self.qkv, nn.ModuleList):
            return [layer(x) for layer in self.qkv]
        return [F.linear(x, weight, bias) for weight, bias in self._thirds(self.qkv)]

    @staticmethod
    def _thirds(qkv: nn.Linear) -> list[tuple[Tensor, Tensor | None]]:
        biases = (None,) * 3 if qkv.bias is None else qkv.bias.chunk(3)
        return list(zip(qkv.weight.chunk(3), biases, strict=True))

    def absorb_norm_(self, scale: Tensor, shift: Tensor) -> None:
        """The norm before the mixer goes into the projection, which then has a bias."""
        scale_input_(cast(nn.Linear, self.qkv), scale, shift)

    def deploy_(self) -> None:
        """q, k and v become three linear layers."""
        thirds = nn.ModuleList()
        for weight, bias in self._thirds(cast(nn.Linear, self.qkv)):
            layer = nn.Linear(self.dim, self.dim, bias=bias is not None, device="meta")
            layer.weight = nn.Parameter(weight.detach().clone())
            if bias is not None:
                layer.bias = nn.Parameter(bias.detach().clone())
            thirds.append(layer)
        self.qkv = thirds

    def macs(self) -> int:
        """Multiply-adds of one image: qkv, four depthwise convolutions, and norm, gate and pooling of q and of k."""
        tokens = self.resolution[0] * self.resolution[1]
        return tokens * self.dim * (3 * self.dim + 4 * 9 + 2 * (2 + 1 + 1)) + 2 * self.dim**2
