from __future__ import annotations

import csv
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nasvit import data
from nasvit.arch import Arch
from nasvit.errors import CheckpointError, ConfigError, MeasurementError, RunError
from nasvit.finals import FinalPlan, Subject, Task, load_trained, session, train_in_full
from nasvit.finals.teacher import load_teacher
from nasvit.training import Moment, Recipe, evaluate, loop


class Killed(Exception):
    """Stands for a SIGKILL."""


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    whole = data.load("digits", seed=0)
    return replace(whole, train=data.Images(images=whole.train.images[:256], labels=whole.train.labels[:256]))


def task(digits: data.DataSet, folder: Path, *, recipe: dict[str, Any] | None = None, **plan: Any) -> Task:
    made = FinalPlan(**{"epochs": 2, "checkpoint_s": 0, "validate_epochs": 1, **plan})
    return Task(data=digits, data_spec="digits", split_seed=0, plan=made, recipe=made.full_recipe({"ema": 0.9, **(recipe or {})}),
                folder=folder)


def test_a_full_training_leaves_weights_arch_metrics_and_history_and_reads_back(digits: data.DataSet, tiny_arch: Arch,
                                                                                tmp_path: Path) -> None:
    metrics = train_in_full(Subject.of_arch(tiny_arch, origin="search", accuracy=0.5), task(digits, tmp_path))
    place = tmp_path / tiny_arch.id
    assert metrics == json.loads((place / "metrics.json").read_text())
    left = {path.name for path in place.iterdir()} - {"tensorboard"}
    assert left == {"model.safetensors", "arch.json", "metrics.json", "history.csv", "plan.json"}
    trained = load_trained(place)
    assert trained.subject.arch == tiny_arch and not trained.module.training
    test = data.load_test("digits", seed=0)
    accuracy, loss = evaluate(trained.module, test, data=digits)
    assert (metrics["test_accuracy"], metrics["test_images"]) == (accuracy, len(test)) and metrics["test_loss"] == pytest.approx(loss)
    assert metrics["searched"]["accuracy"] == 0.5 and metrics["data"]["class_names"] == list(digits.class_names)
    rows = list(csv.DictReader((place / "history.csv").open()))
    assert [int(row["step"]) for row in rows] == [8, 16] and rows[0]["val_accuracy"] and not rows[1]["val_accuracy"]


def test_a_killed_training_goes_on_to_the_same_end_and_its_history_has_no_row_twice(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path,
                                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "train", lambda *a, **k: _often(*a, **k))
    subject = Subject.of_arch(tiny_arch)

    def kill(moment: Moment) -> None:
        if moment.step == 8:
            raise Killed

    whole = train_in_full(subject, task(digits, tmp_path / "whole", drop_path=0.1))
    with pytest.raises(Killed):
        train_in_full(subject, task(digits, tmp_path / "killed", drop_path=0.1), report=kill)
    again = train_in_full(subject, task(digits, tmp_path / "killed", drop_path=0.1))
    a, b = (load_file(tmp_path / name / tiny_arch.id / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a) and whole["test_loss"] == again["test_loss"]
    steps = [row["step"] for row in csv.DictReader((tmp_path / "killed" / tiny_arch.id / "history.csv").open())]
    assert steps == [str(n) for n in range(1, 17)]


def test_the_seconds_of_a_killed_training_count_and_it_is_told_where_it_goes_on(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path,
                                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "train", lambda *a, **k: _often(*a, **k))
    subject, heard = Subject.of_arch(tiny_arch), []

    def slow_then_kill(moment: Moment) -> None:
        tick(30 if moment.step == 4 else 0)
        if moment.step == 8:
            raise Killed

    now = 0.0

    def tick(seconds: float = 0.01) -> float:  # every look at the clock takes a hundredth of a second
        nonlocal now
        now += seconds
        return now

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=tick, perf_counter=tick))
    with pytest.raises(Killed):
        train_in_full(subject, task(digits, tmp_path), report=slow_then_kill, goes_on=heard.append)
    assert heard == []
    metrics = train_in_full(subject, task(digits, tmp_path), goes_on=heard.append)
    assert heard == [7]
    seconds = [float(row["seconds"]) for row in csv.DictReader((tmp_path / tiny_arch.id / "history.csv").open())]
    assert len(seconds) == 16 and seconds == sorted(seconds) and seconds[6] > 30
    assert metrics["seconds"] > seconds[-1]
    assert metrics["trained_on"] == {"device": "cpu", "precision": "float32"}


def _often(*given: Any, **named: Any) -> Any:
    from nasvit.training import train

    return train(*given, **{**named, "watch": replace(named["watch"], every=1)})


