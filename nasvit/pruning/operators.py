"""Token operators as pure functions: merge (ToMe, arXiv 2210.09461) and top-k with fusion (EViT, arXiv 2202.07800).

Slow-fast tokens are those of `nasvit.models.tokens`. All counts are Python integers and all moves are gathers and products, so the
functions export with static shapes.

Legend: B images, T tokens (class and register tokens are not among them), C channels, r tokens merged away.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nasvit.models.tokens import take


def merge(x: Tensor, size: Tensor | None, metric: Tensor, *, keep: int, traced: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """Merge the r = T - keep most similar pairs (bipartite soft matching).

    x (B, T, C); size (B, T, 1), how many image tokens each stands for, None: one each; metric (B, T, d), compared by its cosine.
    Tokens at even places each look for their nearest token at an odd place, and the r nearest pairs become one, the mean weighted
    by size. Returns the tokens (B, keep, C), their sizes (B, keep, 1), and if `traced` for each old token its new place (B, T).
    """
    tokens, count = x.shape[1], x.shape[1] - keep
    odd = tokens // 2
    metric = F.normalize(metric, dim=-1)
    nearest, partner = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(dim=-1)  # (B, T - odd) each
    order = nearest.argsort(dim=-1, descending=True)
    leaving, staying = order[:, :count], order[:, count:]
    to = partner.gather(1, leaving)  # (B, r)
    into = (to.unsqueeze(1) == torch.arange(odd, device=x.device).unsqueeze(1)).to(x.dtype)  # (B, odd, r), one 1 in each column
    if size is None:
        size = x.new_ones(x.shape[0], tokens, 1)
    even_x, odd_x, even_size, odd_size = x[:, ::2], x[:, 1::2], size[:, ::2], size[:, 1::2]
    moved, weight = take(even_x.contiguous(), leaving), even_size.gather(1, leaving.unsqueeze(2))
    total = odd_size + into @ weight
    merged = (odd_x * odd_size + into @ (moved * weight)) / total
    kept = tokens - odd - count
    out = torch.cat([take(even_x.contiguous(), staying), merged], dim=1)
    sizes = torch.cat([even_size.gather(1, staying.unsqueeze(2)), total], dim=1)
    if not traced:
        return out, sizes, None
    rank = order.argsort(dim=-1)  # of each even token
    places = torch.where(rank < count, kept + partner, rank - count)
    return out, sizes, _interleave(places, kept=kept, odd=odd)


def _interleave(places: Tensor, *, kept: int, odd: int) -> Tensor:
    """New places of the even tokens (B, odd + 1) and of the odd ones, kept + 0.., in their old order (B, 2 * odd + 1)."""
    others = (torch.arange(odd, device=places.device) + kept).expand(places.shape[0], -1)
    return torch.cat([torch.stack([places[:, :odd], others], dim=2).flatten(1), places[:, odd:]], dim=1)


def fuse(x: Tensor, score: Tensor, *, keep: int) -> tuple[Tensor, Tensor]:
    """Keep the `keep` tokens with the highest score (B, T), and put the mean of the others, weighted by score, behind them.

    Returns (B, keep + 1, C) and the old places of the kept tokens (B, keep). The weights sum to 1, so that the fused token has the
    size of a token without any training (EViT's sum to the others' share of the attention).
    """
    order = score.detach().argsort(dim=1, descending=True)
    kept, others = order[:, :keep], order[:, keep:]
    weights = score.gather(1, others)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return torch.cat([take(x, kept), weights.unsqueeze(1) @ take(x, others)], dim=1), kept
