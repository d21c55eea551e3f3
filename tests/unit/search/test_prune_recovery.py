"""How long recovery trains, and what is known of the dense training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nasvit.errors import ConfigError
from nasvit.experiment import PruneExperiment
from nasvit.results.record import TrialRecord
from nasvit.search.prune_recovery import check_rungs, curve, dense_training, rungs_of


def experiment(folder: Path, **values: object) -> PruneExperiment:
    return PruneExperiment.model_validate({"model": str(folder / "model.safetensors"), "arch": "arch.json", **values})


def rungs(given: PruneExperiment, *, per_epoch: int = 10) -> tuple[int, ...]:
    return rungs_of(given, per_epoch=per_epoch, dense_steps=dense_training(given, per_epoch=per_epoch)[0])


def test_where_the_dense_training_is_known_recovery_is_1_3_and_10_percent_of_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"steps": 3700}))
    steps, words = dense_training(experiment(tmp_path), per_epoch=10)
    assert steps == 3700 and str(tmp_path / "metrics.json") in words
    assert rungs(experiment(tmp_path)) == (0, 37, 111, 370)
    assert rungs(experiment(tmp_path, dense_steps=1000)) == (0, 10, 30, 100)
    assert rungs(experiment(tmp_path, dense_epochs=20)) == (0, 2, 6, 20)
    assert rungs(experiment(tmp_path, recover_epochs=10)) == (0, 10, 30, 100)  # what is asked for wins
    assert rungs(experiment(tmp_path, recover_epochs=0)) == (0,)
    named = PruneExperiment(model="timm:deit_tiny_patch16_224", checkpoint=str(tmp_path / "model.safetensors"))
    assert dense_training(named, per_epoch=10)[0] == 3700


def test_the_dense_network_of_a_run_keeps_what_was_known_of_its_training(tmp_path: Path) -> None:
    (tmp_path / "prune.json").write_text(json.dumps({"dense_steps": 500}))
    assert dense_training(experiment(tmp_path / "dense"), per_epoch=10)[0] == 500
    assert dense_training(experiment(tmp_path / "other"), per_epoch=10)[0] is None


@pytest.mark.parametrize("text", ['{"loss": 0.3}', '{"steps": true}', '{"steps": 0}', '{"steps": "many"}', "[]", None])
def test_where_it_is_not_known_that_is_said_and_recovery_is_three_epochs(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    steps, words = dense_training(experiment(tmp_path), per_epoch=10)
    assert steps is None and "not known" in words and "--dense-epochs" in words
    assert rungs(experiment(tmp_path)) == (0, 3, 9, 30)
    assert dense_training(PruneExperiment(model="timm:deit_tiny_patch16_224"), per_epoch=10)[0] is None


def test_rungs_of_a_users_own_are_refused_and_those_of_the_recovery_are_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 5\] are not those of this recovery, \[0, 3, 9, 30\]"):
        check_rungs(experiment(tmp_path, rungs=(0, 5)), (0, 3, 9, 30))
    check_rungs(experiment(tmp_path, rungs=(0, 3, 9, 30)), (0, 3, 9, 30))


def test_the_curve_has_shares_only_where_there_is_a_whole() -> None:
    one = TrialRecord(trial=4, status="complete", rung=1, arch=None, arch_id="0" * 12, label="it", objectives={"accuracy": 0.5})
    records = [replace(one, rung=2, objectives={"accuracy": 0.7}), one, replace(one, trial=5), replace(one, rung=3, status="failed")]
    assert curve(records, one, rungs=(0, 10, 30), dense_steps=1000) == [
        {"steps": 0, "share_of_dense": 0.0, "accuracy": 0.5}, {"steps": 10, "share_of_dense": 0.01, "accuracy": 0.7}]
    assert curve(records, one, rungs=(0, 10, 30), dense_steps=None) == [{"steps": 0, "accuracy": 0.5}, {"steps": 10, "accuracy": 0.7}]
