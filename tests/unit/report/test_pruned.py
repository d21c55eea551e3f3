"""What the report says of a pruned model, from a prune.json that nobody measured."""

from __future__ import annotations

import base64
import io
import json
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from nasvit.commands.terminal import render
from nasvit.errors import RunError
from nasvit.report import load
from nasvit.report.page import front_rows
from nasvit.report.plots import front_chart
from nasvit.report.pruned import precision_words, pruned_section, speed_words
from nasvit.report.render import html, markdown
from tests.unit.report.make_run import write_run

LATENCY = {"median_ms": 4.0, "ci_low_ms": 3.8, "ci_high_ms": 4.2}
FACTS: dict[str, Any] = {
    "model": "timm:deit_tiny", "target_ms": 2.1, "identity": 0.0,
    "dense": {"latency": LATENCY, "accuracy": 0.9, "macs_g": 1.0, "params_m": 5.0},
    "pruned": {"trial": 3, "latency": {"median_ms": 2.0, "ci_low_ms": 1.9, "ci_high_ms": 2.1}, "accuracy": 0.88, "macs_g": 0.5,
               "params_m": 3.0, "of_target": 0.95, "test_accuracy": 0.87, "test_images": 299},
    "recovery": [{"steps": 0, "accuracy": 0.8}], "dense_training": "how long it was trained is not known",
    "siblings": [{"name": "vit_small", "latency_ms": None, "ci_low_ms": None, "ci_high_ms": None, "accuracy": None,
                  "why": "too slow to time"}],
    "verdict": {"dominated": None, "by": None, "text": "unknown"},
}


def section(tmp_path: Path, **changes: Any) -> Any:
    (tmp_path / "prune.json").write_text(json.dumps({**FACTS, **changes}))
    return pruned_section(SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]


def test_the_words_hold_target_accuracy_and_what_the_test_images_say(tmp_path: Path) -> None:
    words = section(tmp_path)["words"]
    assert "2.00x faster than the dense model" in words and "95 % of the target of 2.10 ms" in words and "-2.0 points" in words
    assert "299 test images" in words and "87.00 %" in words
    without = section(tmp_path, pruned={**FACTS["pruned"], "test_accuracy": None})
    assert "test images" not in without["words"]


def test_a_sibling_that_was_not_measured_stands_there_with_the_reason(tmp_path: Path) -> None:
    row = section(tmp_path)["rows"][-1]
    assert row["what"] == "vit_small" and row["interval"] == "not measured: too slow to time"


def test_the_recovery_stands_beside_what_is_known_of_the_dense_training(tmp_path: Path) -> None:
    found = section(tmp_path)
    assert found["training"] == "How long it was trained is not known" and found["curve"][0]["steps"] == 0
    known = section(tmp_path, recovery=[{"steps": 10, "share_of_dense": 0.01, "accuracy": 0.8}])
    assert known["curve"] == [{"steps": 10, "share": "1.0 %", "accuracy": "80.00 %"}]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert pruned_section(SimpleNamespace(path=tmp_path / "none")) is None  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"prune\.json is damaged"):
        section(tmp_path, dense=None)
    for damaged in ({"written": "it"}, {"pruned": {**FACTS["pruned"], "latency": {**LATENCY, "median_ms": 0}}}):
        with pytest.raises(RunError, match=r"prune\.json is damaged"):
            section(tmp_path, **damaged)


def test_a_result_that_is_slower_than_the_dense_model_is_called_slower(tmp_path: Path) -> None:
    def words(ms: float) -> str:
        return speed_words({**FACTS, "pruned": {"latency": {"median_ms": ms}}})

    assert words(5.2) == "1.30x slower than the dense model" and words(2.5) == "1.60x faster than the dense model"
    assert words(4.0) == words(4.01) == "as fast as the dense model"
    slower = section(tmp_path, pruned={**FACTS["pruned"], "latency": {**LATENCY, "median_ms": 5.2}}, target_ms=None)["words"]
    assert "is 1.30x slower than the dense model, at -2.0 points" in slower and "faster" not in slower


def test_what_another_precision_scores_stands_beside_float32() -> None:
    export = {"file": "model.onnx", "runtime": "onnxruntime", "settings": {"precision": "int8"},
              "accuracy": {"eager": 0.88, "runtime": 0.8125, "same": 0.9, "images": 400}}
    words = precision_words({**FACTS, "written": {"export": export}})
    assert "onnxruntime with int8" in words and "81.25 % on the 400 validation images, and 88.00 % in fp32" in words
    assert precision_words({**FACTS, "written": {"export": {"file": "model.onnx", "settings": {}}}}) == precision_words(FACTS) == ""


def test_pages_hold_recovery_both_attentions_and_the_tokens_picture_and_no_other_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    facts = {**FACTS, "written": {"fused": 3e-7, "fused_dense": 2e-7, "tokens": {"file": "tokens.png", "images": 3, "panels": 4}},
             "recovery": [{"steps": 70, "share_of_dense": 0.1, "accuracy": 0.8312}]}
    (run / "prune.json").write_text(json.dumps(facts))
    png = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(png, format="PNG")
    (run / "pruned").mkdir()
    (run / "pruned" / "tokens.png").write_bytes(png.getvalue())
    page, text = html(load(run)), markdown(load(run))
    assert f'src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"' in page
    assert "![The tokens of each block](pruned/tokens.png)" in text and "| 70 " in text and "83.12 %" in text
    for each in (unescape(page), text):
        assert "Which tokens each block keeps" in each and "Recovery: accuracy" in each
        assert "agree to 3.0e-07, the dense model's to 2.0e-07" in each
    (tmp_path / "secret").write_bytes(png.getvalue() + b"secret")
    for spoil in (lambda p: p.write_text("<script>"), lambda p: p.symlink_to(tmp_path / "secret"), lambda p: None):
        (run / "pruned" / "tokens.png").unlink(missing_ok=True)
        spoil(run / "pruned" / "tokens.png")
        assert "Which tokens" not in html(load(run)) + markdown(load(run))


