"""From a run directory to frames and pages: `load(run_dir).front`, `render(run_dir)`. Needs neither torch nor optuna."""

from nasvit.report.render import render
from nasvit.report.tables import Run, load

__all__ = ["Run", "load", "render"]
