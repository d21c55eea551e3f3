"""What the fault experiments stand on: a short search with stand-in evaluations, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord
from nasvit.search.workers import warmed

HERE = Path(__file__).resolve().parent
Row = tuple[str, Any]
"""A line of a table: what was counted, and the figure."""


def experiment(**values: Any) -> Experiment:
    """A short search: random sampler, two rungs, latencies as they come, no trainings to hold the proxies against."""
    return Experiment(**{"space": str(HERE.parent / "search_spaces" / "hybrid_tiny.yaml"), "sampler": "random", "rungs": (2, 4),
                         "budget": 10, "workers": 2, "truth": 0.0, "device": "cpu?noise=keep", **values})


def search(out: Path, evaluate: Callable[[Any], TrialRecord] | str, *, resume: bool = False, allow_drift: bool = False,
           **values: Any) -> dict[str, Any]:
    """The search in this process, on a given scale, so that nothing is calibrated. evaluate: a function, or the name of one of stand_in.

    A resumed one has its workers started first, as `nasvit search --resume` has.
    """
    asked = experiment(**values)
    workers = warmed(asked, out) if resume else None
    from nasvit.search import run

    if isinstance(evaluate, str):
        evaluate = getattr(import_module("stand_in"), evaluate)
    return run(asked, out=out, resume=resume, allow_drift=allow_drift, evaluate=evaluate, reference_ms=1.0, workers=workers)


def begin(out: Path, *, resume: bool, evaluate: str = "about_a_second", environment: Mapping[str, str] | None = None,
          **values: Any) -> subprocess.Popen[bytes]:
    """The search in a process group of its own; what it says goes to `log` beside the run directory."""
    code = (f"import sys; sys.path.insert(0, {str(HERE)!r})\nimport fault_search\nfrom pathlib import Path\n"
            f"if __name__ == '__main__':\n"
            f"    fault_search.search(Path({str(out)!r}), {evaluate!r}, resume={resume}, **{values!r})\n")
    script = out.parent / "driver.py"
    script.write_text(code)
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    with (out.parent / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, str(script)], env={**os.environ, **(environment or {}), "PYTHONPATH": paths},
                                stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
