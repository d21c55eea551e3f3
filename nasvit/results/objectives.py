"""What is optimised: names, directions and units. A unit stands in the name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from nasvit.errors import ConfigError
from nasvit.registry import unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """name as in records and columns; direction as Optuna spells it; label for axes. low, high: no true value lies outside of them."""

    name: str
    direction: Literal["maximize", "minimize"]
    label: str
    low: float = 0.0
    high: float = 1e9


OBJECTIVES: dict[str, Objective] = {o.name: o for o in (
    Objective(name="accuracy", direction="maximize", label="validation accuracy", high=1.0),
    Objective(name="latency_ms", direction="minimize", label="latency (ms)"),
    Objective(name="macs_g", direction="minimize", label="MACs (G)"),
    Objective(name="params_m", direction="minimize", label="parameters (M)"),
    Objective(name="peak_memory_mb", direction="minimize", label="peak memory (MB)"),
)}


def objective(name: str) -> Objective:
    """The objective called `name`; `latency_ms@NAME` is the latency on another device of the search.

    Raises ConfigError naming the accepted ones.
    """
    kind, at, device = name.partition("@")
    if at and kind == "latency_ms" and device:
        return replace(OBJECTIVES[kind], name=name, label=f"latency on {device} (ms)")
    if name not in OBJECTIVES:
        raise ConfigError(unknown("objective", name, sorted(OBJECTIVES)))
    return OBJECTIVES[name]


def fault(name: str, value: object) -> str | None:
    """What is wrong with a value as this metric's, in words; None where nothing is. A metric that is no objective must be finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return f"{name} must be a finite number, not {value!r}"
    known = OBJECTIVES.get(name.partition("@")[0])
    if known is not None and not known.low <= value <= known.high:
        return f"{name} must lie between {known.low:g} and {known.high:g}, not {value!r}"
    return None
