"""nasvit: search and prune vision transformers for a latency measured on your device.

Importing the package loads neither torch nor Optuna.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nasvit.opened import OpenRun

__version__ = "0.1.0"


def load(run: Path | str) -> OpenRun:
    """A run directory for a notebook: `.front`, `.best(max_latency_ms=8)`, `.arch("knee")`, `.model("knee")`, `.compare(other)`.

    Raises ConfigError where it is missing, RunError where it is damaged.
    """
    from nasvit.opened import OpenRun

    return OpenRun(run)
