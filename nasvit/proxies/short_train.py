"""The final recipe, shortened: the score is the validation accuracy after `budget` training steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from nasvit.arch import Arch
from nasvit.data import DataSet
from nasvit.models.build import build
from nasvit.proxies.base import PROXIES, Score
from nasvit.training import Recipe, train


def fit(module: nn.Module, data: DataSet, *, budget: int, seed: int, recipe: Recipe, device: str = "cpu",
        step_guard: Callable[[], AbstractContextManager[object]] = nullcontext, steps_before: int = 0) -> Score:
    """Train `module` in place for `budget` steps (one whole cosine cycle) and score it on the validation images.

    Called again on the same module it is a warm restart: a further cycle from the weights reached after `steps_before` steps.
    Raises TrainingError when the loss is not finite.
    """
    result = train(module, data, steps=budget, seed=seed, recipe=recipe, device=device, step_guard=step_guard,
                   steps_before=steps_before)
    details = {"loss": float(result.loss), "val_loss": float(result.val_loss), "steps": int(result.steps), "epochs": float(result.epochs)}
    return Score(value=float(result.accuracy), seconds=float(result.seconds - result.waited), waited=result.waited, details=details)


@PROXIES.register("short_train")
def score(arch: Arch, *, budget: int, seed: int, data: DataSet, device: str) -> Score:
    """Build `arch` and train it for `budget` steps with the default recipe; value is the validation accuracy, 0 to 1."""
    return fit(build(arch, seed=seed), data, budget=budget, seed=seed, recipe=Recipe(), device=device)
