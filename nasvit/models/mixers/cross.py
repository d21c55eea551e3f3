"""Cross-shaped window attention with locally enhanced positions (CSWin Transformer, arXiv 2107.00652).

Legend: as in base; s split_size, S stripes of r x c tokens, n = r*c, Hp x Wp the map padded to whole stripes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Grid
from nasvit.models.mixers.base import MIXERS, Mixer, head_width, scaled_attention


def stripes_of(resolution: Grid, *, split_size: int) -> tuple[Grid, ...]:
    """(r, c) of the stripes of each branch: vertical and horizontal ones, or the whole map where a stripe covers it."""
    height, width = resolution
    if split_size >= max(resolution):
        return (resolution,)
    return (height, min(split_size, width)), (min(split_size, height), width)


def padding_mask(resolution: Grid, *, stripe: Grid) -> Tensor | None:
    """(S, 1, n), added to the logits: -inf for keys in the padding, else 0; None where stripes divide the map."""
    (height, width), (rows, columns) = resolution, stripe
    if height % rows == 0 and width % columns == 0:
        return None
    outside = torch.ones(-(-height // rows) * rows, -(-width // columns) * columns, dtype=torch.bool)
    outside[:height, :width] = False
    tiles = outside.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2)  # (Hp/r, Wp/c, r, c)
    return torch.zeros(tiles.shape).masked_fill(tiles, float("-inf")).reshape(-1, 1, rows * columns)


class StripeAttention(nn.Module):
    """One branch: attention inside stripes of r x c tokens, plus LePE, a depthwise 3x3 convolution of the values of a stripe.

    (B, H, W, 3, C) queries, keys, values -> (B, H, W, C). The convolution ends at the stripe's border, as the attention does.
    """

    mask: Tensor | None

    def __init__(self, dim: int, *, resolution: Grid, stripe: Grid, num_heads: int) -> None:
        super().__init__()
        self.dim, self.resolution, self.stripe, self.num_heads = dim, resolution, stripe, num_heads
        self.padded = tuple(-(-size // part) * part for size, part in zip(resolution, stripe, strict=True))
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.register_buffer("mask", padding_mask(resolution, stripe=stripe), persistent=False)

    def forward(self, qkv: Tensor) -> Tensor:
        batch, height, width = qkv.shape[:3]
        (padded_height, padded_width), (rows, columns) = self.padded, self.stripe
        if (padded_height, padded_width) != self.resolution:  # zeros, which the convolution sees at a border anyway
            qkv = F.pad(qkv, (0, 0, 0, 0, 0, padded_width - width, 0, padded_height - height))
        down, across = padded_height // rows, padded_width // columns
        tiles = qkv.reshape(batch, down, rows, across, columns, 3, self.dim).permute(5, 0, 1, 3, 2, 4, 6)
        tiles = tiles.reshape(3, batch * down * across, rows * columns, self.dim)  # (3, B * S, n, C)
        out = self._attend(tiles, batch=batch) + self._positions(tiles[2])
        out = out.view(batch, down, across, rows, columns, self.dim).transpose(2, 3)
        out = out.reshape(batch, padded_height, padded_width, self.dim)
        return out if self.mask is None else out[:, :height, :width]

    def _attend(self, tiles: Tensor, *, batch: int) -> Tensor:
        """(3, B * S, n, C) -> (B * S, n, C)"""
        _, count, tokens, dim = tiles.shape
        q, k, v = tiles.view(3, count, tokens, self.num_heads, dim // self.num_heads).transpose(2, 3).unbind()  # (B * S, h, n, d)
        if self.mask is None:
            return scaled_attention(q, k, v).transpose(1, 2).reshape(count, tokens, dim)
        # stripes beside the heads: so one mask per stripe serves every image of the batch
        q, k, v = (t.reshape(batch, -1, tokens, t.shape[-1]) for t in (q, k, v))
        bias = self.mask.to(q.dtype).repeat_interleave(self.num_heads, dim=0).expand(-1, tokens, -1)[None]  # (1, S * h, n, n)
        out = scaled_attention(q, k, v, bias=bias).view(count, self.num_heads, tokens, -1)
        return out.transpose(1, 2).reshape(count, tokens, dim)

    def _positions(self, values: Tensor) -> Tensor:
        """(B * S, n, C) -> (B * S, n, C)"""
        image = values.transpose(1, 2).unflatten(2, self.stripe)  # (B * S, C, r, c), channels last in memory
        return self.lepe(image).flatten(2).transpose(1, 2)

    def macs(self) -> int:
        """Multiply-adds of one image: attention and LePE on the padded map."""
        return self.padded[0] * self.padded[1] * self.dim * (2 * self.stripe[0] * self.stripe[1] + 9)


@MIXERS.register("cross_window")
class CrossWindowMixer(Mixer):
    """Half of the heads attend inside vertical stripes, H x s tokens, the other half inside horizontal ones, s x W.

    num_heads: even, divides C unless head_dim, the channels of a head, is given. split_size: s, at most the longer side of the map; there
    one branch of all heads attends to the whole map (the authors' last stage), and num_heads may be odd. A map that s does not divide is
    padded at the bottom and right, and the padding is never attended to. Raises ArchError otherwise.
    """

    def __init__(self, dim: int, *, resolution: Grid, num_heads: int, split_size: int, head_dim: int | None = None) -> None:
        super().__init__()
        self.dim, self.resolution = dim, resolution
        self.inner = num_heads * head_width("cross_window", dim, resolution=resolution, num_heads=num_heads, head_dim=head_dim,
                                            split_size=split_size)
        stripes = stripes_of(resolution, split_size=split_size)
        self.qkv = nn.Linear(dim, 3 * self.inner)
        self.branches = nn.ModuleList(StripeAttention(self.inner // len(stripes), resolution=resolution, stripe=stripe,
                                                      num_heads=num_heads // len(stripes)) for stripe in stripes)
        self.proj = nn.Linear(self.inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        qkv = self.qkv(x).unflatten(-1, (3, self.inner))
        parts = qkv.chunk(len(self.branches), dim=-1)
        return self.proj(torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], dim=-1))

    def macs(self) -> int:
        """Multiply-adds of one image: projections on the map itself, and each branch."""
        branches = sum(cast(StripeAttention, branch).macs() for branch in self.branches)
        return self.resolution[0] * self.resolution[1] * 4 * self.dim * self.inner + branches
