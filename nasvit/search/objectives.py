"""Limits and what a sampler is told: pure functions over names and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nasvit.results.objectives import objective
from nasvit.results.record import TrialRecord

ORDER = ("params_m", "macs_g", "peak_memory_mb", "latency_ms")
"""The order in which limits are checked, cheap before dear."""


def judged(values: Mapping[str, float], latency: Mapping[str, Any] | None, others: Mapping[str, Any] | None = None) -> dict[str, float]:
    """The values that limits are held against: latency by the upper end of its interval, so that what is accepted is under
    the limit when it is measured again, too. others: latencies on further devices, by the device's name."""
    upper = {f"latency_ms@{name}": float(stats["ci_high_ms"]) for name, stats in (others or {}).items()}
    return {**values, **({"latency_ms": float(latency["ci_high_ms"])} if latency is not None else {}), **upper}


def known_of(record: TrialRecord) -> dict[str, float]:
    """`judged` of a record; of latencies that were only predicted, the lower end of the interval."""
    predicted = {name: float(one["low_ms"]) for name, one in record.details.get("predicted", {}).items()}
    return {**predicted, **judged(record.objectives, record.latency, record.details.get("latencies"))}


def passed(values: Mapping[str, float], limits: Mapping[str, float]) -> str | None:
    """The reason of a rejection, naming the first limit that a known value passes, or None."""
    for name in sorted(limits, key=lambda n: (ORDER.index(n.partition("@")[0]), n)):
        if name in values and values[name] > limits[name]:
            what = f"{name}, by the upper end of its interval," if name.startswith("latency_ms") else name
            return f"{what} {values[name]:.4g} is over the limit {limits[name]:.4g}"
    return None


def excess(values: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """Largest relative excess over the limits of known values: above 0 is infeasible. One number whatever was known, because
    some samplers need the same constraints from every trial."""
    known = [values[name] / limits[name] - 1.0 for name in limits if name in values]
    return max(known, default=0.0)


def told(record: TrialRecord, names: Sequence[str], *, limits: Mapping[str, float], seen: Iterable[TrialRecord]) -> list[float]:
    """What a sampler is told of a trial, one number for each name. What a rejected trial does not have is filled
    pessimistically: accuracy 0, else the worst known value or the limit, whichever is worse."""
    values = []
    others = None
    for name in names:
        if name in record.objectives:
            values.append(float(record.objectives[name]))
        elif objective(name).direction == "maximize":
            values.append(0.0)
        else:
            others = list(seen) if others is None else others
            values.append(max([limits.get(name, 0.0), *(r.objectives[name] for r in others if name in r.objectives)]))
    return values
