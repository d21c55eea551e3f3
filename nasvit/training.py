"""The one training loop of the project: AdamW, warm-up and cosine, label smoothing, light augmentation, clipping, EMA, distillation.

`train` has no hidden state: it starts from the module's present weights, so a higher rung is a warm restart of the cosine cycle
from the checkpoint of the lower one (Loshchilov & Hutter 2017, SGDR). On the CPU it computes in fp32 (bf16 autocast is slower
there); on a GPU it uses automatic mixed precision and channels-last memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasvit.data import DataSet, Images
from nasvit.data.augment import Normaliser, light_batch
from nasvit.errors import ConfigError, TrainingError
from nasvit.registry import unknown

StepGuard = Callable[[], AbstractContextManager[object]]

HISTORY = 50  # entries at most
_NO_DECAY = ("table", "pos_embed", "class_token", "cls_token")
_GPU_CHECK = 16  # a look at the loss waits for the GPU, so there only every so many steps

_TINY = 1e-12  # "above 0"
_HUGE = 1e30
_RANGES: tuple[tuple[tuple[str, ...], float, float, str], ...] = (
    (("lr", "distill_temperature", "augment_epochs"), _TINY, _HUGE, "a number above 0"),
    (("weight_decay", "clip_grad"), 0, _HUGE, "a number, 0 or above"),
    (("final_lr", "aux_weight", "distill_weight"), 0, 1, "a number from 0 to 1"),
    (("warmup", "label_smoothing", "ema"), 0, 1 - _TINY, "a number from 0 to below 1"),
    (("batch_size",), 2, _HUGE, "a whole number, 2 or above"),
)


@dataclass(frozen=True)
class Recipe:
    """How to train; every field can be set in an experiment file. Raises ConfigError for a value that makes no sense."""

    lr: float | None = None
    """Highest learning rate; None: `default_lr` of the network."""
    final_lr: float = 0.01
    """Last learning rate, as a share of `lr`."""
    weight_decay: float = 0.05
    """Of matrices and kernels; vectors, biases, position tables and class tokens have none."""
    batch_size: int = 32
    warmup: float = 0.2
    """Share of the steps in which the learning rate rises."""
    label_smoothing: float = 0.1
    augment: str = "light"
    """"light" (shifted crop, mirror, brightness and contrast) or "none"."""
    augment_epochs: float = 20.0
    """After so many epochs every image is augmented; before, a share of them that grows in proportion. A short training sees no image often
    enough to need it. Measured on the digits, a vision transformer of 27,000 parameters, 350 / 1,500 steps: without augmentation
    0.89 / 0.96, all images augmented from the start 0.66 / 0.97, growing over 20 epochs 0.87 / 0.98."""
    flip: bool | None = None
    """Mirror images; None: as the data set says."""
    clip_grad: float = 1.0
    """Largest norm of the gradient; 0 = off."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then what is evaluated and kept; 0 = off."""
    aux_weight: float = 0.5
    """Share of the class token's loss where the network has one besides its logits."""
    distill_weight: float = 0.5
    """Share of the teacher's loss where a teacher is given."""
    distill_temperature: float = 2.0

    def __post_init__(self) -> None:
        for names, low, high, accepted in _RANGES:
            for name in names:
                value = getattr(self, name)
                if name == "lr" and value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                    raise ConfigError(f"recipe: {name} is {value!r}; accepted: {accepted}")
        if not isinstance(self.batch_size, int):
            raise ConfigError(f"recipe: batch_size is {self.batch_size!r}; accepted: a whole number, 2 or above")
        if self.augment not in ("light", "none"):
            raise ConfigError(f"recipe: augment is {self.augment!r}; accepted: 'light' or 'none'")
        if self.flip not in (None, True, False):
            raise ConfigError(f"recipe: flip is {self.flip!r}; accepted: true, false or null")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Recipe:
        """From an experiment file's mapping; raises ConfigError for an unknown name."""
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise ConfigError(unknown("recipe setting", str(name), names))
        return cls(**settings)


@dataclass(frozen=True)
class TrainResult:
    """`accuracy` is validation top-1 (0..1); `loss` the mean training loss of the last tenth of the steps; `seconds` wall time in all;
    `history` at most HISTORY entries {"step", "loss", "lr"}."""

    accuracy: float
    loss: float
    val_loss: float
    steps: int
    epochs: float
    seconds: float
    history: tuple[dict[str, float], ...]


