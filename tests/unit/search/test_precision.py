"""A search on an int8 device: what its front scores in int8 is measured, from the checkpoints, and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nasvit.experiment import Experiment
from nasvit.results.precision import precisions
from nasvit.results.record import TrialRecord
from nasvit.runtimes.accuracy import RuntimeAccuracy
from nasvit.search import precision
from tests.unit.search.fakes import arch, kept, settings

ENV = {"device": {"settings": {"precision": "int8"}}, "devices": {"b": {"settings": {"precision": "fp32"}}, "c": {"settings": {}}}}


def test_a_device_of_another_precision_is_known_by_what_the_run_says_of_it() -> None:
    assert precisions(ENV) == {"latency_ms": "int8"}
    assert precisions({"device": {"settings": {"precision": "fp32"}}}) == precisions({}) == {}


def test_each_network_of_the_front_is_asked_in_the_devices_runtime_once_and_one_without_weights_says_why(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def accuracy(module: object, *, runtime: object, images: object, labels: object, threads: int) -> RuntimeAccuracy:
        asked.append((runtime.settings, threads, len(images)))  # type: ignore[attr-defined, arg-type]
        return RuntimeAccuracy(eager=0.5, runtime=0.4, same=0.9, images=len(images))  # type: ignore[arg-type]

    monkeypatch.setattr(precision, "quantised_accuracy", accuracy)
    monkeypatch.setattr("nasvit.runtimes.accuracy.MOST", 50)
    pytest.importorskip("onnxruntime")
    made = replace(settings(tmp_path, Experiment(space="x")), device="cpu/onnxruntime?precision=int8")
    records = [kept(tmp_path, 0, arch(), accuracy=0.5, latency=1.0), kept(tmp_path, 1, arch(width=16), accuracy=0.7, latency=2.0),
               kept(tmp_path, 2, arch(width=24), accuracy=0.6, latency=3.0)]  # the last is dominated
    gone = tmp_path / str(records[1].checkpoint)
    weights = gone.read_bytes()
    gone.unlink()

    def measured() -> dict[str, object]:
        return precision.measure_front(records, settings=made, names=("accuracy", "latency_ms"), precisions={"latency_ms": "int8"},
                                       path=tmp_path / "precision.json")

    told = measured()["latency_ms"]
    assert told == {"precision": "int8", "networks": 1, "missing": 1, "largest_loss": pytest.approx(0.1)}
    first, second = json.loads((tmp_path / "precision.json").read_text())["points"]
    assert (first["trial"], first["accuracy"], first["elsewhere"]) == (0, 0.4, False)
    assert second["trial"] == 1 and "is gone" in second["reason"] and "accuracy" not in second
    gone.write_bytes(weights)
    assert measured()["latency_ms"]["networks"] == 2  # type: ignore[index]
    assert asked == [({"precision": "int8"}, 1, 50)] * 2  # a resumed search computes what is missing, and nothing twice


def test_int8_in_onnx_runtime_is_another_function_with_a_figure_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("nasvit.runtimes.accuracy.MOST", 40)
    made = replace(settings(tmp_path, Experiment(space="x")), device="cpu/onnxruntime?precision=int8")
    told = precision.measure_front([kept(tmp_path, 0, arch(width=32, depth=2, mlp=64), accuracy=0.1, latency=1.0)], settings=made,
                                   names=("accuracy", "latency_ms"), precisions={"latency_ms": "int8"}, path=tmp_path / "precision.json")
    (point,) = json.loads((tmp_path / "precision.json").read_text())["points"]
    assert told["latency_ms"]["networks"] == 1 and point["images"] == 40 and 0.5 < point["same_class"] <= 1


def test_a_pruned_network_says_that_it_has_no_figure(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    made = replace(settings(tmp_path, Experiment(space="x")), device="cpu/onnxruntime?precision=int8")
    plan = TrialRecord(trial=0, status="complete", rung=1, arch={"source": "timm"}, arch_id="plan",
                       objectives={"accuracy": 0.5, "latency_ms": 1.0})
    told = precision.measure_front([plan], settings=made, names=("accuracy", "latency_ms"), precisions={"latency_ms": "int8"},
                                   path=tmp_path / "precision.json")
    assert told["latency_ms"] == {"precision": "int8", "networks": 0, "missing": 1}
    assert "float32 alone" in json.loads((tmp_path / "precision.json").read_text())["points"][0]["reason"]
