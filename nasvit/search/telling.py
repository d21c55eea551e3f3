"""Zero-cost scores as features with learned signs: which of them say something beyond cost, and their columns.

On one family of networks a score that follows trained accuracy says nothing, or the reverse, on the next, and all of them follow cost:
so a score counts only while it goes with the accuracies seen so far at equal cost, in either direction.

Legend: n trials, k scores, c cost columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SURE = 2.0
"""A score counts where its partial correlation is this many times what chance gives."""
LEAST = 12
"""With fewer trials no score counts."""


def partial_correlation(score: Array, quality: Array, costs: Array) -> float:
    """Of ranks: how the score (n,) goes with the quality (n,) when what the costs (n, c) explain of both is taken away. 0 where nothing
    is left of one of them."""
    grid = np.column_stack([np.ones(len(score)), *(_ranked(costs[:, j]) for j in range(costs.shape[1]))])
    left = []
    for values in (score, quality):
        ranked = _ranked(values)
        rest = ranked - grid @ np.linalg.lstsq(grid, ranked, rcond=None)[0]
        left.append(rest)
    size = np.sqrt((left[0] ** 2).sum() * (left[1] ** 2).sum())
    return float(left[0] @ left[1] / size) if size > 1e-9 * len(score) else 0.0


def telling(scores: Array, quality: Array, costs: Array) -> list[int]:
    """Indices of the scores (n, k) that say something of the quality (n,) beyond the costs (n, c)."""
    free = len(scores) - costs.shape[1] - 2
    if len(scores) < LEAST or free < 1:
        return []
    return [j for j in range(scores.shape[1]) if abs(partial_correlation(scores[:, j], quality, costs)) * np.sqrt(free) > SURE]


@dataclass(frozen=True, slots=True)
class Columns:
    """Features from scores: signed logarithms of about unit range. unit, centre, spread: (k,)."""

    names: tuple[str, ...]
    unit: Array
    centre: Array
    spread: Array

    @classmethod
    def of(cls, scores: Sequence[Mapping[str, float]]) -> Columns:
        """Scaled to the trials seen; names that any of them lacks are left out."""
        names = tuple(sorted(set.intersection(*(set(row) for row in scores)))) if scores else ()
        raw = _table(scores, names)
        unit = np.maximum(np.median(np.abs(raw), axis=0), 1e-12) if len(raw) else np.ones(len(names))
        logs = np.sign(raw) * np.log1p(np.abs(raw) / unit)
        return cls(names=names, unit=unit, centre=logs.mean(axis=0), spread=np.maximum(4 * logs.std(axis=0), 1e-6))

    def __call__(self, scores: Sequence[Mapping[str, float]]) -> Array:
        """(n, k)."""
        raw = _table(scores, self.names)
        return np.asarray((np.sign(raw) * np.log1p(np.abs(raw) / self.unit) - self.centre) / self.spread)


def _table(scores: Sequence[Mapping[str, float]], names: Sequence[str]) -> Array:
    """(n, k), a score that is not finite as 0: it says nothing."""
    return np.nan_to_num(np.array([[row[name] for name in names] for row in scores], dtype=float).reshape(len(scores), len(names)),
                         nan=0.0, posinf=0.0, neginf=0.0)


def _ranked(values: Array) -> Array:
    """(n,) ranks, ties at their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[place.reshape(-1)], dtype=float)
