"""What a device answers, held against what is possible. Pure functions; a device that lies raises DeviceFault."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nasvit.devices.timing import ALONE, ALONE_WARM, LEAST_PAIRS, PAIRS, Attempt, attempt_of
from nasvit.devices.transport import DeviceFault

SHORTEST_MS, LONGEST_MS = 1e-4, 1e6
"""No call through a runtime takes under 0.1 us; none is waited for this long."""
LEAST_CLAIMED = 0.05
"""Of the time that went by here the device's own figures must fill at least this share, less what the connection may have taken."""
CONNECTION_S = 10.0
MOST_PEAK_MB = 1e8


def sound_attempt(raw: Any, *, repeats: int, elapsed_s: float, name: str) -> Attempt:
    """The Attempt in a reply that took `elapsed_s` here."""
    try:
        found = attempt_of(raw)
        times = [t for r in found.repeats for t in (*r.candidate_ms, *r.reference_ms, *r.alone_ms)]
        counted = len(found.repeats) == repeats and all(
            LEAST_PAIRS <= len(r.candidate_ms) == len(r.cpu_ms) <= 4 * PAIRS and len(r.candidate_ms) <= len(r.reference_ms) <= 80 * PAIRS
            and len(r.alone_ms) == ALONE - ALONE_WARM
            for r in found.repeats)
        cpu = [c for r in found.repeats for c in r.cpu_ms]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DeviceFault(f"{name}: the measurement cannot be read ({type(error).__name__}: {error})") from None
    if not counted:
        raise DeviceFault(f"{name}: the measurement has other numbers of samples than were asked for")
    _within(times, SHORTEST_MS, LONGEST_MS, what="a latency of {} ms", name=name)
    _within(cpu, 0.0, LONGEST_MS, what="a CPU time of {} ms", name=name)
    usage = found.usage
    _within([usage.cpu_s, usage.switches, usage.waited_s or 0.0], 0.0, 1e9, what="a counter of {}", name=name)
    claimed_s = sum(times) / 1e3
    _within([usage.wall_s], LEAST_CLAIMED * (elapsed_s - CONNECTION_S), 1.05 * elapsed_s + 0.05, what="{} s for a measurement", name=name)
    _within([claimed_s], LEAST_CLAIMED * usage.wall_s, 1.05 * usage.wall_s + 0.05, what="latencies of {} s in all", name=name)
    return found


def sound_rounds(raw: Any, *, elapsed_s: float, name: str) -> list[float]:
    """The rounds of a calibration."""
    values = _numbers(raw, name=name)
    if not 3 <= len(values) <= 10_000:
        raise DeviceFault(f"{name}: the calibration has {len(values)} rounds")
    _within(values, SHORTEST_MS, 1e3 * elapsed_s, what="a latency of {} ms", name=name)
    return values


def sound_peak(raw: Any, *, name: str) -> float:
    """A peak memory in MB."""
    (value,) = _numbers([raw], name=name)
    _within([value], 0.0, MOST_PEAK_MB, what="a peak memory of {} MB", name=name)
    return value


def sound_seconds(raw: Any, *, elapsed_s: float, name: str) -> float:
    """How long something took there that took `elapsed_s` here."""
    (value,) = _numbers([raw], name=name)
    _within([value], 0.0, 1.05 * elapsed_s + 0.05, what="{} s for a first run", name=name)
    return value


def sound_facts(raw: Any, *, name: str) -> dict[str, Any]:
    """Short texts and finite numbers; whatever else a device says of itself is refused."""
    if not isinstance(raw, Mapping) or len(raw) > 50:
        raise DeviceFault(f"{name}: it does not say what it is")
    return {str(key)[:50]: _fact(value, name=name) for key, value in raw.items()}


def _fact(value: Any, *, name: str) -> Any:
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, str):
        return "".join(c for c in value if c.isprintable())[:300]
    if isinstance(value, list) and len(value) <= 8:
        return [_fact(v, name=name) for v in value if not isinstance(v, list)]
    raise DeviceFault(f"{name}: it says something of itself that is neither a number nor a text")


def _numbers(raw: Any, *, name: str) -> list[float]:
    if not isinstance(raw, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in raw):
        raise DeviceFault(f"{name}: the answer holds no numbers")
    return [float(v) for v in raw]


def _within(values: list[float], low: float, high: float, *, what: str, name: str) -> None:
    for value in values:
        if not low <= value <= high:  # NaN is in no range
            raise DeviceFault(f"{name}: it answered {what.format(f'{value:.4g}')}, which is absurd")
