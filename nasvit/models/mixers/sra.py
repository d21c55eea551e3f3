"""Spatial-reduction attention: every token attends to the tokens of a coarser map (PVT, arXiv 2102.12122; PVTv2, arXiv 2106.13797).

Legend: as in base; r reduction, m = floor(H / r) * floor(W / r) tokens of the reduced map.
"""

from __future__ import annotations

from torch import Tensor, nn

from nasvit.arch import Grid
from nasvit.models.mixers.base import MIXERS, Mixer, head_width, scaled_attention, to_channels_first, to_channels_last


@MIXERS.register("sra")
class SRAMixer(Mixer):
    """Attention of all tokens to those of a strided convolution (kernel = stride = reduction) and a layer norm.

    num_heads: divides C unless head_dim, the channels of a head, is given. reduction: r, from 2 to the shorter side of the map; where r
    does not divide the map, its last rows and columns are queries alone, as published. Raises ArchError otherwise. Without a reduction it
    is the mixer `global`.
    """

    def __init__(self, dim: int, *, resolution: Grid, num_heads: int, reduction: int, head_dim: int | None = None) -> None:
        super().__init__()
        self.head_dim = head_width("sra", dim, resolution=resolution, num_heads=num_heads, head_dim=head_dim, reduction=reduction)
        self.inner = num_heads * self.head_dim
        self.dim, self.resolution, self.num_heads, self.reduction = dim, resolution, num_heads, reduction
        self.q = nn.Linear(dim, self.inner)
        self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction)
        self.reduced_norm = nn.LayerNorm(dim)
        self.kv = nn.Linear(dim, 2 * self.inner)
        self.proj = nn.Linear(self.inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        batch, height, width, _ = x.shape
        heads, head_dim = self.num_heads, self.head_dim
        q = self.q(x).view(batch, height * width, heads, head_dim).transpose(1, 2)  # (B, h, N, d)
        coarse = self.reduced_norm(to_channels_last(self.reduce(to_channels_first(x))).contiguous()).flatten(1, 2)  # (B, m, C)
        k, v = self.kv(coarse).unflatten(-1, (2, heads, head_dim)).permute(2, 0, 3, 1, 4).unbind()  # 2 of (B, h, m, d)
        out = scaled_attention(q, k, v).transpose(1, 2).reshape(batch, height, width, self.inner)
        return self.proj(out)

    def macs(self) -> int:
        """Multiply-adds of one image: the reduction, q and proj of all tokens, k and v of the reduced ones, attention, and 5 per element
        of the norm."""
        height, width = self.resolution
        tokens, coarse = height * width, (height // self.reduction) * (width // self.reduction)
        reducing = coarse * self.dim * (self.dim * self.reduction**2 + 2 * self.inner + 5)
        return reducing + tokens * self.inner * (2 * self.dim + 2 * coarse)