def test_the_figures_of_a_table_have_one_unit_and_as_many_digits(tmp_path: Path) -> None:
    sibling = {"name": "vit_small", "latency_ms": 2.0, "ci_low_ms": 1.9, "ci_high_ms": 2.1, "accuracy": 0.85284, "macs_g": 0.06,
               "params_m": 4.0}
    dense, pruned = {**FACTS["dense"], "macs_g": 0.107}, {**FACTS["pruned"], "macs_g": 0.0527}
    rows = section(tmp_path, dense=dense, pruned=pruned, siblings=[sibling, {**FACTS["siblings"][0]}])["rows"]
    assert [row["macs"] for row in rows] == ["0.107 G", "0.0527 G", "0.0600 G", "\u2013"]
    assert [row["accuracy"] for row in rows] == ["90.00 %", "88.00 %", "85.28 %", "\u2013"] and rows[2]["params"] == "4.00 M"


def test_a_sentence_begins_with_a_capital_and_names_stay_as_they_are_written(tmp_path: Path) -> None:
    found = section(tmp_path, verdict={"dominated": True, "by": "ViT_B", "text": "dominated by ViT_B: yes (85.28% at 2 ms)"},
                    dense_training="the dense training had 74 steps")
    assert (found["verdict"], found["training"]) == ("Dominated by ViT_B: yes (85.28 % at 2 ms)", "The dense training had 74 steps")


def test_the_page_of_a_pruning_speaks_of_a_pruning(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trials=30, baselines=False)
    before = html(load(run))
    facts = {**FACTS, "siblings": [{"name": "vit_small", "latency_ms": 2.0, "ci_low_ms": 1.9, "ci_high_ms": 2.1, "accuracy": 0.85}]}
    (run / "prune.json").write_text(json.dumps(facts))
    page, opened = html(load(run)), load(run)
    for of_search, of_pruning in (("colour by mixer", "colour by token operator"), ("networks trained,", "plans evaluated,"),
                                  ("rejected before training", "rejected before their accuracy was asked"),
                                  ("train the pick in full", "what the result has on test images"),
                                  ("after the training of the trial", "after the recovery of the trial")):
        assert of_search in before and of_pruning not in before and of_pruning in page and of_search not in page
    assert "knee of the front" not in page and "pruned model, latency" in page, "the result comes first"
    shown = front_chart(opened)["datasets"]["baselines"]
    assert [(row["label"], row["latency_ms"]) for row in shown] == [("dense", 4.0), ("vit_small", 2.0)]
    assert not front_chart(load(write_run(tmp_path / "search", trials=30, baselines=False)))["datasets"]["baselines"]


def test_what_is_singled_out_is_the_result_wherever_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", trials=30, baselines=False)
    of_search = load(run)
    knee = int(of_search.front.loc[of_search.front["knee"], "trial"].iloc[0])
    other = int(next(trial for trial in of_search.front["trial"] if trial != knee))
    done = of_search.trials[of_search.trials["status"] == "complete"]
    behind = int(done.loc[~done["on_front"], "trial"].iloc[0])
    for trial in (other, behind):
        (run / "prune.json").write_text(json.dumps({**FACTS, "pruned": {**FACTS["pruned"], "trial": trial}}))
        opened = load(run)
        ringed = front_chart(opened)["datasets"]["marked"]
        assert [(row["word"], row["latency_ms"]) for row in ringed] == [("result", pytest.approx(
            float(done.set_index("trial").loc[trial, "latency_ms"]), rel=1e-5))]
        assert [row["trial"] for row in front_rows(opened) if row["mark"]] == ([other] if trial == other else [])
        assert ("| result |" in markdown(opened)) == (trial == other) and "| knee" not in markdown(opened)
        render(run)
        assert (f"{other} (result)" in (said := capsys.readouterr().out)) == (trial == other) and "(knee)" not in said
        assert f"Pareto front: {len(opened.front)} plans" in said
    (run / "prune.json").write_text(json.dumps({k: v for k, v in FACTS.items() if k != "pruned"}))
    assert [row["word"] for row in front_chart(load(run))["datasets"]["marked"]] == ["knee"], "no result yet"


def test_the_counts_of_a_front_are_in_the_unit_of_its_dense_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trials=30, baselines=False)
    assert {row["macs"][-1] for row in front_rows(load(run))} == {"M"}
    (run / "prune.json").write_text(json.dumps(FACTS))
    assert {row["macs"][-1] for row in front_rows(load(run))} == {"G"}


def test_a_limit_a_little_over_all_points_stands_in_the_picture(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", trials=30, baselines=False))
    most = max(run.trials.loc[run.trials["status"] == "complete", "latency_ms"].max(), run.front["ci_high_ms"].max())
    summary = json.loads((run.path / "summary.json").read_text())
    (run.path / "summary.json").write_text(json.dumps({**summary, "limits": {"latency_ms": 1.04 * most}}))
    spec = front_chart(load(run.path))
    domains = [layer["encoding"]["x"]["scale"]["domain"] for layer in spec["layer"] if "scale" in layer.get("encoding", {}).get("x", {})]
    assert "limit" in json.dumps(spec["layer"]) and domains and all(high >= 1.04 * most for _, high in domains)
