"""What a latency measurement reports, and the arithmetic that makes it from samples. Pure functions, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from statistics import median, stdev
from typing import Any, Literal

from scipy.special import stdtrit

from nasvit.errors import MeasurementError
from nasvit.registry import unknown

Verdict = Literal["stable", "noisy", "drifting"]

SESSION_SPREAD = 0.02
"""Relative standard deviation of a network's median between fresh processes, which repeats inside one process cannot see
(memory placement, page colours). Check it on a quiet machine with experiments/latency_repeat.py."""
TOLERATED = 0.10
"""An interval whose half width is a larger share of the median than this is noisy."""
SCATTER = 0.30
"""Single calls whose p10 and p90 are further apart than this share of the median are noisy: neighbours were at work, and
the next session may meet other ones (0.05 to 0.10 on a quiet machine)."""
TREND = 0.10
"""A steady rise or fall over the repeats by a larger share than this is drifting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyStats:
    """Milliseconds of one inference of a whole batch, on the scale of the run's reference network.

    median_ms: the figure to compare. p10_ms, p90_ms: spread of single calls. ci_low_ms, ci_high_ms: where the median of
    a later remeasurement is expected in at least 90 % of cases. runs: timed calls. repeats: groups of calls.
    verdict: stable, noisy (the interval stayed wide, or single calls scatter) or drifting (the repeats rise or fall steadily).
    cpu_ms: process CPU time of one call (median), unscaled. threads: torch's intra-op threads.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    ci_low_ms: float
    ci_high_ms: float
    runs: int
    repeats: int
    verdict: Verdict
    reference_ms: float
    batch_size: int
    fingerprint: str
    cpu_ms: float
    threads: int

    @property
    def half_width(self) -> float:
        """Half the interval as a share of the median."""
        return (self.ci_high_ms - self.ci_low_ms) / 2 / self.median_ms

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LatencyStats:
        """Raises MeasurementError for unknown or missing fields."""
        names = [f.name for f in fields(cls)]
        for key in raw:
            if key not in names:
                raise MeasurementError(unknown("latency field", key, names))
        missing = [n for n in names if n not in raw]
        if missing:
            raise MeasurementError(f"a latency lacks {', '.join(missing)}")
        return cls(**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """One group of interleaved calls: milliseconds of each candidate call, of the reference beside it, CPU ms of the candidate."""

    candidate_ms: tuple[float, ...]
    reference_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Candidate to reference, of medians."""
        return median(self.candidate_ms) / median(self.reference_ms)


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, 0 <= q <= 1, by linear interpolation."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def relative_half_width(ratios: Sequence[float]) -> float:
    """Half width, as a share of the median, of the interval that a remeasurement's median falls into in 90 % of cases.

    Two medians of n repeats each differ by sqrt(2) times the error of one, 1.25 s / sqrt(n); the sessions add theirs.
    """
    n = len(ratios)
    own = 1.2533 * stdev(ratios) / median(ratios) / math.sqrt(n)
    return float(stdtrit(n - 1, 0.95)) * math.sqrt(2 * (own**2 + SESSION_SPREAD**2))


def verdict_of(ratios: Sequence[float], *, half_width: float, scatter: float) -> Verdict:
    """stable, noisy or drifting; see TOLERATED, SCATTER and TREND."""
    steps = [b - a for a, b in pairwise(ratios)]
    steady = all(s > 0 for s in steps) or all(s < 0 for s in steps)
    if steady and abs(ratios[-1] - ratios[0]) > TREND * median(ratios):
        return "drifting"
    return "noisy" if half_width > TOLERATED or scatter > SCATTER else "stable"


def summarise(repeats: Sequence[Repeat], *, reference_ms: float, batch_size: int, fingerprint: str, threads: int) -> LatencyStats:
    """LatencyStats of at least two repeats; raises MeasurementError for times that are zero, negative or not finite."""
    times = [t for r in repeats for t in (*r.candidate_ms, *r.reference_ms)]
    if not times or not all(math.isfinite(t) and t > 0 for t in (*times, reference_ms)):
        raise MeasurementError("the clock gave times that are zero, negative or not finite; measure again on another clock or device")
    ratios = [r.ratio for r in repeats]
    middle = median(ratios) * reference_ms
    calls = [c / median(r.reference_ms) * reference_ms for r in repeats for c in r.candidate_ms]
    half = relative_half_width(ratios)
    low, high = quantile(calls, 0.1), quantile(calls, 0.9)
    return LatencyStats(
        median_ms=middle, p10_ms=low, p90_ms=high,
        ci_low_ms=middle * max(0.0, 1 - half), ci_high_ms=middle * (1 + half), runs=len(calls), repeats=len(repeats),
        verdict=verdict_of(ratios, half_width=half, scatter=(high - low) / middle), reference_ms=reference_ms, batch_size=batch_size,
        fingerprint=fingerprint, cpu_ms=median(c for r in repeats for c in r.cpu_ms), threads=threads)
