"""What turns gradients into weights: learning rate, parameter groups, the moving average. Pure but for the average's own tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.training.recipe import Recipe

_NO_DECAY = ("table", "pos_embed", "class_token", "cls_token")


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
        """The module takes the averaged weights."""
        torch._foreach_copy_(self.now, self.mean)

    @torch.no_grad()
    def swap(self) -> None:
        """The module takes the averaged weights, and the average its; twice is nothing."""
        before = [p.detach().clone() for p in self.now]
        torch._foreach_copy_(self.now, self.mean)
        torch._foreach_copy_(self.mean, before)
