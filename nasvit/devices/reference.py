"""The fixed network that every latency is measured beside: a little of each operation that searched networks are made of.

Changing it changes every latency's scale: then raise VERSION, which is part of the fingerprint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VERSION = 2
_WIDTH, _HEADS, _GRID, _BLOCKS = 16, 2, 4, 6
"""Small, so that its time goes into many short operations, as in the small networks that are hardest to time: a busy neighbour on the other
half of a core slows those by up to half as much again as long matrix products. Beside the larger reference of version 1 two measurements
of one network differed by under 3 % in 77 of 100 cases, beside this one in 95 (experiments/LOG.md)."""


class _Block(nn.Module):
    """Depthwise convolution, attention and MLP, each in its residual branch, on (B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, groups=_WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.qkv, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.mlp = nn.Sequential(nn.Linear(_WIDTH, 3 * _WIDTH), nn.GELU(), nn.Linear(3 * _WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local(x)
        batch, width, height, breadth = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)
        qkv = self.qkv(self.norm1(tokens)).reshape(batch, -1, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # (B, h, N, d)
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(batch, width, height, breadth)


def make_reference() -> tuple[nn.Module, Tensor]:
    """The network in eval mode and its input, the same in every process; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        module = nn.Sequential(nn.Conv2d(3, _WIDTH, 4, stride=4), *(_Block() for _ in range(_BLOCKS))).eval()
        return module, torch.randn(1, 3, 4 * _GRID, 4 * _GRID)