def train(
    module: nn.Module, data: DataSet, *, steps: int, seed: int, recipe: Recipe | None = None, device: str = "cpu",
    teacher: nn.Module | None = None, step_guard: StepGuard = nullcontext, steps_before: int = 0,
) -> TrainResult:
    """Train `module` in place for `steps` steps from its present weights, then evaluate it on the validation part; it is left in eval mode.

    Bit-equal results for equal arguments on one CPU thread; the global random state is left as it was. `step_guard()` is entered
    around every step. `steps_before`: how long the module was trained before; the augmentation then goes on growing from there instead of
    starting again. Raises TrainingError where the loss is not finite, or the logits do not fit the classes.
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}; accepted: 1 or above")
    started = time.perf_counter()
    recipe = recipe or Recipe()
    if recipe.lr is None:
        recipe = replace(recipe, lr=default_lr(module))
    where = torch.device(device)
    module.to(where)
    if where.type == "cuda":
        cast(Any, module).to(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout and drop path draw from the global state
        history, loss = _run(module, data, steps=steps, seed=seed, recipe=recipe, device=where, teacher=teacher, step_guard=step_guard,
                             steps_before=steps_before)
        accuracy, val_loss = evaluate(module, data.val, data=data, device=device, step_guard=step_guard)
    if not math.isfinite(val_loss):
        raise TrainingError(f"the validation loss is {val_loss} after step {steps} of {steps} (lr {recipe.lr:g}); lower the recipe's lr "
                            "or set clip_grad")
    batch = min(recipe.batch_size, len(data.train))
    return TrainResult(accuracy=accuracy, loss=loss, val_loss=val_loss, steps=steps, epochs=steps * batch / len(data.train),
                       seconds=time.perf_counter() - started, history=history)


@torch.no_grad()
def evaluate(
    module: nn.Module, images: Images, *, data: DataSet, device: str = "cpu", batch_size: int = 256, step_guard: StepGuard = nullcontext,
) -> tuple[float, float]:
    """Top-1 accuracy (0..1) and mean cross-entropy on `images`, normalised as `data` says; the module is left in eval mode."""
    where = torch.device(device)
    module.to(where).eval()
    normalise = Normaliser.of(data.mean, data.std, device=where)
    right = loss = torch.zeros((), dtype=torch.float64, device=where)
    for pixels, labels in zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True):
        with step_guard():
            labels = labels.to(where)
            with _autocast(where):
                logits = module(_layout(normalise(pixels.to(where))))
            loss = loss + F.cross_entropy(logits.float(), labels, reduction="sum")
            right = right + (logits.argmax(dim=1) == labels).sum()
            _finish(where, step_guard)
    return float(right) / len(images), float(loss) / len(images)


def default_lr(module: nn.Module) -> float:
    """8e-3 up to 64 features, above that falling as 1 / features: Adam's step must shrink with the width (Yang & Hu 2022,
    arXiv 2203.03466). `num_features` is timm's name of a network's last width; a module without it gets 8e-3."""
    return 8e-3 * min(1.0, 64 / int(getattr(module, "num_features", 64)))


def learning_rate(step: int, *, steps: int, recipe: Recipe) -> float:
    """Of step 0..steps-1: a straight line up over the warm-up, then half a cosine down to `final_lr * lr`."""
    assert recipe.lr is not None, "train resolves it"
    peak, warm = recipe.lr, round(recipe.warmup * steps)
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - 1 - warm)))
    return peak * (recipe.final_lr + (1 - recipe.final_lr) * cosine)


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: with weight decay, and without (vectors, biases, position tables, class tokens)."""
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim <= 1 or name.endswith("bias") or any(word in name for word in _NO_DECAY)
            (plain if free else decay).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def batches(count: int, *, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index tensors for ever, one permutation per epoch; an incomplete last batch is left out, so no batch norm sees a single image."""
    size = min(batch_size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].split(size)


def _examples(data: DataSet, *, seed: int, recipe: Recipe, device: torch.device, steps_before: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches for ever: images (B, C, H, W) normalised, labels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    normalise = Normaliser.of(data.mean, data.std, device=device)
    flip = data.flip if recipe.flip is None else recipe.flip
    epochs = steps_before * min(recipe.batch_size, len(labels)) / len(labels)
    for index in batches(len(labels), batch_size=recipe.batch_size, generator=generator):
        index = index.to(device)
        epochs += len(index) / len(labels)
        if recipe.augment == "light":
            share = min(1.0, epochs / recipe.augment_epochs)
            yield light_batch(images, index, normalise, flip=flip, share=share, generator=generator), labels[index]
        else:
            yield normalise(images[index]), labels[index]


class Average:
    """Moving average of the weights, w <- w + (1 - d) (now - w) with d = min(decay, (1 + t) / (10 + t)), so that short trainings keep
    little of the random start. Buffers (batch norm statistics) stay the module's own."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.now: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.mean: list[Tensor] = [p.detach().clone() for p in self.now]

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.mean, self.now, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def keep(self) -> None:
        torch._foreach_copy_(self.now, self.mean)


def batch_loss(module: nn.Module, x: Tensor, labels: Tensor, *, recipe: Recipe, teacher: nn.Module | None = None) -> Tensor:
    """Label-smoothed cross-entropy; mixed with the class token's where `forward_aux` gives one, and with the teacher's soft targets.

    x: (B, C, H, W) normalised; labels: (B,). Distillation: KL at a temperature (Hinton et al. 2015), times its square.
    """
    forward_aux = getattr(module, "forward_aux", None)
    logits, auxiliary = (module(x), None) if forward_aux is None else forward_aux(x)
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if auxiliary is not None and recipe.aux_weight:
        token_loss = F.cross_entropy(auxiliary.float(), labels, label_smoothing=recipe.label_smoothing)
        loss = (1 - recipe.aux_weight) * loss + recipe.aux_weight * token_loss
    if teacher is not None and recipe.distill_weight:
        with torch.no_grad():
            target = F.log_softmax(teacher(x).float() / recipe.distill_temperature, dim=1)
        student = F.log_softmax(logits / recipe.distill_temperature, dim=1)
        soft = F.kl_div(student, target, reduction="batchmean", log_target=True) * recipe.distill_temperature**2
        loss = (1 - recipe.distill_weight) * loss + recipe.distill_weight * soft
    return loss


def _run(
    module: nn.Module, data: DataSet, *, steps: int, seed: int, recipe: Recipe, device: torch.device, teacher: nn.Module | None,
    step_guard: StepGuard, steps_before: int,
) -> tuple[tuple[dict[str, float], ...], float]:
    """The loop. Returns the history and the mean loss of the last tenth."""
    groups = parameter_groups(module, weight_decay=recipe.weight_decay)
    if not groups:
        raise TrainingError(f"{type(module).__name__} has no parameter to train; set requires_grad on those that shall learn")
    # fused: 0.15 ms a step for 50,000 parameters on one core; foreach takes 0.5, the plain loop 0.7
    optimizer = torch.optim.AdamW(groups, fused=True)  # every step sets the rate
    parameters = [p for group in groups for p in group["params"]]
    scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda" and _amp_dtype() is torch.float16)
    average = Average(module, recipe.ema) if recipe.ema else None
    if teacher is not None:
        teacher.to(device).eval()
    with step_guard():
        _check_logits(module, data, device=device)
    module.train()
    examples = _examples(data, seed=seed, recipe=recipe, device=device, steps_before=steps_before)
    losses: list[Tensor] = []
    for step in range(steps):
        with step_guard():
            lr = learning_rate(step, steps=steps, recipe=recipe)
            for group in optimizer.param_groups:
                group["lr"] = lr
            x, labels = next(examples)
            with _autocast(device):
                loss = batch_loss(module, _layout(x), labels, recipe=recipe, teacher=teacher)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if recipe.clip_grad:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(parameters, recipe.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            if average is not None:
                average.update(step)
            _finish(device, step_guard)
        losses.append(loss.detach())
        if device.type == "cpu" or step % _GPU_CHECK == 0 or step == steps - 1:
            _check_finite(losses, step, lr, steps=steps)
    if average is not None:
        average.keep()
    return _history([float(v) for v in losses], steps=steps, recipe=recipe)


@torch.no_grad()
def _check_logits(module: nn.Module, data: DataSet, *, device: torch.device) -> None:
    """A look at two images before the first step; in eval mode, so that it leaves no trace in batch norms."""
    classes = data.num_classes
    x = Normaliser.of(data.mean, data.std, device=device)(data.train.images[:2].to(device))
    module.eval()
    with _autocast(device):
        shape = tuple(module(_layout(x)).shape)
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


def _amp_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _layout(x: Tensor) -> Tensor:
    """Channels-last on a GPU, plain on the CPU."""
    return x.contiguous(memory_format=torch.channels_last if x.is_cuda else torch.contiguous_format)


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast("cuda", dtype=_amp_dtype()) if device.type == "cuda" else nullcontext()

