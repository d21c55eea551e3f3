"""Slow-fast token evolution (Evo-ViT, arXiv 2108.01390) as pure functions: score, select, represent, restore.

A run of neighbouring blocks of a stage with one keep_ratio < 1 is a segment. At its start the patch tokens are ranked by
their score, the class token's attention to them; the first k = int(N * keep_ratio) are *kept*, the others are
*placeholders*. Through the segment the slow path updates the kept tokens and one *representative*, the mean of the
placeholders weighted by their score. Every placeholder receives what the representative received. Nothing is thrown
away and the grid stays in raster order.

Because each placeholder moves by the same amount as the representative, the weighted mean of the moved placeholders is
the moved representative: recomputing it and carrying it along are the same thing. So mixers that need the whole grid
(slide, CATM, shifted windows, FSLA) mix the whole grid, the representative is taken afresh behind them, and the block
saves in its MLP; mixers that run on any set of tokens save in both.

Legend: B images, N patch tokens, k kept, C channels. Indices are raster positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from nasvit.arch import Block
from nasvit.models.mixers.base import rows


@dataclass(frozen=True, slots=True)
class Selection:
    """kept (B, k): raster positions of the kept tokens. restore (B, N): for each raster position its row in the slow
    path's [kept, representative], so k for every placeholder. weights (B, 1, N): the placeholders' shares of the
    representative, 0 for kept tokens; they sum to 1. None: there is no representative, and placeholders pass by unchanged."""

    kept: Tensor
    restore: Tensor
    weights: Tensor | None


def as_divisor(total: Tensor) -> Tensor:
    """A sum of scores, away from 0: a class token that attends to itself alone leaves other tokens none."""
    return total.clamp(min=max(1e-12, torch.finfo(total.dtype).tiny))  # in float16 the former is nothing


def select(score: Tensor, *, keep: int, representative: bool = True) -> Selection:
    """(B, N) scores -> the `keep` highest. The choice itself has no gradient; the representative's weights have."""
    order = score.detach().argsort(dim=1, descending=True)
    restore = order.argsort(dim=1).clamp(max=keep)  # the inverse permutation is each token's rank
    if not representative:
        return Selection(kept=order[:, :keep], restore=restore, weights=None)
    placeholders = score * (restore == keep)
    weights = placeholders / as_divisor(placeholders.sum(dim=1, keepdim=True))
    return Selection(kept=order[:, :keep], restore=restore, weights=weights.unsqueeze(1))


def take(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, C), (B, m) -> (B, m, C): rows of each image."""
    first = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=index.device).unsqueeze(1)  # first row of each image
    return rows(x, index + first)


def slow_path(x: Tensor, selection: Selection) -> Tensor:
    """(B, N, C) -> (B, k + 1, C): the kept tokens, then the representative if there is one."""
    if selection.weights is None:
        return take(x, selection.kept)
    return torch.cat([take(x, selection.kept), selection.weights @ x], dim=1)


def restore(x: Tensor, change: Tensor, selection: Selection) -> Tensor:
    """(B, N, C) tokens and the (B, k + 1, C) change of the slow path -> (B, N, C): each kept token gets its own change,
    each placeholder the representative's."""
    if selection.weights is None:
        change = torch.nn.functional.pad(change, (0, 0, 0, 1))
    return x + take(change, selection.restore)


def update_score(score: Tensor, class_row: Tensor, *, tradeoff: float | Tensor, selection: Selection | None = None) -> Tensor:
    """(1 - tradeoff) * score + tradeoff * class_row. class_row is (B, N), or (B, k) with a selection: then the
    placeholders' scores stay."""
    if selection is None:
        return (1 - tradeoff) * score + tradeoff * class_row
    k = selection.kept.shape[1]
    padded = torch.nn.functional.pad(class_row, (0, 1)).gather(1, selection.restore)
    return torch.where(selection.restore < k, (1 - tradeoff) * score + tradeoff * padded, score)


def segments(blocks: tuple[Block, ...]) -> tuple[tuple[int, int, float], ...]:
    """(start, stop, keep_ratio) of each run of neighbouring blocks with one keep_ratio; 1.0 means plain blocks."""
    runs = []
    for ratio, run in groupby(enumerate(blocks), key=lambda item: item[1].keep_ratio):
        indices = [i for i, _ in run]
        runs.append((indices[0], indices[-1] + 1, ratio))
    return tuple(runs)
