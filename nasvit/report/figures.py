"""Figures as text: significant digits, units, a dash where there is no value."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

ABSENT = "\u2013"  # a dash
SCALES = {"macs_g": ("G", "M"), "params_m": ("M", "k")}
"""Units of counts: that of the name, and the one for small values."""
_UNITS = {"latency_ms": "ms", "peak_memory_mb": "MB"}


def number(value: Any, *, digits: int = 3, unit: str = "") -> str:
    """`1.20 ms`: significant digits, zeros kept so that columns read evenly; a dash where there is no value."""
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return ABSENT
    if isinstance(value, int):
        text = f"{value:,}"
    elif 10**digits - 0.5 <= abs(value) < 1e12:
        text = f"{value:,.0f}"
    else:
        text = f"{float(value):#.{digits}g}".rstrip(".") if 1e-4 <= abs(value) < 10**digits else f"{value:,.{digits}g}"
    return f"{text} {unit}".rstrip()


def percent(value: Any, *, digits: int = 1) -> str:
    """`97.1 %`; a dash where there is no value."""
    return ABSENT if value is None or value is pd.NA or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def duration(seconds: Any) -> str:
    """`10 min 11 s`."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return ABSENT
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def shown(name: str, value: Any, *, beside: float | None = None) -> str:
    """A value of the objective called `name`, with its unit: `1.20 ms` on whatever device, `0.145 M` of 0.000145 G. beside: the value whose
    unit it shall have."""
    kind = name.partition("@")[0]
    if kind in SCALES:
        large, small = SCALES[kind]
        return number(value * 1e3, unit=small) if (value if beside is None else beside) < 0.1 else number(value, unit=large)
    return percent(value) if name == "accuracy" else number(value, unit=_UNITS.get(kind, ""))
