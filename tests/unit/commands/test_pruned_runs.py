"""What the commands that take a run do with the run of a pruning: its result, and the members of its front."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from nasvit import cli
from nasvit.commands.picked import picked
from nasvit.devices import Prepared, open_device
from nasvit.errors import RunError
from nasvit.models.weight_file import write_weights
from nasvit.pruning import prepare, save, slice_weights, uniform
from nasvit.pruning.importance import importance
from nasvit.report import load
from nasvit.results.record import TrialRecord, append
from tests.pruning_models import make
from tests.unit.commands.test_remeasure import STATS

SHAPE = (3, 32, 32)
IMAGE = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trial 0 was not recovered, trial 1 was and is the result; the third's checkpoint is gone."""
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(Prepared, "measure", lambda self: replace(STATS, batch_size=self.batch_size))  # it is prepared, not timed
    run = tmp_path / "run"
    dense = prepare(make("vit"), name="timm:vit_tiny_patch16_224")
    save(dense.module, run / "dense")
    scores = importance(dense, torch.randn(4, *SHAPE), torch.arange(4)).scores
    write_weights(run / "dense" / "importance.safetensors", scores)
    fingerprint = open_device("cpu?noise=keep").fingerprint
    for trial, ratio in enumerate((0.5, 0.6, 0.7)):
        plan = uniform(dense.plan.source, keep=0.5, operator="merge", keep_ratio=ratio)
        module = slice_weights(dense, plan, scores)
        if trial:
            with torch.no_grad():
                module.head.weight.mul_(2.0)  # type: ignore[union-attr, operator]
        name = f"checkpoints/{plan.id}.safetensors" if trial else None
        if trial == 1:
            write_weights(run / str(name), module.state_dict())
            save(module, run / "pruned")
        append(run / "records.jsonl", TrialRecord(
            trial=trial, status="complete", rung=1 + bool(trial), arch=plan.to_dict(), arch_id=plan.id, checkpoint=name,
            fingerprint=fingerprint, latency={**STATS.to_dict(), "median_ms": 1.0 + trial},
            objectives={"accuracy": (0.5, 0.6, 0.55)[trial], "latency_ms": 1.0 + trial, "macs_g": 1.0, "params_m": 1.0}))
    (run / "experiment.yaml").write_text("data: digits\ndevice: cpu?noise=keep\nobjectives: [accuracy, latency_ms]\n")
    (run / "env.json").write_text(json.dumps({"reference_ms": 1.0, "fingerprint": fingerprint}))
    (run / "prune.json").write_text(json.dumps({
        "model": "timm:vit_tiny_patch16_224", "mean": [0.5] * 3, "std": [0.25] * 3, "class_names": list("abcdefg"),
        "pruned": {"trial": 2, "test_accuracy": 0.5}}))
    return run


def test_a_pick_of_a_pruning_is_its_result_or_a_member_with_the_weights_it_had(run: Path) -> None:
    (result,) = picked(load(run), None)
    unrecovered, recovered = (picked(load(run), what)[0] for what in ("trial:0", "best"))
    with torch.no_grad():
        logits = [each.module(IMAGE) for each in (result, recovered, unrecovered)]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[1], logits[2])
    assert result.metrics["data"]["class_names"] == list("abcdefg") and result.image_size == (32, 32) and result.in_channels == 3
    dense = prepare(make("vit"))
    own, of_dense = (set(each.state_dict()["head.weight"].flatten().tolist()) for each in (unrecovered.module, dense.module))
    assert own < of_dense  # a slice, not the untrained network
    with pytest.raises(RunError, match=r"checkpoint of trial 2 is gone; the result of the run is in"):
        picked(load(run), "trial:2")


def test_measure_takes_the_front_of_a_pruning_with_its_result_and_one_plan(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["measure", "--run", str(run), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["points"]
    assert [(row["trial"], row["result"]) for row in rows] == [(0, False), (1, False), (2, True)]  # trial 2 is not on the front
    assert cli.main(["measure", "--arch", str(run / "pruned" / "arch.json"), "--device", "cpu?noise=keep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input_shape"] == [1, 3, 32, 32]


def test_show_draws_a_member_and_export_writes_the_result(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 40), "green").save(tmp_path / "photo.png")
    for words in ([], ["--pick", "best"], ["--pick", "trial:0"]):
        assert cli.main(["show", str(run), "--image", str(tmp_path / "photo.png"), "--out", str(tmp_path / "t.png"), *words]) == 0
        with Image.open(tmp_path / "t.png") as picture:
            assert picture.format == "PNG"
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert cli.main(["export", str(run)]) == 0
    said = capsys.readouterr().out
    assert "pruned" in said and "the result of a pruning" in said and "train it in full" not in said
    assert list(run.glob("export/*-onnxruntime/predict.py"))


def test_a_plan_is_not_trained_and_the_next_step_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", str(run)], ["train", "--arch", str(run / "pruned" / "arch.json"), "--data", "digits"]):
        assert cli.main(words) == 2
        assert "prune once more, with a larger --recover-epochs and another --out" in capsys.readouterr().err
