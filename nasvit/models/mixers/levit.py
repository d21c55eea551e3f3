"""LeViT's attention (arXiv 2104.01136) as Evo-ViT (arXiv 2108.01390, released code) has it: every token attends to every token.

Keys and queries are narrow, values wider; each linear map has a batch norm behind it and no bias, and hardswish stands before the
last. LeViT's table of attention biases is left out, as Evo-ViT leaves it out, so any set of tokens will do.

Legend: B images, n tokens, C channels, h heads, d key channels of a head, e = attn_ratio * d value channels of a head.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Grid, MixerSpec, check_mixer
from nasvit.errors import ArchError
from nasvit.models.folding import fold_norm_, scale_output_
from nasvit.models.mixers.base import MIXERS, Mixer
from nasvit.vocabulary import is_int


class LinearNorm(nn.Module):
    """A linear map without bias and a batch norm over its channels: (.., C) -> (.., C'), every token a sample."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out_dim, bias=False)
        self.bn: nn.Module = nn.BatchNorm1d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        return out if isinstance(self.bn, nn.Identity) else self.bn(out.reshape(-1, out.shape[-1])).view(out.shape)

    def deploy_(self) -> None:
        self.bn = fold_norm_(self.linear, self.bn)


def head_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, class_row: bool) -> tuple[Tensor, Tensor | None]:
    """(B, h, m, d), (B, h, n, d), (B, h, n, e) -> (B, m, h * e) and, if `class_row`, query 0's attention to keys 1.., (B, n - 1),
    mean of the heads.

    Written out: torch's fused kernel wants values as wide as keys, and the row of the class token comes for nothing.
    """
    attention = ((q if scale == 1 else q * scale) @ k.transpose(-2, -1)).softmax(dim=-1)  # (B, h, m, n)
    out = (attention @ v).transpose(1, 2).flatten(2)  # (B, h, m, e) -> (B, m, h * e)
    return out, attention[:, :, 0, 1:].mean(dim=1) if class_row else None


@torch.no_grad()
def scale_queries_(layer: LinearNorm, *, num_heads: int, query_dim: int, scale: float) -> None:
    """Fold the batch norm, and multiply the first `query_dim` outputs of each head by `scale`."""
    layer.deploy_()
    factors = torch.ones(num_heads, layer.linear.out_features // num_heads, dtype=torch.float64, device=layer.linear.weight.device)
    factors[:, :query_dim] = scale
    scale_output_(layer.linear, factors.flatten(), torch.zeros_like(factors.flatten()))


KEY_DIM = 16  # of a head, where nothing is said


@MIXERS.register("levit")
class LevitMixer(Mixer):
    """LeViT's attention as Evo-ViT has it: linear layers with batch norm, hardswish before the last, no table of positions.

    num_heads: any, for the inner width is num_heads * key_dim for queries and keys, attn_ratio times that for values.

    learned_tradeoff: the share of this layer's class attention in the running score of slow-fast blocks is the sigmoid of a learned
    scalar that starts at 0.5; else it is 0.5. The scalar learns through the representative token alone.

    The last batch norm starts at a scale of 1, not LeViT's 0: with 0 a compiler may leave out the branches of an untrained network, and
    its latency would be that of another.
    """

    norm: ClassVar[str] = "none"
    token_sets: ClassVar[bool] = True

    def __init__(self, dim: int, *, resolution: Grid, num_heads: int, key_dim: int = KEY_DIM, attn_ratio: int = 2,
                 learned_tradeoff: bool = False) -> None:
        super().__init__()
        for name, value in (("key_dim", key_dim), ("attn_ratio", attn_ratio)):
            if not is_int(value) or value < 1:
                raise ArchError(f"mixer levit: {name} {value!r} is not possible; accepted: a positive integer")
        if not isinstance(learned_tradeoff, bool):
            raise ArchError(f"mixer levit: learned_tradeoff {learned_tradeoff!r} is not possible; accepted: true or false")
        check_mixer(MixerSpec.of("levit", num_heads=num_heads, key_dim=key_dim), embed_dim=dim, grid=resolution, where="mixer")
        self.dim, self.resolution, self.num_heads = dim, resolution, num_heads
        self.key_dim, self.value_dim = key_dim, attn_ratio * key_dim
        self.scale = key_dim**-0.5
        self.qkv = LinearNorm(dim, num_heads * (2 * self.key_dim + self.value_dim))
        self.proj = LinearNorm(num_heads * self.value_dim, dim)
        self.learn_tradeoff = nn.Parameter(torch.zeros(1)) if learned_tradeoff else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        return self.forward_tokens(x.flatten(1, 2))[0].view_as(x)

    def forward_tokens(self, x: Tensor, *, class_row: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, n, C) -> (B, n, C) and, if `class_row`, token 0's attention to tokens 1.., (B, n - 1), mean of the heads."""
        qkv = self.qkv(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, n, 2d + e)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        out, row = head_attention(q, k, v, scale=self.scale, class_row=class_row)
        return self.proj(F.hardswish(out)), row

    def tradeoff(self) -> Tensor | float:
        """Of every layer but the first, slow or plain."""
        return 0.5 if self.learn_tradeoff is None else self.learn_tradeoff.sigmoid()

    def deploy_(self) -> None:
        """Batch norms into the linear maps, the scale into the queries."""
        scale_queries_(self.qkv, num_heads=self.num_heads, query_dim=self.key_dim, scale=self.scale)
        self.scale = 1.0

    def macs(self) -> int:
        """Multiply-adds of one image: projections, attention of all tokens of the grid to all, 2 per element of a batch norm."""
        tokens, both = self.resolution[0] * self.resolution[1], self.key_dim + self.value_dim
        normed = sum(p.linear.out_features for p in (self.qkv, self.proj) if not isinstance(p.bn, nn.Identity))
        return tokens * (self.num_heads * both * (2 * self.dim + tokens) + 2 * normed)
