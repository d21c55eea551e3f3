"""The search: `run(experiment, out=...)` writes a run directory. The only package that imports Optuna."""

from nasvit.search.progress import Progress, Snapshot
from nasvit.search.session import run

__all__ = ["Progress", "Snapshot", "run"]
