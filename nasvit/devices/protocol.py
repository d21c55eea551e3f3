"""From attempts to one figure: measure, judge, measure again up to a bound, then fail loudly. No clock of its own but the pauses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from nasvit.devices.stats import CALM, LatencyStats, check_times, disturbance, drift_of, overuse, slowness_of, summarise, summed
from nasvit.devices.timing import PAIRS, REPEATS, Attempt, Repeat, Usage
from nasvit.errors import MeasurementError, UnstableError

ATTEMPTS, ATTEMPTS_KEPT = 8, 2
"""Most attempts of a measurement, and of one whose noise is accepted."""
MOST_S = 8.0
"""No further attempt after so many seconds of timing: slow networks, which a neighbour disturbs least, have fewer attempts."""
PAUSES_S = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
"""After each disturbed attempt: what disturbs a machine for a moment is over by then. So many in a row end the measurement."""
WAITS_S = (5.0, 20.0)
"""Before what must have a figure is measured again."""
NEEDED, NEEDED_FEW, NEEDED_LONG, FEW_S = 10, 25, 5, 3.0
"""Calm repeats of a figure; and of one whose repeats have under half of PAIRS: as many as FEW_S holds, from NEEDED_LONG to NEEDED_FEW.
experiments/latency_truth.py shows how figures repeat."""


def settle(attempt: Callable[[int], Attempt], *, scale: float, threads: int, batch_size: int, fingerprint: str, noise: str = "fail",
           level_ms: float | None = None, seen: list[float] | None = None, sleep: Callable[[float], None] = time.sleep) -> LatencyStats:
    """One stable figure from up to eight attempts (two where noise is kept); `attempt` times so many repeats.

    Attempts during which another process had the processor, or whose repeats drift, are thrown away. Of the others the calm repeats
    count, and add up until there are enough and their interval is narrow; where a machine never becomes calm, its calmest repeats
    count and widen the interval. level_ms: the reference's time alone on the calm machine (default: `scale`); seen: gets the times
    alone of all repeats. Where nothing was stable: UnstableError with the figures, or with noise="keep" the best with its verdict.
    Raises MeasurementError for absurd times, and where more processors work than threads were declared.
    """
    kept: list[Repeat] = []
    usages: list[Usage] = []
    bad: list[LatencyStats] = []
    excess: str | None = None
    number, spent_s, needed = 0, 0.0, NEEDED

    def figure(repeats: Sequence[Repeat], usage: Usage) -> LatencyStats:
        return summarise(repeats, usage=usage, reference_ms=scale, batch_size=batch_size, fingerprint=fingerprint, threads=threads,
                         attempts=number, level_ms=level_ms)

    most = ATTEMPTS if noise == "fail" else ATTEMPTS_KEPT
    while number < most and len(bad) <= len(PAUSES_S) and spent_s < MOST_S:
        number += 1
        one = attempt(REPEATS)
        check_times(one)
        spent_s += one.usage.wall_s
        if seen is not None:
            seen.extend(median(r.alone_ms) for r in one.repeats if r.alone_ms)
        excess = overuse(one.usage, threads=threads)
        if excess is None and disturbance(one.usage, threads=threads) is None and drift_of([r.ratio for r in one.repeats]) is None:
            kept.extend(one.repeats)
            usages.append(one.usage)
            calm = [r for r in kept if slowness_of(r, level_ms=level_ms or scale) <= CALM - 1]
            needed = _needed(one)
            if len(calm) >= needed:
                stats = figure(calm, summed(usages))
                if stats.verdict == "stable":
                    return stats
            continue
        bad.append(figure(one.repeats, one.usage))
        if len(bad) <= len(PAUSES_S) and number < most:
            sleep(PAUSES_S[len(bad) - 1])
    if excess is not None:
        raise MeasurementError(f"{excess}; set the runtime's threads as declared, or declare them (?threads=N), and end other work "
                               "in this process")
    if kept:
        order = sorted(range(len(kept)), key=lambda i: slowness_of(kept[i], level_ms=scale))
        calmest = sorted(order[: max(needed, len(kept) // 2)])
        best = figure([kept[i] for i in calmest], summed(usages))
        if len(kept) < NEEDED and len(bad) > 1:  # too few moments were good to be sure of them
            best = replace(best, verdict="noisy", note=f"{len(bad)} of {number} attempts were disturbed, the last: {bad[-1].note}")
    else:
        best = min(bad, key=lambda stats: stats.half_width)
    if best.verdict == "stable" or noise == "keep":
        return replace(best, attempts=number)
    unstable = UnstableError(
        f"no stable latency in {number} attempts: {best.verdict}, {best.note}; the best said {best.median_ms:.4g} ms "
        f"({best.ci_low_ms:.4g} to {best.ci_high_ms:.4g}), with the reference network {best.slowness:+.0%} slower than at calibration. "
        "End what else runs on the device, or accept such figures, each with its verdict, by ?noise=keep in the device")
    unstable.seconds = spent_s
    raise unstable


def patiently(measure: Callable[[], LatencyStats], *, sleep: Callable[[float], None] = time.sleep) -> LatencyStats:
    """A figure without which nothing can go on: where it stays unstable it is measured again after pauses, twice.

    A neighbour's work on the machine lasts for seconds, and an hour's search should not be without its result for it.
    """
    for pause in WAITS_S:
        try:
            return measure()
        except UnstableError:
            sleep(pause)
    return measure()


def _needed(attempt: Attempt) -> int:
    """How many calm repeats like those of this attempt make a figure."""
    if len(attempt.repeats[0].candidate_ms) >= PAIRS / 2:
        return NEEDED
    return min(NEEDED_FEW, max(NEEDED_LONG, round(FEW_S * len(attempt.repeats) / attempt.usage.wall_s)))
