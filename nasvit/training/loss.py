"""What a training minimises: cross-entropy of labels or mixed labels, the class token's own, and the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasvit.training.recipe import Recipe


class Outputs(nn.Module):
    """Gives the logits and, where the network has them, the class token's own: one forward, as data parallelism needs it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, classes), and the same or None."""
        forward_aux = getattr(self.module, "forward_aux", None)
        return (self.module(x), None) if forward_aux is None else forward_aux(x)


def batch_loss(module: nn.Module, x: Tensor, labels: Tensor, *, recipe: Recipe, teacher: nn.Module | None = None) -> Tensor:
    """Label-smoothed cross-entropy; mixed with the class token's where `forward_aux` gives one, and with the teacher's soft targets.

    x: (B, C, H, W) normalised; labels: (B,), or (B, classes) where images were mixed (smoothed already).
    """
    return outputs_loss(Outputs(module)(x), x, labels, recipe=recipe, teacher=teacher)


def outputs_loss(outputs: tuple[Tensor, Tensor | None], x: Tensor, labels: Tensor, *, recipe: Recipe,
                 teacher: nn.Module | None) -> Tensor:
    """`batch_loss` of what `Outputs` gave. Distillation: KL at a temperature (Hinton et al. 2015), times its square."""
    logits, auxiliary = outputs
    logits, smoothing = logits.float(), recipe.label_smoothing if labels.ndim == 1 else 0.0
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if auxiliary is not None and recipe.aux_weight:
        token_loss = F.cross_entropy(auxiliary.float(), labels, label_smoothing=smoothing)
        loss = (1 - recipe.aux_weight) * loss + recipe.aux_weight * token_loss
    if teacher is not None and recipe.distill_weight:
        with torch.no_grad():
            target = F.log_softmax(teacher(x).float() / recipe.distill_temperature, dim=1)
        student = F.log_softmax(logits / recipe.distill_temperature, dim=1)
        soft = F.kl_div(student, target, reduction="batchmean", log_target=True) * recipe.distill_temperature**2
        loss = (1 - recipe.distill_weight) * loss + recipe.distill_weight * soft
    return loss
