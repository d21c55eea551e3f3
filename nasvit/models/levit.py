"""What LeViT (arXiv 2104.01136) has around its attention, as Evo-ViT's released code has it: the MLP, and the attention that halves the
grid.

Legend: B images, H x W the grid before, H' x W' behind, N = H * W, C and C' channels, h heads, d key channels of a head.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Arch, Grid
from nasvit.models.layers import DropPath
from nasvit.models.mixers.levit import KEY_DIM, LinearNorm, head_attention, scale_queries_
from nasvit.models.tokens import as_divisor


class LevitMlp(nn.Module):
    """(.., C) -> (.., C): linear, batch norm, hardswish, linear, batch norm; no biases."""

    def __init__(self, dim: int, *, hidden_features: int) -> None:
        super().__init__()
        self.fc1 = LinearNorm(dim, hidden_features)
        self.fc2 = LinearNorm(hidden_features, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.hardswish(self.fc1(x)))


class LevitDownsample(nn.Module):
    """Attention with every second row and column as queries, then an MLP of twice the width as a residual branch.

    (B, H, W, C) -> (B, H', W', C'), H' = ceil(H / 2). The class token is one more query and key; learned positions are added to all. The
    score goes to the queries' tokens, takes in the attention of the class token, and keeps its sum (Evo-ViT). Values
    have attn_ratio * d channels; there are C / d heads. No skip: the tokens become others here.
    """

    def __init__(self, dim: int, out_dim: int, *, resolution: Grid, key_dim: int, class_token: bool, learned_tradeoff: bool = False,
                 attn_ratio: int = 4, mlp_ratio: int = 2, drop_path: float = 0.0) -> None:
        super().__init__()
        self.num_heads = max(1, dim // key_dim)
        self.key_dim, self.value_dim = key_dim, attn_ratio * key_dim
        self.scale = key_dim**-0.5
        self.pos_embed = nn.Parameter(torch.zeros(1, *resolution, dim))
        self.class_position = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.q = LinearNorm(dim, self.num_heads * self.key_dim)
        self.kv = LinearNorm(dim, self.num_heads * (self.key_dim + self.value_dim))
        self.proj = LinearNorm(self.num_heads * self.value_dim, out_dim)
        self.learn_tradeoff = nn.Parameter(torch.zeros(1)) if learned_tradeoff and class_token else None
        self.mlp = LevitMlp(out_dim, hidden_features=mlp_ratio * out_dim)
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path else nn.Identity()

    @classmethod
    def of(cls, arch: Arch, stage: int, *, class_token: bool, drop_path: float) -> LevitDownsample:
        """The beginning of this stage of an Arch. Keys are as wide as in the last block before, where the trade-off is learned or not."""
        before = arch.stages[stage - 1]
        params = before.blocks[-1].mixers[-1].kwargs
        return cls(before.embed_dim, arch.stages[stage].embed_dim, resolution=arch.grid(stage - 1),
                   key_dim=int(params.get("key_dim", KEY_DIM)), class_token=class_token,
                   learned_tradeoff=params.get("learned_tradeoff") is True, drop_path=drop_path)

    def forward(self, x: Tensor, class_token: Tensor | None, score: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, H, W, C), (B, 1, C), (B, N) -> (B, H', W', C'), (B, 1, C'), (B, H' * W')."""
        x, class_token, score = self.attend(x, class_token, score)
        if class_token is None:
            return x + self.drop_path(self.mlp(x)), None, None
        joint = torch.cat([class_token, x.flatten(1, 2)], dim=1)
        joint = joint + self.drop_path(self.mlp(joint))
        return joint[:, 1:].view(x.shape), joint[:, :1], score

    def attend(self, x: Tensor, class_token: Tensor | None, score: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Without the MLP."""
        height, width = x.shape[1:3]
        x = x + self.pos_embed
        sources, queries = x.flatten(1, 2), x[:, ::2, ::2].flatten(1, 2)
        if class_token is not None:
            class_token = class_token if self.class_position is None else class_token + self.class_position
            sources, queries = torch.cat([class_token, sources], dim=1), torch.cat([class_token, queries], dim=1)
        q = self.q(queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, m, d)
        kv = self.kv(sources).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, n, d + e)
        k, v = kv.split([self.key_dim, self.value_dim], dim=-1)
        out, row = head_attention(q, k, v, scale=self.scale, class_row=class_token is not None)
        out = self.proj(F.hardswish(out))
        after = (-(-height // 2), -(-width // 2))
        if row is None:
            return out.unflatten(1, after), None, None
        if score is None:
            return out[:, 1:].unflatten(1, after), out[:, :1], halved(row, (height, width))
        total = score.sum(dim=1, keepdim=True)
        share = self.tradeoff()
        score = (1 - share) * halved(score, (height, width)) + share * halved(row, (height, width))
        return out[:, 1:].unflatten(1, after), out[:, :1], score * (total / as_divisor(score.sum(dim=1, keepdim=True)))

    def tradeoff(self) -> Tensor | float:
        """The share of this attention in the score."""
        return 0.5 if self.learn_tradeoff is None else self.learn_tradeoff.sigmoid()

    def deploy_(self) -> None:
        """Batch norms into the linear maps, the scale into the queries; stochastic depth goes."""
        scale_queries_(self.q, num_heads=self.num_heads, query_dim=self.key_dim, scale=self.scale)
        self.scale, self.drop_path = 1.0, nn.Identity()


def halved(score: Tensor, resolution: Grid) -> Tensor:
    """(B, H * W) -> (B, H' * W'): every second row and column."""
    return cast(Tensor, score.unflatten(1, resolution))[:, ::2, ::2].flatten(1)
