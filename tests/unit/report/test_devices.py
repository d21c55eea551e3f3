from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from nasvit.commands.terminal import render as render_and_print
from nasvit.errors import ConfigError
from nasvit.report import load
from nasvit.report.comparison import compare
from nasvit.report.devices import columns, device_fronts, devices_section, for_all
from nasvit.report.picks import pick
from nasvit.report.render import render
from nasvit.results.record import TrialRecord, append

# accuracy, latency on a, latency on b: trials 0 and 1 are the fastest of one device each, 2 suits both, 3 is dominated everywhere
POINTS = [(0.70, 1.0, 9.0), (0.72, 8.0, 2.0), (0.90, 3.0, 4.0), (0.60, 9.0, 9.5), (0.92, 8.5, 9.0)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "experiment.yaml").write_text(
        "space: x\ndevice: cpu\ndevices: {a: cpu, b: cpu/onnxruntime}\nobjectives: [accuracy, latency_ms, latency_ms@b]\n")
    (tmp_path / "env.json").write_text('{"device": {"fingerprint": "aaa"}, "fingerprint": "aaa", "devices": {"b": {"fingerprint": "bbb"}}}')
    for trial, (accuracy, a, b) in enumerate(POINTS):
        append(tmp_path / "records.jsonl", TrialRecord(
            trial=trial, status="complete", rung=1, arch=None, arch_id=f"id{trial}", fingerprint="aaa",
            objectives={"accuracy": accuracy, "latency_ms": a, "latency_ms@b": b, "macs_g": 0.1, "params_m": 0.1}))
    return tmp_path


def test_each_device_has_a_column_and_a_front_of_its_own(place: Path) -> None:
    run = load(place)
    assert columns(run) == {"a": "latency_ms", "b": "latency_ms@b"}
    assert run.trials["latency_ms@b"].tolist() == [b for _, _, b in POINTS]
    fronts = device_fronts(run)
    assert fronts.loc[fronts["device"] == "a", "trial"].tolist() == [0, 2, 4]
    assert fronts.loc[fronts["device"] == "b", "trial"].tolist() == [1, 2, 4]
    assert fronts.groupby("device")["knee"].sum().tolist() == [1, 1]


def test_the_network_for_all_suits_every_device(place: Path) -> None:
    chosen = for_all(load(place))
    assert chosen is not None and chosen["trial"] == 2 and chosen["latency_ms"] == {"a": 3.0, "b": 4.0}
    section = devices_section(load(place))
    assert section is not None and [row["fingerprint"] for row in section["rows"]] == ["aaa", "bbb"]


def test_the_report_holds_all_devices(place: Path) -> None:
    render(place)
    page, words = (place / "report.html").read_text(), (place / "report.md").read_text()
    assert "The devices" in page and "cpu/onnxruntime" in page and "## The devices" in words
    assert pd.read_csv(place / "fronts.csv")["device"].unique().tolist() == ["a", "b"]
    assert "latency_ms@b" in pd.read_csv(place / "front.csv").columns


def test_the_terminal_shows_a_column_for_each_device(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    render_and_print(place)
    head, first, *_ = capsys.readouterr().out.splitlines()[1:]
    assert head.split()[:4] == ["trial", "accuracy", "latency_ms@a", "latency_ms@b"]
    assert first.split()[:4] == ["0", "70.00%", "1", "9"]


@pytest.mark.parametrize("gone", ["latency_ms", "latency_ms@b"])
def test_a_device_that_went_away_is_told_and_keeps_the_column_it_had(place: Path, gone: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in ("accuracy", "latency_ms", "latency_ms@b") if name != gone]
    append(place / "records.jsonl", TrialRecord(trial=5, status="complete", rung=1, arch=None, arch_id="id5", objectives={
        "accuracy": 0.95, "macs_g": 0.1, "params_m": 0.1, **dict.fromkeys(names[1:], 2.5)}))
    append(place / "baselines.jsonl", TrialRecord(trial=0, status="complete", rung=1, arch=None, arch_id="x", label="timm:x",
                                                  objectives={"accuracy": 0.5, **dict.fromkeys(names[1:], 3.0)}))
    (place / "summary.json").write_text(json.dumps({
        "objectives": names, "gone": {gone: {"trial": 4, "reason": "the device x is gone since trial 4: it hung"}}}))
    render_and_print(place)
    run = load(place)
    assert run.front["trial"].tolist()[-1] == 5 and pd.isna(run.trials.set_index("trial").loc[5, gone])
    assert run.trials[gone].notna().sum() == 5
    assert "The device x is gone since trial 4" in (place / "report.md").read_text()
    fronts = device_fronts(run)
    assert 5 not in fronts.loc[fronts["device"] == ("a" if gone == "latency_ms" else "b"), "trial"].tolist()
    chosen = for_all(run)
    assert chosen is not None and chosen["trial"] == 2  # among those that were measured everywhere


def test_a_search_on_one_device_says_nothing_of_devices(place: Path) -> None:
    (place / "experiment.yaml").write_text("space: x\ndevice: cpu\ndevices: {}\n")
    run = load(place)
    assert columns(run) == {} and for_all(run) is None
    assert "fronts.csv" not in {p.name for p in render(place)}


def test_a_pick_within_a_limit_is_held_to_the_device_that_it_names(place: Path) -> None:
    run = load(place)
    assert [pick(run, f"max-latency:4ms{at}")[0].trial for at in ("", "@a", "@b")] == [2, 2, 2]
    assert [pick(run, f"max-latency:2.5ms{at}")[0].trial for at in ("@a", "@b")] == [0, 1]


@pytest.mark.parametrize("name", ["gpu", "cpu", "train", "seed"])
def test_a_device_may_have_any_name(place: Path, name: str) -> None:
    for file in ("experiment.yaml", "env.json"):
        text = (place / file).read_text()
        text = text.replace("b: cpu", f"{name}: cpu").replace("latency_ms@b", f"latency_ms@{name}")
        (place / file).write_text(text.replace('"b"', f'"{name}"'))
    assert columns(load(place)) == {"a": "latency_ms", name: f"latency_ms@{name}"}


def test_runs_whose_further_device_is_another_are_not_compared(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("experiment.yaml", "env.json", "records.jsonl"):
        (other / name).write_text((place / name).read_text().replace('"bbb"', '"ccc"'))
    with pytest.raises(ConfigError, match="b is not the same device"):
        compare([load(place), load(other)])
