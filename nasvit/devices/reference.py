"""The fixed network that every latency is measured beside: a little of each operation that searched networks are made of.

Changing it changes every latency's scale: then raise VERSION, which is part of the fingerprint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VERSION = 2
_SIDE = 48
_LARGE, _SMALL = (1, 64, 4, 12), (4, 16, 2, 4)
"""Blocks, width, heads and side of the grid of its two parts, which take about equal times. A busy neighbour (on the other half of a core,
in the shared cache) slows many short operations and few long matrix products differently, so that a network repeats best beside a
reference like it; beside one of both kinds, all do tolerably (experiments/LOG.md)."""


class _Block(nn.Module):
    """Depthwise convolution, attention and MLP, each in its residual branch, on (B, C, H, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local(x)
        batch, width, height, breadth = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)
        qkv = self.qkv(self.norm1(tokens)).reshape(batch, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # (B, h, N, d)
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(batch, width, height, breadth)


def make_reference() -> tuple[nn.Module, Tensor]:
    """The network in eval mode and its input, the same in every process; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        layers: list[nn.Module] = []
        channels, side = 3, _SIDE
        for blocks, width, heads, grid in (_LARGE, _SMALL):
            layers += [nn.Conv2d(channels, width, side // grid, stride=side // grid), *(_Block(width, heads) for _ in range(blocks))]
            channels, side = width, grid
        return nn.Sequential(*layers).eval(), torch.randn(1, 3, _SIDE, _SIDE)
