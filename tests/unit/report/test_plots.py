from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import vl_convert

from nasvit.drawing import MIXER_COLOURS, mixer_colour
from nasvit.report import Run, load, plots
from nasvit.report.plots import below_picture, front_chart, hypervolume_chart, picture
from nasvit.report.prune_file import Mark
from nasvit.results.record import append, read
from tests.unit.report.make_run import write_run


def test_a_mixer_has_one_colour_whatever_else_is_in_the_report(run: Run) -> None:
    assert len(set(MIXER_COLOURS.values())) == len(MIXER_COLOURS)
    assert mixer_colour("somebodys_own") == mixer_colour("somebodys_own") and mixer_colour("somebodys_own") not in MIXER_COLOURS.values()
    scales = [layer["encoding"]["color"]["scale"] for layer in front_chart(run)["layer"] if "scale" in layer["encoding"].get("color", {})]
    assert scales and all(s["range"] == [MIXER_COLOURS[m] for m in s["domain"]] for s in scales)


def test_a_wide_span_is_drawn_on_a_log_scale_and_a_narrow_one_is_not(run: Run) -> None:
    def scale(chart: dict) -> dict:
        return next(layer["encoding"]["x"]["scale"] for layer in chart["layer"] if "scale" in layer["encoding"].get("x", {}))

    assert scale(front_chart(run))["type"] == "log", "from 1.2 ms to a baseline of 9.1 ms"
    assert "type" not in scale(front_chart(replace(run, baselines=run.baselines.iloc[:0])))


def test_every_complete_trial_is_in_the_picture_with_its_stages(run: Run) -> None:
    rows = front_chart(run)["datasets"]["trials"]
    assert len(rows) == int((run.trials["status"] == "complete").sum())
    assert all(row["stage0"] and row["stage1"] for row in rows)
    assert sum(row["on_front"] for row in rows) == len(run.front)
    (marked,) = front_chart(run)["datasets"]["marked"]
    assert marked["word"] == "knee" and {(r["accuracy"], r["latency_ms"]) for r in rows} >= {(marked["accuracy"], marked["latency_ms"])}


@pytest.mark.parametrize("which", ["slowest", "least accurate", "between"])
def test_what_has_the_ring_is_in_the_picture_with_its_word(run: Run, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    points = run.trials[run.trials["status"] == "complete"].sort_values("latency_ms" if which == "slowest" else "accuracy")
    row = points.iloc[{"slowest": -1, "least accurate": 0, "between": len(points) // 2}[which]]
    alone = replace(run, baselines=run.baselines.iloc[:0], random=None)
    monkeypatch.setattr(plots, "mark", lambda run: Mark(int(row["trial"]), "result"))
    chart = front_chart(alone)
    assert [m["accuracy"] for m in chart["datasets"]["marked"]] == [pytest.approx(row["accuracy"])]
    low, high = next(layer["encoding"]["y"]["scale"]["domain"] for layer in chart["layer"] if "scale" in layer["encoding"].get("y", {}))
    assert low < row["accuracy"] < high, "cut off, as what lies far behind the front is"
    words = [layer["mark"] for layer in chart["layer"] if layer["encoding"].get("text", {}).get("field") == "word"]
    assert words and all((word["align"] == "right") == (word["dx"] < 0) for word in words)
    if which == "slowest":
        assert all(word["dx"] < 0 for word in words), "the word would stand right of the picture"
    if which == "least accurate":
        assert all(word["dy"] < 0 for word in words), "the word would stand on the axis"


def test_a_latency_of_another_device_is_never_drawn(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trials=40)
    append(path / "baselines.jsonl", replace(read(path / "baselines.jsonl")[0], label="timm:elsewhere", fingerprint="ffffffffffff"))
    drawn = [row["label"] for row in front_chart(load(path))["datasets"]["baselines"]]
    assert drawn == ["timm:levit_128s", "timm:mobilenetv3_small_100"]


def test_only_dominated_trials_are_cut_off_and_they_are_counted(run: Run) -> None:
    low, high = front_chart(run)["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    outside = run.trials[(run.trials["status"] == "complete") & ~run.trials["accuracy"].between(low, high)]
    assert not outside["on_front"].any() and len(outside) == below_picture(run)


@pytest.mark.parametrize("names", [("accuracy", "macs_g"), ("latency_ms", "macs_g"), ("accuracy", "latency_ms", "params_m")])
def test_charts_compile_for_any_objectives(tmp_path: Path, names: tuple[str, ...]) -> None:
    run = load(write_run(tmp_path / "run", trials=25, names=names))
    for chart in (front_chart(run), front_chart(run, colour="keep"), hypervolume_chart(run)):
        chart["width"] = 400
        assert "mark-symbol" in (svg := vl_convert.vegalite_to_svg(chart)) or "mark-line" in svg


def test_one_point_is_enough_for_a_picture(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trials=0, baselines=False)
    first = next(r for r in read(write_run(tmp_path / "other", trials=20, baselines=False) / "records.jsonl") if r.status == "complete")
    append(path / "records.jsonl", first)
    assert vl_convert.vegalite_to_png(picture(load(path)))[:4] == b"\x89PNG"
