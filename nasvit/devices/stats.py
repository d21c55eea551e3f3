"""What a latency measurement reports, and the arithmetic that makes it from samples. Pure functions, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import numpy as np

from nasvit.devices.timing import Attempt, Repeat, Usage
from nasvit.errors import MeasurementError
from nasvit.registry import unknown

Verdict = Literal["stable", "noisy", "drifting"]

SESSION_SPREAD = 0.02
"""Relative standard deviation of a network's median between fresh processes, which repeats inside one process cannot see
(memory placement, page colours). Check it on a quiet machine with experiments/latency_repeat.py."""
TOLERATED = 0.10
"""An interval whose half width is a larger share of the median than this is noisy."""
SCATTER = 0.80
"""Single calls whose p10 and p90 are further apart than this share of the figure are noisy (0.05 to 0.10 on a quiet machine). Not stricter:
of 26 measured pairs the six that scattered over 0.30 to 0.67 all differed by under 3 %."""
TREND = 0.10
"""A steady rise or fall over the repeats by a larger share than this is drifting."""
WAITED = 0.05
"""A process that is kept from its processor for a larger share of the time than this has a competitor (0.001 on an idle machine,
0.5 with one competitor on its core)."""
SWITCHES_PER_S = 40
"""The same sign where the system does not tell waiting: involuntary context switches (0 to 5 on an idle machine, 120 with a competitor)."""
CALM = 1.10
"""A repeat is calm where the reference, alone right after it, ran at most so much slower than in the machine's better moments of late.
What makes a machine slower than that (a neighbour on the other half of the core, in the shared cache) slows small and large networks
differently, by up to half as much again as the reference."""
SENSITIVITY = 0.25
"""What is not calm widens the interval by this share of its slowness."""
RESAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyStats:
    """Milliseconds of one inference of a whole batch, on the scale of the run's reference network.

    median_ms: the figure to compare: the median that the reference had at calibration, times `typical_ratio`. p10_ms, p90_ms: spread of
    single calls. ci_low_ms, ci_high_ms: where the figure of a later remeasurement is expected in at least 90 % of cases.
    runs: timed calls. repeats: groups of calls.
    verdict: stable, noisy (the interval stayed wide, single calls scatter, or another process had the processor) or drifting (the
    repeats rise or fall steadily); note: the verdict's reason in figures, empty where stable.
    cpu_ms: process CPU time of one call (median), unscaled. threads: as declared. reference_trend: how much slower the reference
    network itself became during the measurement (share; throttling shows here, and cancels in median_ms). waited: share of the time
    that the process was kept from its processor (None: not told). slowness: how much slower
    than at calibration the reference ran alone (share). attempts: how many attempts there were, this figure's own among them.
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
    note: str = ""
    reference_trend: float = 0.0
    reference_now_ms: float = 0.0
    waited: float | None = None
    slowness: float = 0.0
    attempts: int = 1

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
        missing = [f.name for f in fields(cls) if f.name not in raw and f.default is MISSING]
        if missing:
            raise MeasurementError(f"a latency lacks {', '.join(missing)}")
        return cls(**raw)


