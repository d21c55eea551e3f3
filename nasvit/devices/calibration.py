"""The scale of a device: the reference network's own milliseconds, kept for each fingerprint so that runs on one machine share it.

Two calibrations of one machine differ by several percent, because a machine is never twice in the same state. Latencies of two runs
can be compared only where they share the scale; so the first good one is kept in the user's cache and used until it is plainly wrong.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from nasvit.errors import MeasurementError
from nasvit.whole_file import whole

FIRST_S, CHECK_S = 4.0, 0.6
"""Seconds of a first calibration, and of the look whether a kept one still holds."""
SLOWER, FASTER = 0.30, 0.10
"""A kept scale is thrown away where the machine is now so much slower, or so much faster: disturbance only ever adds time, so that a
machine that is plainly faster now was not calm when the scale was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """reference_ms: milliseconds of the reference network. source: new, kept, or replaced (then `before` was the kept one).
    now_ms: what was just measured. taken: when the scale was made (seconds since 1970)."""

    reference_ms: float
    source: str
    now_ms: float
    taken: float
    before: float | None = None


def cache_folder() -> Path:
    """$NASVIT_CACHE, else nasvit in the user's cache folder."""
    given = os.environ.get("NASVIT_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nasvit"


def scale_of(rounds: Callable[[float], list[float]], *, fingerprint: str, place: str) -> Scale:
    """The kept scale of this device where it still holds, else a new one, which is kept from then on.

    rounds: times the reference for so many seconds, medians in ms. place: what tells apart two machines with one fingerprint.
    Raises MeasurementError where the clock gives nothing above 0.
    """
    path = cache_folder() / "calibration" / f"{fingerprint}.json"
    key = f"{platform.node()} {place}"
    kept = _read(path)
    old = kept.get(key)
    if old is not None:
        now = lower_quartile(rounds(CHECK_S))
        if -FASTER <= now / old["reference_ms"] - 1 <= SLOWER:
            return Scale(reference_ms=old["reference_ms"], source="kept", now_ms=now, taken=old["taken"])
    fresh = lower_quartile(rounds(FIRST_S))
    taken = time.time()
    _write(path, {**kept, key: {"reference_ms": fresh, "taken": taken}})
    return Scale(reference_ms=fresh, source="new" if old is None else "replaced", now_ms=fresh, taken=taken,
                 before=None if old is None else old["reference_ms"])


def lower_quartile(rounds_ms: list[float]) -> float:
    """The quartile of rounds that most of the disturbance, which only ever adds time, does not reach."""
    value = quantiles(rounds_ms, n=4)[0]
    if not value > 0:
        raise MeasurementError("the clock gave times that are zero, negative or not finite; calibrate again on another clock or device")
    return value


def _read(path: Path) -> dict[str, Any]:
    """The file's entries; a damaged file is none: the scale is then made anew."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): {"reference_ms": float(one["reference_ms"]), "taken": float(one["taken"])} for key, one in data.items()
                if 0 < float(one["reference_ms"]) < 1e6}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write(path: Path, entries: dict[str, Any]) -> None:
    """Keep the entries where the cache can be written; where it cannot, every run has a scale of its own, and says so ("new")."""
    with suppress(OSError), whole(path) as temporary:
        temporary.write_text(json.dumps(entries, indent=1), encoding="utf-8")
