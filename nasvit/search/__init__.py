"""The search: `run(experiment, out=...)` writes a run directory. The only package that imports Optuna.

What it exports is imported when it is asked for: workers need a part of this package, and the loop and its samplers take half a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasvit.search.progress import Progress, Snapshot
    from nasvit.search.session import run

__all__ = ["Progress", "Snapshot", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.session" if name == "run" else f"{__name__}.progress"), name)