def quantile(values: Iterable[float], q: float) -> float:
    """The q-quantile, 0 <= q <= 1, by linear interpolation."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def typical_ratio(repeats: Sequence[Repeat]) -> float:
    """Candidate to reference: the geometric mean of the repeats' ratios of medians.

    Medians inside a repeat, because single calls are disturbed; a mean over repeats, because each is taken beside its own reference.
    """
    return math.exp(sum(math.log(r.ratio) for r in repeats) / len(repeats))


def bootstrap_error(repeats: Sequence[Repeat]) -> float:
    """Relative standard error of `typical_ratio`: RESAMPLES resamples of whole repeats, from a fixed seed.

    Whole repeats, because calls that follow each other share the machine's mood. A resample of n values varies less than n - 1 to n.
    """
    n = len(repeats)
    logs = np.log([r.ratio for r in repeats])
    found = logs[np.random.default_rng(0).integers(0, n, size=(RESAMPLES, n))].mean(axis=1)
    return float(found.std() * math.sqrt(n / (n - 1)))


def relative_half_width(repeats: Sequence[Repeat]) -> float:
    """Half width, as a share of the figure, of the interval that a remeasurement falls into in 90 % of cases.

    Two figures of n repeats each differ by sqrt(2) times the error of one; the sessions add theirs.
    """
    from scipy.special import stdtrit  # its import takes a fifth of a second, which a worker that only trains would wait for

    own = bootstrap_error(repeats)
    return float(stdtrit(len(repeats) - 1, 0.95)) * math.sqrt(2 * (own**2 + SESSION_SPREAD**2))


def disturbance(usage: Usage, *, threads: int) -> str | None:
    """What kept the process from its processors while it was timed, in words and figures; None where nothing did."""
    waited = waited_share(usage, threads=threads)
    if waited is not None:
        return f"it waited for a processor in {waited:.0%} of the time" if waited > WAITED else None
    rate = usage.switches / usage.wall_s
    return f"it lost its processor {rate:.0f} times a second" if rate > SWITCHES_PER_S else None


def waited_share(usage: Usage, *, threads: int) -> float | None:
    """Waiting for a processor as a share of the time of all threads; None where the system does not tell."""
    return None if usage.waited_s is None else usage.waited_s / (usage.wall_s * threads)


def overuse(usage: Usage, *, threads: int) -> str | None:
    """Whether more processors worked than threads were declared, in words; None where all is as declared."""
    used = usage.cpu_s / usage.wall_s
    return f"{used:.2f} processors worked where {threads} thread(s) were declared" if used > 1.15 * threads + 0.1 else None


def drift_of(ratios: Sequence[float]) -> float | None:
    """The change over the repeats as a share of their median where it is steady and above TREND, else None."""
    steps = [b - a for a, b in pairwise(ratios)]
    change = (ratios[-1] - ratios[0]) / median(ratios)
    return change if (all(s > 0 for s in steps) or all(s < 0 for s in steps)) and abs(change) > TREND else None


def verdict_of(ratios: Sequence[float], *, half_width: float, scatter: float) -> tuple[Verdict, str]:
    """The verdict on samples that nobody disturbed, and its reason in figures; see TOLERATED, SCATTER and TREND."""
    drift = drift_of(ratios)
    if drift is not None:
        return "drifting", f"the repeats changed steadily by {drift:+.0%}"
    if half_width > TOLERATED:
        return "noisy", f"the interval is +-{half_width:.0%} wide"
    return ("noisy", f"single calls scatter over {scatter:.0%} of the median") if scatter > SCATTER else ("stable", "")


def check_times(attempt: Attempt, *, scale: float = 1.0) -> None:
    """Raises MeasurementError for times that are zero, negative or not finite."""
    times = [t for r in attempt.repeats for t in (*r.candidate_ms, *r.reference_ms, *r.alone_ms)]
    if not times or not all(math.isfinite(t) and t > 0 for t in (*times, attempt.usage.wall_s, scale)):
        raise MeasurementError("the clock gave times that are zero, negative or not finite; measure again on another clock or device")


def slowness_of(repeat: Repeat, *, level_ms: float) -> float:
    """How much slower than `level_ms` the reference ran alone after this repeat, as a share; 0 where it was not timed alone."""
    return median(repeat.alone_ms) / level_ms - 1 if repeat.alone_ms else 0.0


def summed(usages: Sequence[Usage]) -> Usage:
    """The usage of several attempts together."""
    waited = [u.waited_s for u in usages if u.waited_s is not None]
    return Usage(sum(u.wall_s for u in usages), sum(u.cpu_s for u in usages), sum(waited) if len(waited) == len(usages) else None,
                 sum(u.switches for u in usages))


def summarise(repeats: Sequence[Repeat], *, usage: Usage, reference_ms: float, batch_size: int, fingerprint: str, threads: int,
              attempts: int = 1, level_ms: float | None = None) -> LatencyStats:
    """LatencyStats of at least two repeats in the order they came, judged with what happened meanwhile.

    level_ms: the reference's time alone on the calm machine, beside which what is slower widens the interval (default: `reference_ms`).

    Raises MeasurementError for times that are zero, negative or not finite.
    """
    check_times(Attempt(tuple(repeats), usage), scale=reference_ms)
    ratios = [r.ratio for r in repeats]
    middle = typical_ratio(repeats) * reference_ms
    beside = [median(r.reference_ms) for r in repeats]
    calls = [c / b * reference_ms for r, b in zip(repeats, beside, strict=True) for c in r.candidate_ms]
    slowness = median(slowness_of(r, level_ms=reference_ms) for r in repeats)
    excess = median(slowness_of(r, level_ms=level_ms or reference_ms) for r in repeats) + 1 - CALM
    half = math.hypot(relative_half_width(repeats), SENSITIVITY * max(0.0, excess))
    low, high = quantile(calls, 0.1), quantile(calls, 0.9)
    verdict, note = verdict_of(ratios, half_width=half, scatter=(high - low) / middle)
    disturbed = disturbance(usage, threads=threads)
    if disturbed is not None:
        verdict, note = "noisy", disturbed
    return LatencyStats(
        median_ms=middle, p10_ms=low, p90_ms=high,
        ci_low_ms=middle * max(0.0, 1 - half), ci_high_ms=middle * (1 + half), runs=len(calls), repeats=len(repeats),
        verdict=verdict, note=note, reference_ms=reference_ms, batch_size=batch_size, fingerprint=fingerprint,
        cpu_ms=median(c for r in repeats for c in r.cpu_ms), threads=threads, reference_trend=beside[-1] / beside[0] - 1,
        reference_now_ms=median(beside), waited=waited_share(usage, threads=threads), slowness=slowness,
        attempts=attempts)
