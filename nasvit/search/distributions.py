"""Values of Optuna's distributions: which there are, where one lies in its range, and which are next to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


def values_of(distribution: BaseDistribution, *, most: int = 16) -> tuple[Any, ...]:
    """The values of a distribution, in order; a continuous or long range is cut to `most` evenly spaced ones."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    if isinstance(distribution, IntDistribution):
        values = range(distribution.low, distribution.high + 1, distribution.step)
        stride = -(-len(values) // most)
        return tuple(values[::stride])
    assert isinstance(distribution, FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if step is not None and round((high - low) / step) < most:
        return tuple(low + i * step for i in range(round((high - low) / step) + 1))
    if distribution.log:
        return tuple(low * (high / low) ** (i / (most - 1)) for i in range(most))
    return tuple(low + (high - low) * i / (most - 1) for i in range(most))


def widened(known: BaseDistribution, now: BaseDistribution) -> BaseDistribution:
    """The range that holds the values of both, where both are ranges of one kind; else the known one."""
    if known == now:
        return known
    if isinstance(known, IntDistribution) and isinstance(now, IntDistribution):
        step = math.gcd(known.step, now.step, now.low - known.low)
        return IntDistribution(min(known.low, now.low), max(known.high, now.high), log=known.log, step=step)
    if isinstance(known, FloatDistribution) and isinstance(now, FloatDistribution):
        apart = None if known.step is None or known.step != now.step else (now.low - known.low) / known.step
        same = apart is not None and math.isclose(apart, round(apart), abs_tol=1e-9)  # steps that do not meet: any value
        return FloatDistribution(min(known.low, now.low), max(known.high, now.high), log=known.log, step=known.step if same else None)
    return known


def thinned(distribution: BaseDistribution) -> bool:
    """Whether `values_of` leaves some values out."""
    if isinstance(distribution, CategoricalDistribution):
        return False
    if isinstance(distribution, IntDistribution):
        return len(range(distribution.low, distribution.high + 1, distribution.step)) > len(values_of(distribution))
    assert isinstance(distribution, FloatDistribution)
    return distribution.step is None or round((distribution.high - distribution.low) / distribution.step) + 1 > len(values_of(distribution))


def share_of(distribution: BaseDistribution, value: Any) -> float:
    """Where a number lies in its range, from 0 to 1; in a logarithmic range by its logarithm."""
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, here = (math.log(v) if distribution.log else float(v) for v in (distribution.low, distribution.high, value))
    return (here - low) / (high - low) if high > low else 0.0


def at_share(distribution: BaseDistribution, share: float) -> Any:
    """The value of a range nearest to this share of it."""
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = (math.log(v) if distribution.log else float(v) for v in (distribution.low, distribution.high))
    value = low + (high - low) * share
    value = min(max(math.exp(value) if distribution.log else value, distribution.low), distribution.high)
    if distribution.step is not None:
        value = distribution.low + distribution.step * round((value - distribution.low) / distribution.step)
        value = value if value <= distribution.high else value - distribution.step
    return int(value) if isinstance(distribution, IntDistribution) else value


def ordered(values: Sequence[Any]) -> bool:
    """Whether rank means something: ascending numbers, not names and not booleans."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return numbers and all(a < b for a, b in pairwise(values))


def next_to(value: Any, values: Sequence[Any], *, steps: bool) -> Sequence[Any]:
    """The values one step away, or all others."""
    if not steps or value not in values:
        return [v for v in values if v != value]
    at = values.index(value)
    return [*values[max(0, at - 1) : at], *values[at + 1 : at + 2]]


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether it is one of the distribution's values."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:  # a category that it does not have
        return False
