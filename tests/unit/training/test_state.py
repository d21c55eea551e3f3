from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasvit import data
from nasvit.errors import CheckpointError, RunError
from nasvit.training import Checkpoint, Moment, Recipe, Watch, train

ROOT = Path(__file__).resolve().parents[3]
RECIPE = Recipe(ema=0.9, augment="rand-m5-n1", mixup=0.3, cutmix=0.5, erase=0.2)
STEPS = 24


class Killed(Exception):
    """Stands for a SIGKILL inside a process."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(32, 10))


def weights(module: nn.Module) -> Tensor:
    return torch.cat([v.double().flatten() for v in module.state_dict().values()])


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    whole = data.load("digits", seed=0)
    part = data.Images(images=whole.train.images[:96], labels=whole.train.labels[:96])
    return replace(whole, train=part, val=part)


def stopped_at(step: int) -> Watch:
    def report(moment: Moment) -> None:
        if moment.step == step:
            raise Killed

    return Watch(report=report, every=1)


@pytest.mark.parametrize("stop", [1, 2, 7, 23])
def test_a_training_stopped_anywhere_goes_on_and_ends_bit_equal(stop: int, digits: data.DataSet, tmp_path: Path) -> None:
    plain, broken, resumed = network(), network(), network()
    whole = train(plain, digits, steps=STEPS, seed=3, recipe=RECIPE)
    kept = Checkpoint(path=tmp_path / "state.safetensors", every_s=0)
    with pytest.raises(Killed):
        train(broken, digits, steps=STEPS, seed=3, recipe=RECIPE, checkpoint=kept, watch=stopped_at(stop + 1))
    nn.init.zeros_(resumed[0].weight)  # what it begins with no longer matters
    again = train(resumed, digits, steps=STEPS, seed=3, recipe=RECIPE, checkpoint=kept)
    assert torch.equal(weights(plain), weights(resumed))
    assert (whole.accuracy, whole.val_loss, whole.history) == (again.accuracy, again.val_loss, again.history)


def test_a_finished_training_is_not_trained_again(digits: data.DataSet, tmp_path: Path) -> None:
    kept, moments = Checkpoint(path=tmp_path / "state.safetensors"), []
    first, second = network(), network()
    train(first, digits, steps=5, seed=3, recipe=RECIPE, checkpoint=kept)
    train(second, digits, steps=5, seed=3, recipe=RECIPE, checkpoint=kept, watch=Watch(report=moments.append, every=1))
    assert not moments and torch.equal(weights(first), weights(second))


@pytest.mark.parametrize(("change", "named"), [({"seed": 4}, "seed"), ({"steps": 9}, "steps"), ({"recipe": Recipe(lr=1e-3)}, "recipe")])
def test_the_state_of_another_training_is_refused(change: dict[str, Any], named: str, digits: data.DataSet, tmp_path: Path) -> None:
    given: dict[str, Any] = {"steps": 5, "seed": 3, "recipe": RECIPE}
    kept = Checkpoint(path=tmp_path / "state.safetensors")
    train(network(), digits, **given, checkpoint=kept)
    with pytest.raises(RunError, match=f"another training: {named} differ"):
        train(network(), digits, **{**given, **change}, checkpoint=kept)


def test_a_damaged_state_is_refused_by_name(digits: data.DataSet, tmp_path: Path) -> None:
    kept = Checkpoint(path=tmp_path / "state.safetensors")
    kept.path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be read"):
        train(network(), digits, steps=5, seed=3, checkpoint=kept)


def test_the_state_is_a_safetensors_file_with_json_and_nothing_temporary_stays(digits: data.DataSet, tmp_path: Path) -> None:
    kept = Checkpoint(path=tmp_path / "state.safetensors")
    train(network(), digits, steps=5, seed=3, checkpoint=kept)
    raw = kept.path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["nasvit"])["step"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_moments_come_as_asked_and_validation_uses_the_average_without_touching_the_training(digits: data.DataSet) -> None:
    moments: list[Moment] = []
    plain, watched = network(), network()
    train(plain, digits, steps=9, seed=3, recipe=RECIPE)
    result = train(watched, digits, steps=9, seed=3, recipe=RECIPE, watch=Watch(report=moments.append, every=2, validate_every=4))
    assert [(m.step, m.val_accuracy is not None) for m in moments] == [(2, False), (4, True), (6, False), (8, True), (9, False)]
    assert torch.equal(weights(plain), weights(watched))
    assert moments[-1].epoch == pytest.approx(result.epochs) and moments[0].loss > 0


KILLED = """
import sys
from pathlib import Path
from tests.unit.training.test_state import network, small, RECIPE, STEPS
from nasvit.training import Checkpoint, Watch, train
import time, torch
torch.set_num_threads(1)
train(network(), small(), steps=STEPS, seed=3, recipe=RECIPE, checkpoint=Checkpoint(path=Path(sys.argv[1]), every_s=0),
      watch=Watch(report=lambda moment: time.sleep(0.02), every=1))
"""


def small() -> data.DataSet:
    whole = data.load("digits", seed=0)
    part = data.Images(images=whole.train.images[:96], labels=whole.train.labels[:96])
    return replace(whole, train=part, val=part)


@pytest.mark.slow
def test_a_process_killed_in_the_middle_leaves_a_state_that_ends_bit_equal(digits: data.DataSet, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    plain, resumed = network(), network()
    train(plain, digits, steps=STEPS, seed=3, recipe=RECIPE)
    train(resumed, digits, steps=STEPS, seed=3, recipe=RECIPE, checkpoint=Checkpoint(path=path))
    assert torch.equal(weights(plain), weights(resumed))
