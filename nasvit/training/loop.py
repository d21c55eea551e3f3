"""The one training loop of the project: AdamW, warm-up and cosine, label smoothing, augmentation, clipping, EMA, distillation.

`train` has no hidden state: it starts from the module's present weights, so a higher rung is a warm restart of the cosine cycle
from the checkpoint of the lower one (Loshchilov & Hutter 2017, SGDR). With a `Checkpoint` it can be killed at any step and
goes on, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasvit.data import DataSet, Images
from nasvit.data.augment import Normaliser
from nasvit.errors import ConfigError, TrainingError
from nasvit.training.examples import Examples, seed_dropout
from nasvit.training.loss import Outputs, outputs_loss
from nasvit.training.optimiser import Average, default_lr, learning_rate, parameter_groups
from nasvit.training.recipe import Recipe
from nasvit.training.state import Checkpoint, Parts, identity, restore, save
from nasvit.training.world import ALONE, World

StepGuard = Callable[[], AbstractContextManager[object]]

HISTORY = 50  # entries at most
_GPU_CHECK = 16  # a look at the loss waits for the GPU, so there only every so many steps


@dataclass(frozen=True)
class TrainResult:
    """`accuracy` is validation top-1 (0..1); `loss` the mean training loss of the last tenth of the steps; `seconds` wall time in
    all, that of killed sessions up to their last checkpoint included; `waited` the seconds of it that this session waited for its guard;
    `history` at most HISTORY entries {"step", "loss", "lr"}."""

    accuracy: float
    loss: float
    val_loss: float
    steps: int
    epochs: float
    seconds: float
    waited: float
    history: tuple[dict[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where a training stands after `step` of `steps`: loss is the mean since the last Moment; the validation figures are None where
    none were taken. seconds: of training, that of killed sessions up to their last checkpoint included."""

    step: int
    steps: int
    epoch: float
    loss: float
    lr: float
    seconds: float
    val_accuracy: float | None = None
    val_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """`report` gets a Moment every `every` steps, with validation figures every `validate_every` steps (a multiple; 0: never).
    `goes_on` hears the step from which a killed training goes on."""

    report: Callable[[Moment], None]
    every: int
    validate_every: int = 0
    goes_on: Callable[[int], object] = lambda step: None


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a device computes: mixed precision or not, channels-last or not."""

    device: torch.device
    amp: bool
    channels_last: bool

    @classmethod
    def of(cls, device: torch.device, recipe: Recipe) -> Numerics:
        gpu = device.type == "cuda"
        return cls(device, gpu if recipe.amp is None else recipe.amp, gpu if recipe.channels_last is None else recipe.channels_last)

    @property
    def dtype(self) -> torch.dtype:
        """Of mixed precision."""
        plain = self.device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if plain else torch.float16

    def describe(self) -> dict[str, str]:
        """JSON-able: torch's device, the processor where torch names it, and the type in which training computes."""
        named = {"name": torch.cuda.get_device_name(self.device)} if self.device.type == "cuda" else {}
        return {"device": str(self.device), **named, "precision": str(self.dtype if self.amp else torch.float32).removeprefix("torch.")}

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.dtype) if self.amp else nullcontext()

    def layout(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def place(self, module: nn.Module) -> None:
        module.to(self.device)
        if self.channels_last:
            cast(Any, module).to(memory_format=torch.channels_last)


def train(
    module: nn.Module, data: DataSet, *, steps: int, seed: int, recipe: Recipe | None = None, device: str = "cpu",
    teacher: nn.Module | None = None, step_guard: StepGuard = nullcontext, steps_before: int = 0, checkpoint: Checkpoint | None = None,
    watch: Watch | None = None, world: World = ALONE,
) -> TrainResult:
    """Train `module` in place for `steps` steps from its present weights, then evaluate it on the validation part; it is left in eval mode.

    Bit-equal results for equal arguments on one CPU thread; the global random state is left as it was. `step_guard()` is entered
    around every step. `steps_before`: how long the module was trained before; the augmentation then goes on growing from there instead of
    starting again. `checkpoint`: a killed training goes on from it and ends bit-equal. `world`: the processes that share each
    batch; all call this alike, and get the same weights. Raises TrainingError where the loss is not finite, or the logits do not
    fit the classes; RunError where the checkpoint is of another training.
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}; accepted: 1 or above")
    started, waits = time.perf_counter(), [0.0]
    if step_guard is not nullcontext:
        step_guard = partial(_counted, step_guard, waits)
    recipe = recipe or Recipe()
    if recipe.lr is None:
        recipe = replace(recipe, lr=default_lr(module))
    where = torch.device(device)
    numerics = Numerics.of(where, recipe)
    numerics.place(module)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        losses, epochs, before = _run(module, data, steps=steps, seed=seed, recipe=recipe, numerics=numerics, teacher=teacher,
                                      step_guard=step_guard, steps_before=steps_before, checkpoint=checkpoint, watch=watch, world=world)
        history, loss = _history(losses, steps=steps, recipe=recipe)
        accuracy, val_loss = evaluate(module, data.val, data=data, device=device, step_guard=step_guard, recipe=recipe)
    if not math.isfinite(val_loss):
        raise TrainingError(f"the validation loss is {val_loss} after step {steps} of {steps} (lr {recipe.lr:g}); lower the recipe's lr "
                            "or set clip_grad")
    return TrainResult(accuracy=accuracy, loss=loss, val_loss=val_loss, steps=steps, epochs=epochs,
                       seconds=before + time.perf_counter() - started, waited=waits[0], history=history)


@contextmanager
def _counted(step_guard: StepGuard, waits: list[float]) -> Iterator[None]:
    """The guard, with the seconds that it made wait added to waits[0]."""
    asked = time.perf_counter()
    with step_guard():
        waits[0] += time.perf_counter() - asked
        yield


@torch.no_grad()
def evaluate(
    module: nn.Module, images: Images, *, data: DataSet, device: str = "cpu", batch_size: int = 256, step_guard: StepGuard = nullcontext,
    recipe: Recipe | None = None,
) -> tuple[float, float]:
    """Top-1 accuracy (0..1) and mean cross-entropy on `images`, normalised as `data` says; the module is left in eval mode.

    In float32 whatever the training computes in: it is what is exported, and what accuracies in other precisions are held against.
    """
    where = torch.device(device)
    numerics = Numerics.of(where, recipe or Recipe())
    module.to(where).eval()
    normalise = Normaliser.of(data.mean, data.std, device=where)
    right = loss = torch.zeros((), dtype=torch.float64, device=where)
    for pixels, labels in zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True):
        with step_guard():
            labels = labels.to(where)
            logits = module(numerics.layout(normalise(pixels.to(where))))
            loss = loss + F.cross_entropy(logits.float(), labels, reduction="sum")
            right = right + (logits.argmax(dim=1) == labels).sum()
            _finish(where, step_guard)
    return float(right) / len(images), float(loss) / len(images)


def _run(
    module: nn.Module, data: DataSet, *, steps: int, seed: int, recipe: Recipe, numerics: Numerics, teacher: nn.Module | None,
    step_guard: StepGuard, steps_before: int, checkpoint: Checkpoint | None, watch: Watch | None, world: World,
) -> tuple[list[float], float, float]:
    """The loop. Returns the loss of every step, the epochs they were, and the seconds of earlier sessions."""
    parts, device = _parts(module, recipe=recipe, numerics=numerics), numerics.device
    if teacher is not None:
        teacher.to(device).eval()
    with step_guard():
        _check_logits(module, data, numerics=numerics)
    examples = Examples(data, seed=seed, recipe=recipe, device=device, steps_before=steps_before, parts=recipe.accumulate * world.size)
    about = identity(module, data, steps=steps, seed=seed, recipe=recipe, parts=examples.parts)
    known, before = ([], 0.0) if checkpoint is None else restore(checkpoint.path, parts, about=about)
    losses = [loss.to(device) for loss in known]
    if losses and watch is not None:
        watch.goes_on(len(losses))
    runner = _runner(module, device=device, world=world)
    module.train()
    saved = time.monotonic()
    began = saved - before
    for step in range(len(losses), steps):
        with step_guard():
            lr = learning_rate(step, steps=steps, recipe=recipe)
            loss = _step(runner, parts, examples, step=step, lr=lr, seed=seed, recipe=recipe, numerics=numerics, teacher=teacher,
                         world=world)
            _finish(device, step_guard)
        losses.append(loss)
        if device.type == "cpu" or step % _GPU_CHECK == 0 or step == steps - 1:
            _check_finite(losses, step, lr, steps=steps)
        if watch is not None and ((step + 1) % watch.every == 0 or step + 1 == steps):
            moment = Moment(step=step + 1, steps=steps, epoch=(step + 1) * examples.epochs, lr=lr, seconds=time.monotonic() - began,
                            loss=float(torch.stack(losses[step // watch.every * watch.every :]).mean()))
            watch.report(_validated(moment, watch, parts, data, recipe=recipe, device=device, step_guard=step_guard))
        if checkpoint is not None and world.first and time.monotonic() - saved >= checkpoint.every_s:
            save(checkpoint.path, parts, losses=losses, seconds=time.monotonic() - began, about=about)
            saved = time.monotonic()
    if checkpoint is not None and world.first:
        save(checkpoint.path, parts, losses=losses, seconds=time.monotonic() - began, about=about)
    if parts.average is not None:
        parts.average.keep()
    return [float(v) for v in losses], steps * examples.epochs, before


def _parts(module: nn.Module, *, recipe: Recipe, numerics: Numerics) -> Parts:
    groups = parameter_groups(module, weight_decay=recipe.weight_decay)
    if not groups:
        raise TrainingError(f"{type(module).__name__} has no parameter to train; set requires_grad on those that shall learn")
    # fused: 0.15 ms a step for 50,000 parameters on one core; foreach takes 0.5, the plain loop 0.7
    optimizer = torch.optim.AdamW(groups, fused=True)  # every step sets the rate
    half = numerics.amp and numerics.dtype is torch.float16
    return Parts(module=module, optimizer=optimizer, average=Average(module, recipe.ema) if recipe.ema else None,
                 scaler=torch.amp.GradScaler(numerics.device.type, enabled=half))


def _runner(module: nn.Module, *, device: torch.device, world: World) -> nn.Module:
    """What computes the outputs: the module itself, or its data-parallel form, which averages gradients over the processes."""
    if world.size == 1:
        return Outputs(module)
    places = [device] if device.type == "cuda" else None
    # a network may have parameters that a training does not reach, such as the norms of its feature maps
    return nn.parallel.DistributedDataParallel(Outputs(module), device_ids=places, find_unused_parameters=True)


def _step(
    runner: nn.Module, parts: Parts, examples: Examples, *, step: int, lr: float, seed: int, recipe: Recipe, numerics: Numerics,
    teacher: nn.Module | None, world: World,
) -> Tensor:
    """One step on this process's parts of the batch; returns the loss of the whole batch."""
    for group in parts.optimizer.param_groups:
        group["lr"] = lr
    parts.optimizer.zero_grad(set_to_none=True)
    mine = range(world.rank * recipe.accumulate, (world.rank + 1) * recipe.accumulate)
    total = torch.zeros((), device=numerics.device)
    for part in mine:
        seed_dropout(seed=seed, step=step, part=part, device=numerics.device)
        x, labels = examples(step, part)
        x = numerics.layout(x)
        together = world.size > 1 and part != mine[-1]  # gradients are averaged once, with the last part
        with cast(Any, runner).no_sync() if together else nullcontext():
            with numerics.autocast():
                loss = outputs_loss(runner(x), x, labels, recipe=recipe, teacher=teacher) / recipe.accumulate
            parts.scaler.scale(loss).backward()
        total = total + loss.detach()
    if recipe.clip_grad:
        parts.scaler.unscale_(parts.optimizer)
        nn.utils.clip_grad_norm_([p for group in parts.optimizer.param_groups for p in group["params"]], recipe.clip_grad)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    if parts.average is not None:
        parts.average.update(step)
    return world.mean(total)


def _validated(moment: Moment, watch: Watch, parts: Parts, data: DataSet, *, recipe: Recipe, device: torch.device,
               step_guard: StepGuard) -> Moment:
    """The Moment with validation figures where they are due, of the averaged weights where there are some."""
    if not watch.validate_every or moment.step % watch.validate_every or moment.step == moment.steps:  # the end is evaluated anyway
        return moment
    if parts.average is not None:
        parts.average.swap()
    accuracy, loss = evaluate(parts.module, data.val, data=data, device=str(device), step_guard=step_guard, recipe=recipe)
    if parts.average is not None:
        parts.average.swap()
    parts.module.train()
    return replace(moment, val_accuracy=accuracy, val_loss=loss)


@torch.no_grad()
def _check_logits(module: nn.Module, data: DataSet, *, numerics: Numerics) -> None:
    """A look at two images before the first step; in eval mode, so that it leaves no trace in batch norms."""
    classes = data.num_classes
    x = Normaliser.of(data.mean, data.std, device=numerics.device)(data.train.images[:2].to(numerics.device))
    module.eval()
    with numerics.autocast():
        shape = tuple(module(numerics.layout(x)).shape)
    if shape != (len(x), classes):
        raise TrainingError(f"the network gives logits of shape {shape} for {len(x)} images and {classes} classes; accepted: "
                            f"({len(x)}, {classes}); build it with num_classes={classes}")


def _check_finite(losses: list[Tensor], step: int, lr: float, *, steps: int) -> None:
    value = float(losses[-1])
    if not math.isfinite(value):
        raise TrainingError(f"the loss is {value} at step {step + 1} of {steps} (lr {lr:.3g}); lower the recipe's lr or set clip_grad")


def _history(losses: list[float], *, steps: int, recipe: Recipe) -> tuple[tuple[dict[str, float], ...], float]:
    """Means over at most HISTORY equal stretches, and the mean of the last tenth."""
    stretch = math.ceil(steps / HISTORY)
    entries = []
    for start in range(0, steps, stretch):
        part = losses[start : start + stretch]
        last = start + len(part)
        entries.append({"step": float(last), "loss": sum(part) / len(part), "lr": learning_rate(last - 1, steps=steps, recipe=recipe)})
    tail = losses[-max(1, steps // 10) :]
    return tuple(entries), sum(tail) / len(tail)


def _finish(device: torch.device, step_guard: StepGuard) -> None:
    """A GPU works on after the step's last line; what a guard keeps apart must have ended inside it."""
    if device.type == "cuda" and step_guard is not nullcontext:
        torch.cuda.synchronize(device)
