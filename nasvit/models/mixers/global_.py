"""Global attention: every token attends to every token (ViT, arXiv 2010.11929). No positions, so any set of tokens will do."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from nasvit.arch import Grid
from nasvit.errors import ArchError
from nasvit.models.mixers.base import MIXERS, Mixer, head_width, scaled_attention


def class_attention(q: Tensor, k: Tensor, *, scale: float) -> Tensor:
    """The row of the attention matrix that belongs to token 0, without computing the matrix: (B, h, n, d) twice -> (B, n - 1).

    The softmax runs over all n columns, then column 0 is dropped: what remains sums to less than 1. Mean of the heads.
    """
    row = (q[:, :, :1] * scale) @ k.transpose(-2, -1)  # (B, h, 1, n)
    return row.softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)


@MIXERS.register("global")
class GlobalMixer(Mixer):
    """Multi-head self-attention over all tokens. num_heads: divides C unless head_dim, the channels of a head, is given, else ArchError.

    score_share: the share of its class attention in the running score of slow-fast blocks, in [0, 1]; not given: the
    network's rule, 1 for plain blocks and 0.5 inside a segment.
    """

    token_sets: ClassVar[bool] = True

    def __init__(self, dim: int, *, resolution: Grid, num_heads: int, head_dim: int | None = None,
                 score_share: float | None = None) -> None:
        super().__init__()
        self.head_dim = head_width("global", dim, resolution=resolution, num_heads=num_heads, head_dim=head_dim)
        if score_share is not None and not (isinstance(score_share, float) and 0 <= score_share <= 1):  # 1 would be another id than 1.0
            raise ArchError(f"mixer global: score_share {score_share!r} is not possible; accepted: a float from 0.0 to 1.0")
        self.dim, self.resolution, self.num_heads, self.score_share = dim, resolution, num_heads, score_share
        self.inner, self.scale = num_heads * self.head_dim, self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * self.inner)
        self.proj = nn.Linear(self.inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        return self.forward_tokens(x.flatten(1, 2))[0].view_as(x)

    def forward_tokens(self, x: Tensor, *, class_row: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, n, C) -> (B, n, C) and, if `class_row`, token 0's attention to tokens 1.., (B, n - 1), mean of the heads."""
        batch, tokens, _ = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind()  # 3 of (B, h, n, d)
        out = scaled_attention(q, k, v, scale=self.scale)
        out = self.proj(out.transpose(1, 2).reshape(batch, tokens, self.inner))  # (B, h, n, d) -> (B, n, I) -> (B, n, C)
        return out, class_attention(q, k, scale=self.scale) if class_row else None

    def tradeoff(self) -> float | None:
        """The share given, if one is."""
        return self.score_share

    def macs(self) -> int:
        """Multiply-adds of one image: projections, and attention of all tokens of the grid to all."""
        tokens = self.resolution[0] * self.resolution[1]
        return tokens * self.inner * (4 * self.dim + 2 * tokens)
