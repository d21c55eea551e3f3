"""What the fault experiments stand on: a short search with stand-in evaluations, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord
from nasvit.search import run

HERE = Path(__file__).resolve().parent
Row = tuple[str, Any]
"""A line of a table: what was counted, and the figure."""


def experiment(**values: Any) -> Experiment:
    """A short search: random sampler, two rungs, latencies as they come, no trainings to hold the proxies against."""
    return Experiment(**{"space": str(HERE.parent / "search_spaces" / "hybrid_tiny.yaml"), "sampler": "random", "rungs": (2, 4),
                         "budget": 10, "workers": 2, "truth": 0.0, "device": "cpu?noise=keep", **values})


def search(out: Path, evaluate: Callable[[Any], TrialRecord], *, resume: bool = False, allow_drift: bool = False,
           **values: Any) -> dict[str, Any]:
    """The search in this process, on a given scale, so that nothing is calibrated."""
    return run(experiment(**values), out=out, resume=resume, allow_drift=allow_drift, evaluate=evaluate, reference_ms=1.0)


def begin(out: Path, *, resume: bool, evaluate: str = "about_a_second", environment: Mapping[str, str] | None = None,
          **values: Any) -> subprocess.Popen[bytes]:
    """The search in a process group of its own; what it says goes to `log` beside the run directory."""
    code = (f"import sys; sys.path.insert(0, {str(HERE)!r})\nimport fault_search, stand_in\nfrom pathlib import Path\n"
            f"if __name__ == '__main__':\n"
            f"    fault_search.search(Path({str(out)!r}), stand_in.{evaluate}, resume={resume}, **{values!r})\n")
    script = out.parent / "driver.py"
    script.write_text(code)
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    with (out.parent / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, str(script)], env={**os.environ, **(environment or {}), "PYTHONPATH": paths},
                                stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
