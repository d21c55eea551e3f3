"""A run whose device computes in int8: both accuracies stand beside each other, and what is missing is said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from nasvit.commands.terminal import render as render_and_print
from nasvit.errors import RunError
from nasvit.report import load
from nasvit.report.page import notes
from nasvit.report.render import render
from nasvit.results.record import TrialRecord, append


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "experiment.yaml").write_text("space: x\ndevice: cpu/onnxruntime?precision=int8\nobjectives: [accuracy, latency_ms]\n")
    (tmp_path / "env.json").write_text(json.dumps({"fingerprint": "aaa", "device": {"settings": {"precision": "int8"}}}))
    for trial, (accuracy, ms) in enumerate([(0.70, 1.0), (0.90, 3.0)]):
        append(tmp_path / "records.jsonl", TrialRecord(
            trial=trial, status="complete", rung=1, arch=None, arch_id=f"id{trial}", fingerprint="aaa",
            objectives={"accuracy": accuracy, "latency_ms": ms, "macs_g": 0.1, "params_m": 0.1}))
    return tmp_path


def write(place: Path, *points: dict[str, object]) -> None:
    (place / "precision.json").write_text(json.dumps({"points": points}))


def point(trial: int, **more: object) -> dict[str, object]:
    return {"latency": "latency_ms", "precision": "int8", "trial": trial, "rung": 1, **more}


def test_int8_stands_beside_fp32_in_every_table_and_the_loss_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place, point(0, accuracy=0.665, accuracy_fp32=0.7, same_class=0.9, images=300),
          point(1, accuracy=0.89, accuracy_fp32=0.9, same_class=0.9, images=300))
    render(place)
    assert pd.read_csv(place / "front.csv")["accuracy_int8"].tolist() == [0.665, 0.89]
    page, words = (place / "report.html").read_text(), (place / "report.md").read_text()
    assert "accuracy in int8" in page and "66.5 %" in page and "66.5 %" in words
    (line,) = [line for line in notes(load(place)) if "int8" in line]
    assert "2 of the front" in line and "worst lost 3.5 points" in line and "Not measured" not in line
    render_and_print(place)
    shown = capsys.readouterr().out
    assert "accuracy_int8" in shown and "66.50%" in shown


@pytest.mark.parametrize("points", [[], [point(0, reason="its checkpoint is gone"), point(1, reason="its checkpoint is gone")]])
def test_where_int8_was_not_measured_the_report_says_that_accuracy_is_of_fp32(place: Path, points: list[dict[str, object]]) -> None:
    if points:
        write(place, *points)
    run = load(place)
    assert all(math.isnan(value) for value in run.front["accuracy_int8"])
    (line,) = [line for line in notes(run) if "int8" in line]
    assert "of fp32" in line and "Not measured in int8" in line and "trial 0, 1" in line


def test_a_figure_of_an_earlier_rung_is_not_shown_for_a_later_one(place: Path) -> None:
    write(place, {**point(0, accuracy=0.6, accuracy_fp32=0.7, same_class=0.9, images=300), "rung": 2})
    assert math.isnan(load(place).front["accuracy_int8"][0])


def test_what_was_computed_on_another_machine_than_the_device_is_said(place: Path) -> None:
    write(place, point(0, accuracy=0.6, accuracy_fp32=0.7, same_class=0.9, images=300, elsewhere=True))
    assert any("not on the device itself" in line for line in notes(load(place)))


def test_a_damaged_file_is_named(place: Path) -> None:
    write(place, point(0, accuracy="high"))
    with pytest.raises(RunError, match=r"precision\.json is damaged"):
        load(place)


def test_a_run_in_fp32_has_no_such_column(place: Path) -> None:
    (place / "env.json").write_text(json.dumps({"fingerprint": "aaa", "device": {"settings": {"precision": "fp32"}}}))
    run = load(place)
    assert "accuracy_int8" not in run.front and not any("int8" in line for line in notes(run))