def test_the_test_split_is_read_once_and_a_finished_training_is_only_read(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    reads, plain = [], session.load_test
    monkeypatch.setattr(session, "load_test", lambda *a, **k: (reads.append(a), plain(*a, **k))[1])
    subject = Subject.of_arch(tiny_arch)
    first = train_in_full(subject, task(digits, tmp_path))
    before = (tmp_path / tiny_arch.id / "model.safetensors").read_bytes()
    assert train_in_full(subject, task(digits, tmp_path)) == first and len(reads) == 1
    assert (tmp_path / tiny_arch.id / "model.safetensors").read_bytes() == before


def test_another_plan_in_the_same_folder_is_refused(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    def kill(moment: Moment) -> None:
        raise Killed

    subject = Subject.of_arch(tiny_arch)
    with pytest.raises(Killed):
        train_in_full(subject, task(digits, tmp_path), report=kill)
    with pytest.raises(RunError, match=r"another plan \(seed, recipe differ\)"):
        train_in_full(subject, task(digits, tmp_path, seed=1, recipe={"lr": 1e-3}))


def test_a_finished_training_of_another_plan_or_of_other_data_is_not_passed_off_as_this_one(digits: data.DataSet, tiny_arch: Arch,
                                                                                           tmp_path: Path) -> None:
    subject = Subject.of_arch(tiny_arch)
    train_in_full(subject, task(digits, tmp_path))
    for other in (task(digits, tmp_path, epochs=50), task(replace(digits, fingerprint="another"), tmp_path)):
        with pytest.raises(RunError, match=r"another plan \((epochs|data) differ\)"):
            train_in_full(subject, other)


def test_minutes_fix_the_steps_once(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, speeds = Subject.of_arch(tiny_arch), iter([0.5, 99.0])
    monkeypatch.setattr(session, "_seconds_per_step", lambda *a, **k: next(speeds))

    def kill(moment: Moment) -> None:
        raise Killed

    with pytest.raises(Killed):
        train_in_full(subject, task(digits, tmp_path, epochs=None, minutes=0.1), report=kill)
    assert train_in_full(subject, task(digits, tmp_path, epochs=None, minutes=0.1))["steps"] == 12


def test_the_speed_of_a_step_is_measured_on_a_copy(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    module = Subject.of_arch(tiny_arch).make_for(digits, seed=0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert 0 < session._seconds_per_step(module, task(digits, tmp_path), None, world=session.ALONE) < 5
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_data_without_a_test_part_is_trained_and_says_so(tiny_arch: Arch, digits: data.DataSet, tmp_path: Path) -> None:
    import numpy as np

    images = np.random.default_rng(0).integers(0, 255, (60, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "x_train.npz", images=images, labels=np.arange(60) % 10)
    loaded = data.load(str(tmp_path), seed=0)
    plan = FinalPlan(epochs=1)
    metrics = train_in_full(Subject.of_arch(tiny_arch), Task(data=loaded, data_spec=str(tmp_path), split_seed=0, plan=plan,
                                                             recipe=Recipe(batch_size=8), folder=tmp_path / "out"))
    assert metrics["test_accuracy"] is None and "test" in metrics["test_missing"] and metrics["val_accuracy"] >= 0
    np.savez(tmp_path / "x_test.npz", images=images[:20], labels=np.arange(20) % 10)  # mended: the same command reads it now
    again = train_in_full(Subject.of_arch(tiny_arch), Task(data=loaded, data_spec=str(tmp_path), split_seed=0, plan=plan,
                                                           recipe=Recipe(batch_size=8), folder=tmp_path / "out"))
    assert again["test_images"] == 20 and again["test_accuracy"] >= 0 and "test_missing" not in again
    assert {k: v for k, v in again.items() if not k.startswith("test_")} == {k: v for k, v in metrics.items() if not k.startswith("test_")}


def test_the_latency_is_measured_after_the_training_once(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    class Stats:
        def to_dict(self) -> dict[str, float]:
            return {"median_ms": 1.5}

    class Watch:
        calls = 0

        def measure(self, module: Any, *, input_shape: tuple[int, ...], patient: bool) -> Stats:
            Watch.calls += 1
            assert input_shape == (1, 1, 16, 16) and patient
            return Stats()

    for _ in range(2):
        metrics = train_in_full(Subject.of_arch(tiny_arch), task(digits, tmp_path), measure_on=Watch)  # type: ignore[arg-type]
    assert metrics["latency"] == {"median_ms": 1.5} and Watch.calls == 1


def test_a_latency_that_cannot_be_measured_now_is_measured_the_next_time(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    class Noisy:
        def measure(self, module: Any, *, input_shape: tuple[int, ...], patient: bool) -> Any:
            raise MeasurementError("no stable latency")

    class Calm:
        def measure(self, module: Any, *, input_shape: tuple[int, ...], patient: bool) -> Any:
            return SimpleNamespace(to_dict=lambda: {"median_ms": 2.0})

    subject = Subject.of_arch(tiny_arch)
    first = train_in_full(subject, task(digits, tmp_path), measure_on=Noisy)  # type: ignore[arg-type]
    assert first["latency"] is None and first["latency_missing"] == "no stable latency" and first["test_accuracy"] is not None
    second = train_in_full(subject, task(digits, tmp_path), measure_on=Calm)  # type: ignore[arg-type]
    assert second["latency"] == {"median_ms": 2.0} and "latency_missing" not in second


def test_a_device_that_is_not_there_costs_a_training_only_its_latency(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    def absent() -> Any:
        raise ConfigError("runtime openvino cannot be used here")

    metrics = train_in_full(Subject.of_arch(tiny_arch), task(digits, tmp_path), measure_on=absent)
    assert metrics["latency"] is None and metrics["latency_missing"] == "runtime openvino cannot be used here"


def test_another_device_measures_anew_only_where_it_is_asked_for(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    asked: list[str] = []

    def on(name: str) -> Any:
        def measure(module: Any, *, input_shape: tuple[int, ...], patient: bool) -> Any:
            asked.append(name)
            return SimpleNamespace(to_dict=lambda: {"median_ms": 2.0, "fingerprint": name})

        return lambda: SimpleNamespace(fingerprint=name, measure=measure)

    for name, anew in (("laptop", False), ("laptop", True), ("pi", False), ("pi", True), ("pi", True)):
        metrics = train_in_full(Subject.of_arch(tiny_arch), task(digits, tmp_path), measure_on=on(name), anew=anew)
    assert asked == ["laptop", "pi"] and metrics["latency"]["fingerprint"] == "pi"


def test_a_model_of_timm_and_of_the_zoo_train_and_read_back(digits: data.DataSet, tmp_path: Path) -> None:
    colour = replace(digits, train=data.Images(images=digits.train.images.repeat(1, 3, 2, 2), labels=digits.train.labels),
                     val=data.Images(images=digits.val.images[:64].repeat(1, 3, 2, 2), labels=digits.val.labels[:64]), mean=digits.mean * 3,
                     std=digits.std * 3)
    for name in ("test_vit", "casvit_xs"):
        made = Task(data=colour, data_spec="none/there", split_seed=0, plan=FinalPlan(epochs=0.1, drop_path=0.1), recipe=Recipe(),
                    folder=tmp_path)
        metrics = train_in_full(Subject.of_model(f"timm:{name}"), made)
        trained = load_trained(tmp_path / name)
        assert trained.subject.label == f"timm:{name}" == metrics["label"] and not (tmp_path / name / "arch.json").exists()
        assert trained.module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_folder_trained_here_teaches_and_so_does_a_checkpoint(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    train_in_full(Subject.of_arch(tiny_arch), task(digits, tmp_path))
    place = tmp_path / tiny_arch.id
    teacher, trained = load_teacher(str(place), digits), load_trained(place)
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(teacher(x), trained.module(x), atol=1e-5)
        assert teacher(torch.randn(2, 1, 24, 24)).shape == (2, 10)
    taught = train_in_full(Subject.of_arch(tiny_arch), task(digits, tmp_path / "taught", teacher=str(place)))
    a, b = (load_file(folder / tiny_arch.id / "model.safetensors") for folder in (tmp_path, tmp_path / "taught"))
    assert any(not torch.equal(a[name], b[name]) for name in a) and taught["plan"]["teacher"] == str(place)
    model = Subject.of_model("timm:test_vit").make(image_size=(16, 16), in_channels=1, num_classes=10, seed=1)
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    with torch.no_grad():
        assert torch.allclose(load_teacher(f"timm:test_vit@{tmp_path / 'teacher.safetensors'}", digits)(x), model.eval()(x), atol=1e-5)


def test_teachers_that_do_not_fit_are_refused(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1000 classes, the data has 10"):
        load_teacher("timm:resnet18", digits)
    with pytest.raises(ConfigError, match="no finished training"):
        load_teacher(str(tmp_path), digits)
    save_file({"strange": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="strange has no place"):
        load_teacher(f"timm:test_vit@{tmp_path / 'other.safetensors'}", digits)
    train_in_full(Subject.of_arch(tiny_arch), task(digits, tmp_path))
    with pytest.raises(ConfigError, match="not those of the data"):
        load_teacher(str(tmp_path / tiny_arch.id), replace(digits, class_names=tuple("abcdefghij")))


def test_a_teachers_own_normalisation_is_kept(digits: data.DataSet) -> None:
    from torch import nn

    from nasvit.finals.teacher import Teacher

    raw = torch.rand(2, 1, 4, 4)
    student = (raw - digits.mean[0]) / digits.std[0]
    teacher = Teacher(nn.Identity(), digits, size=(4, 4), mean=(0.3,), std=(0.7,))
    assert torch.allclose(teacher(student), (raw - 0.3) / 0.7, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_its_events(digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    train_in_full(Subject.of_arch(tiny_arch), task(digits, tmp_path))
    assert list((tmp_path / tiny_arch.id / "tensorboard").glob("events.*"))


def test_a_command_of_several_trainings_is_refused_before_the_first_where_one_folder_holds_another(
        digits: data.DataSet, tiny_arch: Arch, tmp_path: Path) -> None:
    from nasvit.commands.train import _train_all

    other = replace(tiny_arch, num_classes=10, stages=tiny_arch.stages[:1])
    train_in_full(Subject.of_arch(other), task(digits, tmp_path))
    with pytest.raises(RunError, match="another plan"):
        _train_all([Subject.of_arch(tiny_arch), Subject.of_arch(other)], task(digits, tmp_path, epochs=3), device="cpu", reference_ms=None,
                   fingerprint="", anew=False)
    assert not (tmp_path / tiny_arch.id).exists()
