from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from nasvit import cli
from nasvit.commands.train import Bar, _beside, _picked, _predicted, _train_all
from nasvit.finals import FinalPlan, Task
from nasvit.report import load
from nasvit.report.picks import pick
from nasvit.training import Moment, Recipe
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
    bar = Bar("net", show=False, console=Console(file=text, width=200))
    with bar as report:
        bar.goes_on(4)
        report(moment(10))
    assert text.getvalue() == ""


def test_a_killed_training_says_where_it_goes_on() -> None:
    text = io.StringIO()
    bar = Bar("net", show=True, console=Console(file=text, width=200))
    with bar:
        bar.goes_on(120)
    assert text.getvalue() == "net: going on from step 120\n"


def test_a_latency_is_predicted_from_the_other_networks_of_the_run_where_there_are_enough(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", trials=60, baselines=False))
    found = _predicted(run, run.best())
    assert found["predicted_low_ms"] <= found["predicted_ms"] <= found["predicted_high_ms"]
    assert found["predicted_ms"] == pytest.approx(run.best().objectives["latency_ms"], rel=0.8)
    assert _predicted(load(write_run(tmp_path / "few", trials=15, baselines=False)), run.best()) == {}


def test_beside_a_network_by_id_or_trial_stands_the_random_fronts_nearest_in_latency(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", trials=60))
    assert run.random is not None
    times = sorted(run.random.front["latency_ms"])
    for record in (pick(run, f"trial:{trial}")[0] for trial in run.front["trial"]):
        found = _beside(run, run.random, record.arch_id)
        assert found == _beside(run, run.random, f"trial:{record.trial}") == _beside(run, run.random, record.arch_id[:6])
        latency = pick(run.random, found)[0].objectives["latency_ms"]
        assert latency == max((ms for ms in times if ms <= record.objectives["latency_ms"]), default=times[0])
        assert _picked(run.random, found, origin="random")[0].searched["origin"] == "random"
    assert _beside(run, run.random, "knee, best,all,max-latency:2ms") == "knee,best,all,max-latency:2ms"
    assert _beside(run, run.random, f"knee,{run.best().arch_id}").startswith("knee,")


def test_baselines_of_a_run_that_has_none_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The option did nothing, and nothing said so."""
    path = write_run(tmp_path / "run", trials=10, baselines=False)
    assert cli.main(["train", str(path), "--baselines"]) == 2
    assert f"{path} has no baselines" in capsys.readouterr().err.replace("\n", "")


def test_beside_a_network_faster_than_all_of_the_random_front_stands_its_fastest(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", trials=60))
    assert run.random is not None
    slow = run.random.front.assign(latency_ms=run.random.front["latency_ms"] + 100)
    assert _beside(run, replace(run.random, front=slow), run.best().arch_id) == slow.sort_values("latency_ms")["arch_id"].iloc[0]


@pytest.mark.parametrize(("own", "scales"), [("here", [None, 5.0]), ("elsewhere", [None, 5.0, None])])
def test_another_machine_measures_on_its_own_scale(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                                   own: str, scales: list[float | None]) -> None:
    opened: list[Any] = []
    closed: list[float | None] = []

    def open_device(spec: str, *, threads: int, reference_ms: float | None = None) -> Any:
        opened.append(reference_ms)
        return SimpleNamespace(fingerprint=own, close=lambda: closed.append(reference_ms))

    def train_in_full(subject: object, task: object, *, measure_on: Any, **given: object) -> dict[str, Any]:
        measure_on()
        return {"id": "abc", "label": "a", "params_m": 1.0, "epochs": 1.0}

    monkeypatch.setattr("nasvit.devices.open_device", open_device)
    monkeypatch.setattr("nasvit.finals.train_in_full", train_in_full)
    monkeypatch.setattr("nasvit.finals.known_plan", lambda subject, task: None)
    made = Task(data=None, data_spec="d", split_seed=0, plan=FinalPlan(), recipe=Recipe(), folder=tmp_path)  # type: ignore[arg-type]
    _train_all([SimpleNamespace(label="a")], made, device="cpu", reference_ms=5.0, fingerprint="here", anew=False)  # type: ignore[list-item]
    assert opened == scales and sorted(closed, key=str) == sorted(scales, key=str)
    said = capsys.readouterr()
    assert ("is not the run's device here" in said.err) == (own == "elsewhere")
    assert f"weights and metrics: {tmp_path / 'abc'}/" in said.out
