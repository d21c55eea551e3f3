"""What is optimised: names, directions and units. A unit stands in the name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nasvit.errors import ConfigError
from nasvit.registry import unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """name as in records and columns; direction as Optuna spells it; label for axes."""

    name: str
    direction: Literal["maximize", "minimize"]
    label: str


OBJECTIVES: dict[str, Objective] = {o.name: o for o in (
    Objective(name="accuracy", direction="maximize", label="validation accuracy"),
    Objective(name="latency_ms", direction="minimize", label="latency (ms)"),
    Objective(name="macs_g", direction="minimize", label="MACs (G)"),
    Objective(name="params_m", direction="minimize", label="parameters (M)"),
    Objective(name="peak_memory_mb", direction="minimize", label="peak memory (MB)"),
)}


def objective(name: str) -> Objective:
    """The objective called `name`; raises ConfigError naming the accepted ones."""
    if name not in OBJECTIVES:
        raise ConfigError(unknown("objective", name, sorted(OBJECTIVES)))
    return OBJECTIVES[name]
