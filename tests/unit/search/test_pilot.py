"""How long trainings are where nobody says it."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from nasvit.data import DataSet, Images
from nasvit.errors import TrainingError
from nasvit.experiment import Experiment
from nasvit.proxies.base import Score
from nasvit.search import pilot, session
from nasvit.search.pilot import ladder, two_epochs
from nasvit.search.progress import Snapshot
from nasvit.space import SearchSpace
from nasvit.training import Recipe


@pytest.mark.parametrize(("images", "rungs"), [
    (100, (30, 60, 120)), (1199, (30, 60, 120)), (3840, (30, 120, 240)), (7680, (30, 60, 240, 480)), (50_000, (195, 390, 1562, 3125))])
def test_a_ladder_ends_at_two_epochs_and_begins_with_30_steps_or_more(images: int, rungs: tuple[int, ...]) -> None:
    assert ladder(two_epochs(images, batch_size=32)) == rungs


def images(count: int, *, labels: list[int] | None = None, seed: int = 0) -> Images:
    """Noise: nothing can be learned of it."""
    made = torch.randint(0, 256, (count, 1, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Images(images=made, labels=torch.tensor(labels or [i % 2 for i in range(count)]))


def noise(*, train: int = 64, val: list[int] | None = None) -> DataSet:
    return DataSet(name="noise", train=images(train), val=images(len(val) if val else 20, labels=val, seed=1), class_names=("a", "b"),
                   mean=(0.5,), std=(0.3,), fingerprint="0" * 12, skipped=0, notes=())


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.load("hybrid_tiny", image_size=(16, 16), in_channels=1, num_classes=2)


Course = list[tuple[int, int]]


def taught(monkeypatch: pytest.MonkeyPatch, accuracies: list[float], *, seconds: float = 1.0) -> Course:
    """Trainings that give these accuracies one after the other; returns (steps, steps before) of each."""
    asked: Course = []

    def fit(module: Any, data: Any, *, budget: int, steps_before: int, **_: Any) -> Score:
        asked.append((budget, steps_before))
        return Score(value=accuracies[len(asked) - 1], seconds=seconds, details={})

    monkeypatch.setattr("nasvit.proxies.short_train.fit", fit)
    return asked


def flown(space: SearchSpace, data: DataSet, *, seconds: float | None = None) -> pilot.Pilot:
    return pilot.fly(space, data, base=two_epochs(len(data.train), batch_size=32), seed=0, recipe=Recipe(), device="cpu", seconds=seconds,
                     step_guard=nullcontext)


def test_what_is_learned_in_the_first_cycle_needs_no_longer_rungs_and_no_word(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = taught(monkeypatch, [0.63])  # from a half a quarter of the way to one: 0.625
    found = flown(space, noise())
    assert (found.steps, found.learned, found.told(), asked) == (120, True, (), [(30, 0)])
    taught(monkeypatch, [0.63])
    assert flown(space, noise(train=9600)).steps == 600  # so many images ask for more than the network did


def test_harder_images_are_trained_on_in_warm_restarts_until_they_are_learned(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = taught(monkeypatch, [0.5, 0.5, 0.55, 0.60, 0.70])
    found = flown(space, noise())
    assert asked == [(30, 0), (30, 30), (60, 60), (120, 120), (240, 240)]
    assert found.accuracy == {30: 0.5, 60: 0.5, 120: 0.55, 240: 0.60, 480: 0.70}
    assert (found.steps, found.learned, found.seconds) == (480, True, 5.0)
    assert found.told() == ("a first network was right on 70.0% of the validation images after 480 steps (chance 50.0%): the longest "
                            "trainings have 480 steps",)


def test_images_that_are_not_learned_end_the_pilot_and_the_user_is_told(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    taught(monkeypatch, [0.5] * 9)
    found = flown(space, noise())
    assert (found.steps, found.learned, list(found.accuracy)) == (pilot.LONGEST, False, [30, 60, 120, 240, 480, 960])
    assert "hardly learning" in found.told()[0] and "labels" in found.told()[0]


def test_the_longest_training_leaves_time_for_many_networks(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    taught(monkeypatch, [0.5] * 9, seconds=2.0)
    assert flown(space, noise(), seconds=15.0).steps == 240  # four cycles of 2 seconds are 8, and twice the steps 16
    taught(monkeypatch, [0.5] * 9, seconds=2.0)
    short = flown(space, noise(), seconds=0.1)
    assert short.steps == 120 and list(short.accuracy) == [30] and "more minutes" in short.told()[0]


def test_chance_is_the_share_of_the_commonest_class(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(val=[0] * 16 + [1] * 4)
    taught(monkeypatch, [0.84, 0.86])
    found = flown(space, data)
    assert found.chance == pytest.approx(0.8) and found.accuracy == {30: 0.84, 60: 0.86}


def test_the_first_network_is_the_middle_one_of_the_space_and_follows_from_the_seed(space: SearchSpace) -> None:
    assert pilot.first_network(space, seed=3).id == pilot.first_network(space, seed=3).id
    assert len({pilot.first_network(space, seed=seed).id for seed in range(4)}) > 1


def test_many_images_need_no_pilot(space: SearchSpace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = taught(monkeypatch, [0.9])

    def rungs(count: int) -> tuple[int, ...] | None:
        data = dataclasses.replace(noise(), train=images(count))
        experiment = Experiment(space="hybrid_tiny", recipe={"batch_size": 2})
        return session._with_rungs(experiment, space, data, before={}, out=tmp_path, env={}, train_on="cpu", progress=None).rungs

    assert rungs(960) == (60, 120, 480, 960) and asked == []
    assert rungs(959) == (59, 119, 479, 959) and asked == [(30, 0)]


def test_a_pilot_that_cannot_be_trained_ends_no_search(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(*_: Any, **__: Any) -> Score:
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr("nasvit.proxies.short_train.fit", diverged)
    found = flown(space, noise())
    assert (found.steps, found.learned, found.accuracy) == (120, False, {}) and "the loss is not finite" in found.told()[0]
    assert found.to_dict()["reason"] == "the loss is not finite"


def test_a_session_takes_what_the_pilot_says_and_a_resumed_one_what_the_run_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def searched(experiment: Experiment, bound: session.Bound, **_: Any) -> dict[str, Any]:
        seen.append((bound.settings.rungs, bound.notes))
        return {"stopped_because": "budget", "evaluated": 1}

    monkeypatch.setattr(session, "search_bound", searched)
    asked = taught(monkeypatch, [0.1, 0.1, 0.15, 0.2, 0.9])
    experiment = Experiment(space="hybrid_tiny", data="digits", engine="inline")
    out = tmp_path / "run"
    told: list[Snapshot] = []
    session.run(experiment, out=out, reference_ms=1.0, progress=told.append)
    assert [t.notes[0].rpartition("for ")[2] for t in told] == [
        "30 steps", "30 steps more than 30", "60 steps more than 60", "120 steps more than 120", "240 steps more than 240"]
    assert seen[0][0] == (30, 60, 240, 480) and "the longest trainings have 480 steps" in seen[0][1][-1]
    session.run(experiment, out=out, reference_ms=1.0, resume=True)
    assert seen[1] == seen[0] and len(asked) == 5  # nothing was trained for it again
    session.run(experiment.model_copy(update={"rungs": (8, 16)}), out=tmp_path / "given", reference_ms=1.0)
    assert seen[2][0] == (8, 16) and len(asked) == 5
