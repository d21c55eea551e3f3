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

from nasvit.results.correlation import partial_correlation

Array = NDArray[np.float64]

SURE = 2.0
"""A score counts where its partial correlation is this many times what chance gives."""
LEAST = 12
"""With fewer trials no score counts."""


def telling(scores: Array, quality: Array, costs: Array) -> list[int]:
    """Indices of the scores (n, k) that say something of the quality (n,) beyond the costs (n, c)."""
    free = len(scores) - costs.shape[1] - 2
    if len(scores) < LEAST or free < 1:
        return []
    found = [partial_correlation(column, quality, costs.T) for column in scores.T]
    return [j for j, partial in enumerate(found) if partial is not None and abs(partial.value) * np.sqrt(free) > SURE]


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
