from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from nasvit.commands.train import Bar, _predicted
from nasvit.report import load
from nasvit.training import Moment
from tests.unit.report.make_run import write_run


def moment(step: int, *, accuracy: float | None = None) -> Moment:
    return Moment(step=step, steps=10, epoch=step / 5, loss=0.5, lr=1e-3, seconds=float(step), val_accuracy=accuracy)


def test_a_log_gets_a_line_at_the_end_with_what_is_known() -> None:
    text = io.StringIO()
    with Bar("net", show=True, console=Console(file=text, width=200)) as report:
        report(moment(5))
        report(moment(10, accuracy=0.75))
    assert text.getvalue() == "net: step 10 of 10, epoch 2.0, loss 0.500, validation 75.00%\n"


def test_another_process_of_a_training_says_nothing() -> None:
    text = io.StringIO()
    with Bar("net", show=False, console=Console(file=text, width=200)) as report:
        report(moment(10))
    assert text.getvalue() == ""


def test_a_latency_is_predicted_from_the_other_networks_of_the_run_where_there_are_enough(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", trials=60, baselines=False))
    found = _predicted(run, run.best())
    assert found["predicted_low_ms"] <= found["predicted_ms"] <= found["predicted_high_ms"]
    assert found["predicted_ms"] == pytest.approx(run.best().objectives["latency_ms"], rel=0.8)
    assert _predicted(load(write_run(tmp_path / "few", trials=15, baselines=False)), run.best()) == {}
