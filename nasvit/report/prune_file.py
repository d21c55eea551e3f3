"""prune.json as the report reads it: what a pruning says of its dense model, its result and the siblings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pandas as pd

from nasvit.errors import RunError
from nasvit.report.tables import Run
from nasvit.whole_file import read_json

NAME = "prune.json"
POINT = ("label", "accuracy", "latency_ms", "ci_low_ms", "ci_high_ms", "macs_g", "params_m")

TEST_NOTE = "believe rather what the result has on test images, where the data have some"


def recovery_note(rungs: Sequence[Any]) -> str:
    """What the accuracy of a trial is."""
    return ("Accuracy is measured on the validation split after the recovery of the trial's highest rung "
            f"({', '.join(map(str, rungs))} steps; 0: weights as they were cut). A trial stopped at a lower rung counts with the accuracy "
            "measured there, which can only understate it.")


def is_pruning(run: Run) -> bool:
    """Whether the run pruned a model, and did not search for one."""
    return (run.path / NAME).exists()


@contextmanager
def facts_of(run: Run) -> Iterator[dict[str, Any]]:
    """What prune.json holds, empty of a search. Raises RunError, which names the file, for what a damaged one makes of its reader."""
    path = run.path / NAME
    facts = read_json(path)
    try:
        yield facts
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        if not facts:
            raise  # not the file's fault: there is none
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}); prune again with --resume, which writes it anew") from None


class Mark(NamedTuple):
    """The trial that pictures and tables single out, and by which word; None while there is none."""

    trial: int | None
    word: str


def mark(run: Run) -> Mark:
    """The result of a pruning, which need not be on the front (of equals it is the slowest), and else the front's knee. Raises RunError for
    a damaged prune.json."""
    with facts_of(run) as facts:
        if "pruned" in facts:
            return Mark(int(facts["pruned"]["trial"]), "result")
    knees = run.front.loc[run.front["knee"], "trial"]
    return Mark(int(knees.iloc[0]) if len(knees) else None, "knee")


def reference_points(run: Run) -> pd.DataFrame:
    """The dense model and the siblings of which both drawn objectives are known; empty of a search. Raises RunError for a damaged file."""
    rows: list[dict[str, Any]] = []
    with facts_of(run) as facts:
        if facts:
            dense, latency = facts["dense"], facts["dense"]["latency"]
            rows.append({"label": "dense", "accuracy": dense["accuracy"], "latency_ms": latency["median_ms"],
                         "ci_low_ms": latency["ci_low_ms"], "ci_high_ms": latency["ci_high_ms"], "macs_g": dense["macs_g"],
                         "params_m": dense["params_m"]})
            rows += [{"label": one["name"], **{name: one.get(name) for name in POINT[1:]}} for one in facts.get("siblings", ())]
    table = pd.DataFrame(rows, columns=list(POINT)).astype({"label": "string", **dict.fromkeys(POINT[1:], "float64")})
    return table.dropna(subset=list(run.axes)) if set(run.axes) <= set(POINT) else table.iloc[:0]
