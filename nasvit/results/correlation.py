"""Does one ranking follow another: Kendall's tau with a bootstrap interval, and rank correlation given what is known already.

Legend: n networks, c known costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.9
"""Of every interval here."""
Z = 1.6448536269514722
"""The normal quantile of that level, both sides."""
DRAWS = 1000
FEWEST = 4
"""With fewer networks there is no tau."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """value: -1 to 1. low, high: its interval at LEVEL. n: networks it was taken over."""

    value: float
    low: float
    high: float
    n: int

    @property
    def nil(self) -> bool:
        """Whether the interval has 0 in it: nothing is shown, in either direction."""
        return not (self.low > 0 or self.high < 0)


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b, in which ties count as neither; NaN where one of both is constant (Kendall 1945)."""
    return _tau(_signs(np.asarray(a, dtype=float)), _signs(np.asarray(b, dtype=float)))


def kendall_interval(a: Sequence[float], b: Sequence[float], *, seed: int, groups: Sequence[object] | None = None) -> Correlation | None:
    """tau-b with the percentile interval of DRAWS bootstrap samples of the networks; None for fewer than FEWEST, or a constant.

    groups: where given, only networks of one group are compared with each other (those of others stand on another footing), and one
    without a fellow does not count. A network drawn twice is left out against itself: its tie is no information. At least as wide as
    Fisher's interval for tau (Fieller, Hartley & Pearson 1957): where all pairs agree, every bootstrap sample does.
    """
    n = len(a)
    first, second = _signs(np.asarray(a, dtype=float)), _signs(np.asarray(b, dtype=float))
    if groups is not None:
        alike = np.array([[one == other for other in groups] for one in groups], dtype=float).reshape(n, n)
        first, second, n = first * alike, second * alike, int((alike.sum(axis=0) > 1).sum())
    value = _tau(first, second) if n >= FEWEST else math.nan
    if not math.isfinite(value):
        return None
    rng, found = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        drawn = rng.integers(len(a), size=len(a))
        pairs = np.ix_(drawn, drawn)
        tau = _tau(first[pairs], second[pairs])
        if math.isfinite(tau):
            found.append(tau)
    low, high = (float(q) for q in np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])) if found else (-1.0, 1.0)
    one_pair = 2 / (n * (n - 1))  # a tau of 1 might be one pair less
    centre, half = math.atanh(float(np.clip(value, one_pair - 1, 1 - one_pair))), Z * math.sqrt(0.437 / max(n - 4, 0.5))
    return Correlation(value=value, low=min(low, value, math.tanh(centre - half)), high=max(high, value, math.tanh(centre + half)), n=n)


def partial_correlation(score: Sequence[float] | Array, target: Sequence[float] | Array,
                        given: Sequence[Sequence[float]] | Array) -> Correlation | None:
    """Spearman's correlation of score and target given the costs (c rows of n), with Fisher's interval.

    All are turned into ranks, the costs' ranks are taken out of both by least squares, what is left is correlated. None where nothing is
    left (the score follows from the costs, or is constant), or for fewer than c + 5 networks. Fisher's standard error for ranks is
    sqrt(1.06 / (n - c - 3)) (Fieller, Hartley & Pearson 1957).
    """
    n, costs = len(score), len(given)
    if n < costs + 5:
        return None
    known = np.column_stack([np.ones(n), *(_ranks(np.asarray(row, dtype=float)) for row in given)])
    left = []
    for values in (score, target):
        rank = _ranks(np.asarray(values, dtype=float))
        residual = rank - known @ np.linalg.lstsq(known, rank, rcond=None)[0]
        if float(np.linalg.norm(residual)) < 1e-6 * max(float(np.linalg.norm(rank - rank.mean())), 1e-12):
            return None
        left.append(residual)
    value = float(np.clip(left[0] @ left[1] / (np.linalg.norm(left[0]) * np.linalg.norm(left[1])), -1.0, 1.0))
    centre, half = math.atanh(float(np.clip(value, -0.999999, 0.999999))), Z * math.sqrt(1.06 / (n - costs - 3))
    return Correlation(value=value, low=math.tanh(centre - half), high=math.tanh(centre + half), n=n)


def _signs(values: Array) -> Array:
    """(n, n): the sign of each difference."""
    return np.asarray(np.sign(values[:, None] - values[None, :]))


def _tau(a: Array, b: Array) -> float:
    """tau-b from (n, n) signs of differences."""
    scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else math.nan


def _ranks(values: Array) -> Array:
    """(n,) ranks from 0, equal values sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[place.reshape(-1)], dtype=float)
