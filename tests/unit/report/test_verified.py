from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nasvit.errors import RunError
from nasvit.report import load, render
from nasvit.report.page import verified_rows, verified_words
from nasvit.report.verified import verify
from tests.unit.report.make_run import FINGERPRINT, write_run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", trials=60, baselines=False)


def final(path: Path, row: Any, *, accuracy: float, ms: float, origin: str = "search", fingerprint: str = FINGERPRINT,
          rung: int = 3) -> None:
    """metrics.json as a full training of this front row leaves it."""
    folder = path / "train" / str(row["arch_id"])
    folder.mkdir(parents=True, exist_ok=True)
    searched = {"origin": origin, "trial": int(row["trial"]), "rung": rung, "accuracy": row["accuracy"], "latency_ms": row["latency_ms"],
                "ci_low_ms": row["ci_low_ms"], "ci_high_ms": row["ci_high_ms"],
                "predicted_ms": 1.25, "predicted_low_ms": 1.0, "predicted_high_ms": 1.5}
    (folder / "metrics.json").write_text(json.dumps({
        "id": row["arch_id"], "label": row["arch_id"], "test_accuracy": accuracy, "val_accuracy": accuracy - 0.01, "searched": searched,
        "latency": {"median_ms": ms, "fingerprint": fingerprint, "verdict": "stable"}, "params_m": 0.1, "epochs": 20.0, "seconds": 60.0,
        "test_images": 100}))


def test_without_full_trainings_the_report_says_nothing_of_them(path: Path) -> None:
    verified = verify(load(path))
    assert not len(verified.table) and verified.tau is None and verified_words(verified) == ""
    render(path)
    assert "After full training" not in (path / "report.html").read_text() + (path / "report.md").read_text()


def test_tau_is_one_where_the_order_holds_and_minus_one_where_it_is_reversed(path: Path) -> None:
    front = load(path).front.to_dict("records")
    assert len(front) >= 5
    for sign in (1, -1):
        for n, row in enumerate(front):
            final(path, row, accuracy=0.9 + sign * 0.001 * n, ms=row["latency_ms"])
        verified = verify(load(path))
        assert verified.tau is not None and verified.tau.value == pytest.approx(sign) and verified.tau.n == len(front)
        assert verified.tau.low <= verified.tau.value <= verified.tau.high
        assert f"tau is {sign:.2f}" in verified_words(verified)


def test_accuracies_of_two_rungs_are_not_compared(path: Path) -> None:
    front = load(path).front.to_dict("records")
    for n, row in enumerate(front):  # those trained longer in the search seem better there, and are worse in the end
        early = n % 2
        final(path, {**row, "accuracy": 0.3 + 0.4 * (not early) + 0.01 * n}, accuracy=0.5 + 0.3 * early + 0.01 * n, ms=1.0,
              rung=1 if early else 3)
    tau = verify(load(path)).tau
    assert tau is not None and tau.value == 1.0 and tau.n == len(front)


def test_no_test_split_is_claimed_where_there_was_none(path: Path) -> None:
    run = load(path)
    for n, row in enumerate(run.front.to_dict("records")[:2]):
        final(path, row, accuracy=0.9, ms=1.0)
        assert "scored once on the test split" in verified_words(verify(load(path)))
        if n:
            place = path / "train" / str(row["arch_id"]) / "metrics.json"
            place.write_text(json.dumps({**json.loads(place.read_text()), "test_accuracy": None, "test_images": 0}))
    assert "2 networks were trained in full, 1 of them scored on a test split" in verified_words(verify(load(path)))


def test_a_front_point_beaten_in_both_fell_off_and_the_others_did_not(path: Path) -> None:
    front = load(path).front.to_dict("records")
    for n, row in enumerate(front):
        final(path, row, accuracy=0.8 + 0.01 * n, ms=row["latency_ms"])
    final(path, front[2], accuracy=0.5, ms=front[2]["latency_ms"])
    table = verify(load(path)).table
    assert table.loc[table["fell_off"], "id"].tolist() == [front[2]["arch_id"]]
    rows = {row["label"]: row["mark"] for row in verified_rows(verify(load(path)))}
    assert rows[front[2]["arch_id"]] == "fell off the front" and rows[front[1]["arch_id"]] == "on the front"
    assert "1 of the front fell off it" in verified_words(verify(load(path)))


def test_a_baseline_never_pushes_a_point_off_and_another_device_never_stands_in_the_column(path: Path) -> None:
    front = load(path).front.to_dict("records")
    final(path, front[0], accuracy=0.5, ms=front[0]["latency_ms"])
    final(path, {**front[1], "arch_id": "rival"}, accuracy=0.99, ms=0.001, origin="baseline")
    final(path, front[2], accuracy=0.99, ms=0.0001, fingerprint="another")
    verified = verify(load(path))
    assert not verified.table["fell_off"].any()
    row = next(r for r in verified_rows(verified) if r["label"] == front[2]["arch_id"])
    assert (row["now"], row["drift"], row["inside"]) == ("other device", "\u2013", "\u2013")


def test_the_remeasured_latency_is_held_against_the_recorded_interval(path: Path) -> None:
    front = load(path).front.to_dict("records")
    final(path, front[0], accuracy=0.9, ms=front[0]["ci_high_ms"])
    final(path, front[1], accuracy=0.9, ms=1.5 * front[1]["latency_ms"])
    table = verify(load(path)).table.set_index("id")
    assert table.at[front[0]["arch_id"], "inside"] and not table.at[front[1]["arch_id"], "inside"]
    rows = {row["label"]: row for row in verified_rows(verify(load(path)))}
    assert rows[front[1]["arch_id"]]["drift"] == "+50.0 %"


def test_a_network_that_the_search_measured_without_an_interval_was_promised_nothing(path: Path) -> None:
    row = load(path).front.to_dict("records")[0] | {"ci_low_ms": None, "ci_high_ms": None}
    final(path, row, accuracy=0.9, ms=1.0)
    assert verified_rows(verify(load(path)))[0]["inside"] == "\u2013"


def test_the_report_shows_full_trainings_and_the_drawings(path: Path) -> None:
    front = load(path).front.to_dict("records")
    final(path, front[0], accuracy=0.9, ms=front[0]["latency_ms"])
    render(path)
    html, text = (path / "report.html").read_text(), (path / "report.md").read_text()
    assert "1.25 ms (1.00 to 1.50)" in html
    assert "After full training" in html and "After full training" in text and "90.0 %" in html
    assert html.count('role="img"') == len(front)


def test_a_validation_figure_stands_in_where_there_is_no_test_split(path: Path) -> None:
    front = load(path).front.to_dict("records")
    final(path, front[0], accuracy=0.9, ms=1.0)
    file = path / "train" / front[0]["arch_id"] / "metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "test_accuracy": None}))
    table = verify(load(path)).table
    assert table["final_accuracy"].item() == pytest.approx(0.89) and verified_rows(verify(load(path)))[0]["test"] == "\u2013"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": 1, "searched": 3}', "\x00"])
def test_damaged_metrics_are_named(path: Path, text: str) -> None:
    (path / "train" / "x").mkdir(parents=True)
    (path / "train" / "x" / "metrics.json").write_text(text)
    with pytest.raises(RunError, match=r"metrics\.json is damaged"):
        verify(load(path))
    shutil.rmtree(path / "train")
