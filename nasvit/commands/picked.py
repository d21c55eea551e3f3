"""Networks of a run with their weights, by the words of --pick."""

from __future__ import annotations

from nasvit.finals.pruned import load_result, result_trial
from nasvit.finals.searched import load_best
from nasvit.finals.trained import Trained
from nasvit.report.picks import pick
from nasvit.report.tables import Run


def picked(run: Run, what: str | None) -> list[Trained]:
    """The networks meant by `what`; without a word the result of a pruning, of any other run the knee."""
    if not what and result_trial(run.path) is not None:
        return [load_result(run.path)]
    return [load_best(run.path, record, run.experiment, run.env) for record in pick(run, what or "knee")]
