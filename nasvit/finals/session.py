"""One full training: resumable, then one look at the test split, then the latency once more."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasvit.cost import count
from nasvit.data import DataSet, load_test
from nasvit.devices import Device, machine_lock
from nasvit.errors import ConfigError, DataError, MeasurementError, RunError, UnsupportedOpError
from nasvit.finals.history import History
from nasvit.finals.plan import EPOCHS, FinalPlan
from nasvit.finals.subject import Subject
from nasvit.finals.teacher import load_teacher
from nasvit.finals.trained import ARCH, METRICS, PLAN, STATE, WEIGHTS, read_metrics, write_json, write_text
from nasvit.models.weight_file import read_weights, write_weights
from nasvit.training import ALONE, Checkpoint, Moment, Numerics, Recipe, Watch, World, evaluate, train

PROBE_STEPS = 12
"""Steps that tell the speed where a training is given minutes; the first two only warm up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What every full training of a command shares. data_spec, split_seed: where the test part comes from. recipe: resolved.
    device: torch's, to train on. folder: parent of the folders by id."""

    data: DataSet
    data_spec: str
    split_seed: int
    plan: FinalPlan
    recipe: Recipe
    folder: Path
    device: str = "cpu"
    versions: dict[str, str] | None = None


def train_in_full(subject: Subject, task: Task, *, world: World = ALONE, report: Callable[[Moment], None] | None = None,
                  goes_on: Callable[[int], object] = lambda step: None, measure_on: Callable[[], Device] | None = None,
                  anew: bool = False) -> dict[str, Any]:
    """Train into `task.folder / subject.id` and return its metrics; a killed training goes on, a finished one is only read.

    The test split is read once, at the end. goes_on: hears the step a killed training goes on from. measure_on: opens the device on which
    the latency is measured afterwards, by the first process alone; with `anew` also where there is a latency of another device already.
    Raises RunError where the folder holds a training of another plan.
    """
    place = task.folder / subject.id
    known = known_plan(subject, task)
    if not (place / METRICS).exists():
        place.mkdir(parents=True, exist_ok=True)
        module = subject.make_for(task.data, seed=task.plan.seed, drop_path=task.plan.drop_path)
        teacher = None if task.plan.teacher is None else load_teacher(task.plan.teacher, task.data)
        steps = int(known["steps"]) if known else _agreed_steps(place, subject, task, module, teacher, world=world)
        history = History(place, then=report) if world.first else None
        per_epoch = max(1, len(task.data.train) // min(task.recipe.batch_size, len(task.data.train)))
        every = min(per_epoch, 50)
        looks = max(1, round(task.plan.validate_epochs * per_epoch / every)) * every
        watch = Watch(report=history.report if history else _nothing, every=every, validate_every=looks, goes_on=goes_on)
        # processes that wait for each other must not wait for the machine lock as well
        guard = machine_lock.training if world.size == 1 else nullcontext
        result = train(module, task.data, steps=steps, seed=task.plan.seed, recipe=task.recipe, device=task.device, teacher=teacher,
                       step_guard=guard, watch=watch, world=world,
                       checkpoint=Checkpoint(path=place / STATE, every_s=task.plan.checkpoint_s))
        if history is not None:
            history.close()
            _finish(place, subject, task, module, trained=asdict(result))
    world.meet()
    metrics = read_metrics(place)
    if world.first and metrics.get("test_missing"):
        metrics = _tested_at_last(place, subject, task, metrics)
    if measure_on is not None and world.first and (anew or metrics.get("latency") is None):
        metrics = _remeasured(place, subject, metrics, measure_on=measure_on, seed=task.plan.seed)
    return metrics


def _nothing(moment: Moment) -> None:
    """Only the first process tells."""


def _wanted(subject: Subject, task: Task) -> dict[str, Any]:
    """What makes a training this one, JSON-able."""
    wanted = {"subject": subject.label, **task.plan.model_dump(mode="json", exclude={"checkpoint_s", "validate_epochs"}),
              "recipe": asdict(task.recipe), "data": task.data.fingerprint}
    found: dict[str, Any] = json.loads(json.dumps(wanted))
    return found


def known_plan(subject: Subject, task: Task) -> dict[str, Any] | None:
    """The plan of the training in the subject's folder, finished or not; None where there is none. Raises RunError for another's."""
    place = task.folder / subject.id
    if not (place / PLAN).exists():
        return None
    known: dict[str, Any] = json.loads((place / PLAN).read_text(encoding="utf-8"))
    differs = [name for name, value in _wanted(subject, task).items() if known.get(name) != value]
    if differs:
        raise RunError(f"{place} holds a training of another plan ({', '.join(differs)} differ); go on with the same settings, remove the "
                       "folder, or choose another --out")
    return known


def _agreed_steps(place: Path, subject: Subject, task: Task, module: nn.Module, teacher: nn.Module | None, *, world: World) -> int:
    """The number of steps, decided once and kept in plan.json, so that a training on minutes goes on to the same end."""
    plan, path = task.plan, place / PLAN
    if plan.minutes is None:
        size = min(task.recipe.batch_size, len(task.data.train))
        steps = max(1, round((plan.epochs or EPOCHS) * len(task.data.train) / size))
    else:
        steps = max(1, int(60 * plan.minutes / _seconds_per_step(module, task, teacher, world=world)))
    world.meet()  # nobody looks for the file before everybody has looked
    if world.first:
        write_json(path, {**_wanted(subject, task), "steps": steps})
    world.meet()
    return int(json.loads(path.read_text(encoding="utf-8"))["steps"])


def _seconds_per_step(module: nn.Module, task: Task, teacher: nn.Module | None, *, world: World) -> float:
    """From a few steps of a copy."""
    moments: list[Moment] = []
    train(copy.deepcopy(module), task.data, steps=PROBE_STEPS, seed=task.plan.seed, recipe=task.recipe, device=task.device, teacher=teacher,
          watch=Watch(report=moments.append, every=1), world=world)
    return (moments[-1].seconds - moments[1].seconds) / (PROBE_STEPS - 2)


def _finish(place: Path, subject: Subject, task: Task, module: nn.Module, *, trained: dict[str, Any]) -> None:
    """Weights, then the one look at the test split, then metrics.json, which says that the training is done."""
    data = task.data
    write_weights(place / WEIGHTS, module.state_dict())
    if subject.arch is not None:
        write_text(place / ARCH, subject.arch.to_json() + "\n")
    tested = _tested(task, lambda: module)
    metrics = {"id": subject.id, "label": subject.label, "model": subject.model, **tested, "val_accuracy": trained["accuracy"],
               "val_loss": trained["val_loss"], "train_loss": trained["loss"], "steps": trained["steps"], "epochs": trained["epochs"],
               "seconds": trained["seconds"], "searched": dict(subject.searched), **_counted(module, task), "latency": None,
               "data": {"name": data.name, "spec": task.data_spec, "fingerprint": data.fingerprint, "image_size": list(data.image_size),
                        "mean": list(data.mean), "std": list(data.std), "class_names": list(data.class_names)},
               "plan": task.plan.model_dump(mode="json"), "recipe": asdict(task.recipe), "versions": task.versions or {},
               "trained_on": Numerics.of(torch.device(task.device), task.recipe).describe()}
    write_json(place / METRICS, metrics)
    (place / STATE).unlink(missing_ok=True)


def _tested(task: Task, module: Callable[[], nn.Module]) -> dict[str, Any]:
    """What the test split says; where it cannot be read, why: a folder without a test part is still worth training."""
    try:
        test = load_test(task.data_spec, seed=task.split_seed, image_size=task.data.image_size)
    except DataError as error:
        return {"test_accuracy": None, "test_loss": None, "test_images": 0, "test_missing": str(error)}
    accuracy, loss = evaluate(module(), test, data=task.data, device=task.device, recipe=task.recipe)
    return {"test_accuracy": accuracy, "test_loss": loss, "test_images": len(test)}


def _tested_at_last(place: Path, subject: Subject, task: Task, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a finished training whose test split could not be read: it may be there by now."""
    def trained() -> nn.Module:
        module = subject.make_for(task.data, seed=task.plan.seed, drop_path=task.plan.drop_path)
        module.load_state_dict(read_weights(place / WEIGHTS))
        return module

    found = {key: value for key, value in metrics.items() if key != "test_missing"} | _tested(task, trained)
    write_json(place / METRICS, found)
    return found


def _counted(module: nn.Module, task: Task) -> dict[str, Any]:
    try:
        cost = count(module, input_shape=(1, task.data.in_channels, *task.data.image_size))
    except UnsupportedOpError as error:  # of a model of timm: its accuracy is worth having even so
        return {"params_m": sum(p.numel() for p in module.parameters()) / 1e6, "macs_g": None, "uncounted": str(error)}
    return {"params_m": cost.params / 1e6, "macs_g": cost.macs / 1e9}


def _remeasured(place: Path, subject: Subject, metrics: dict[str, Any], *, measure_on: Callable[[], Device], seed: int) -> dict[str, Any]:
    """The latency as the search measures it: of the network as it is built. One that this device gave before is believed.

    One that cannot be measured now, or whose device is not there, is said in metrics.json and measured the next time: a training, and those
    that follow it, are worth more than its figure.
    """
    before = metrics.get("latency")
    data = metrics["data"]
    size, channels = tuple(data["image_size"]), len(data["mean"])
    module = subject.make(image_size=size, in_channels=channels, num_classes=len(data["class_names"]), seed=seed)
    known = {key: value for key, value in metrics.items() if key != "latency_missing"}
    try:
        device = measure_on()
        if before is not None and before.get("fingerprint") == device.fingerprint:
            return metrics
        metrics = {**known, "latency": device.measure(module, input_shape=(1, channels, *size), patient=True).to_dict()}
    except (ConfigError, MeasurementError) as error:
        metrics = {**known, "latency": before, "latency_missing": str(error)}
    write_json(place / METRICS, metrics)
    return metrics


def usual_device() -> str:
    """cuda where there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> str:
    """`name` if torch can train there; raises ConfigError."""
    if name == "cpu" or (name.partition(":")[0] == "cuda" and torch.cuda.is_available()):
        return name
    also = ", cuda" if torch.cuda.is_available() else " (there is no CUDA GPU)"
    raise ConfigError(f"cannot train on {name!r} here; accepted: cpu{also}")
