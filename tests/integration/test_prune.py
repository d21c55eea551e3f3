"""A whole pruning of a timm model on real data and a real device: result on disk, report, resume, refusals.

Whether targets are met is measured by experiments/prune_targets.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nasvit.errors import CheckpointError, ConfigError, RunError
from nasvit.experiment import PruneExperiment
from nasvit.named import make_named
from nasvit.pruning.files import load
from nasvit.report import render
from nasvit.results.record import read
from nasvit.search.prune import prune, target_of

NAME = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    model = make_named(NAME, image_size=(32, 32), in_channels=1, num_classes=10, seed=0)
    save_file(model.state_dict(), path)
    return path


def experiment(weights: Path, **values: object) -> PruneExperiment:
    return PruneExperiment.model_validate({
        "model": f"timm:{NAME}", "checkpoint": str(weights), "data": "digits", "device": "cpu?noise=keep", "image_size": 32, "budget": 4,
        "engine": "inline", "sampler": "random", "recover_epochs": 0.3, **values})


@pytest.mark.slow
def test_a_pruned_model_is_on_disk_reported_and_its_run_goes_on_where_it_stopped(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    facts = prune(experiment(weights), out=out)
    assert facts["identity"] <= 1e-6 and facts == json.loads((out / "prune.json").read_text())
    records = read(out / "records.jsonl")
    assert len(records) >= 4 and facts["target_ms"] is None
    assert facts["pruned"]["macs_g"] < facts["dense"]["macs_g"] and len(facts["recovery"]) > 1
    assert facts["siblings"] == [] and facts["verdict"]["dominated"] is False  # deit_tiny is the smallest of its family
    module = load(out / "pruned" / "arch.json", out / "pruned" / "model.safetensors")
    assert module(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    onnx = facts["written"]["onnx"]
    assert (out / "pruned" / "model.onnx").exists() if onnx["file"] else "not installed" in onnx["why"]
    more = prune(experiment(weights, budget=5), out=out, resume=True)
    assert read(out / "records.jsonl")[: len(records)] == records and more["dense"] == facts["dense"]
    page = next(file for file in render(out) if file.suffix == ".html").read_text()
    assert "Dense, pruned, and the siblings" in page and "Recovery" in page
    with pytest.raises(RunError, match="other weights"):
        other = make_named(NAME, image_size=(32, 32), in_channels=1, num_classes=10, seed=1)
        save_file(other.state_dict(), tmp_path / "other.safetensors")
        prune(experiment(tmp_path / "other.safetensors", budget=6), out=out, resume=True)


def test_a_target_is_milliseconds_or_a_share_and_faster_than_dense() -> None:
    assert (target_of("0.6x", dense_ms=10.0), target_of("8ms", dense_ms=10.0), target_of(None, dense_ms=1.0)) == (6.0, 8.0, None)
    for wrong in ("1.2x", "0x", "x", "12ms", "fast"):
        with pytest.raises(ConfigError):
            target_of(wrong, dense_ms=10.0)


def test_weights_that_do_not_fit_and_models_without_classes_of_the_data_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pos_embed"):
        prune(experiment(weights, image_size=64), out=tmp_path / "a")  # its position table is another one
    with pytest.raises(ConfigError, match="did you mean"):
        prune(experiment(weights, model="timm:deit_tiny_patch16_223"), out=tmp_path / "b")
    with pytest.raises(ConfigError, match="--arch"):
        prune(experiment(weights, model=str(weights), checkpoint=None), out=tmp_path / "c")
    assert not list(tmp_path.iterdir())
