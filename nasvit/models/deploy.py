"""The exact inference form of a model: the same function of an image in eval mode, in fewer operations.

Batch norms go into the linear maps beside them, two classifiers become one, what only training needs goes, and linear layers take
the faster of torch's two matrix libraries. How a module changes is said by the module: see `nasvit.models.folding`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.models.folding import fold_norm_

# Below this many multiply-adds, or rows, oneDNN's product costs more to call than it saves (measured on one thread).
LEAST_MACS, LEAST_ROWS = 1_500_000, 8
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class InferenceLinear(nn.Linear):
    """A linear layer that multiplies by oneDNN where that is possible and pays: on a CPU in float32 without gradients.

    nn.Linear multiplies by MKL there, which takes twice as long on processors of another maker than its own: 0.45 to 0.6 of the time
    for the layers of CAS-ViT on an AMD EPYC. The result is the same but for the order of additions. Traces and exports see
    an ordinary linear layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) -> (.., out)"""
        differentiated = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if differentiated or torch.compiler.is_compiling() or torch.jit.is_tracing() or not self._pays(x):
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "none")

    def _pays(self, x: Tensor) -> bool:
        rows = x.numel() // self.in_features
        return bool(ONEDNN and torch.backends.mkldnn.enabled and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
                    and rows >= LEAST_ROWS and rows * self.weight.numel() >= LEAST_MACS and not torch.is_autocast_enabled("cpu"))

    @classmethod
    def of(cls, layer: nn.Linear) -> InferenceLinear:
        """The same layer with the same parameters."""
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)


def deploy(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode, in its inference form, its parameters frozen; the model itself stays as it is.

    The output differs by rounding alone (relative difference at most 1e-5). Any module will do: a zoo model, a searched network, a
    mixer; a part that says nothing of an inference form is left as it is, and deploying twice is deploying once. Two deployed
    models of one Arch have the same state dict names and shapes. timm's interface stays, with one difference: where a batch
    norm before the classifier went into it, `forward_features` and `pre_logits` give what is before that norm.
    """
    ready = copy.deepcopy(model).eval()
    parts = [m for m in ready.modules() if not getattr(m, "deployed", False)]
    uses = Counter(id(child) for part in ready.modules() for child in part._modules.values())
    for part in parts:  # parents first: they hand norms to their children
        if hasattr(part, "deploy_"):
            cast(Any, part).deploy_()
        elif type(part).forward is nn.Sequential.forward:
            _fold_neighbours_(part, uses)
    for part in list(ready.modules()):
        _suit_(part)
        cast(Any, part).deployed = True
    ready.requires_grad_(False)
    return ready.eval()


def _fold_neighbours_(sequence: nn.Module, uses: Mapping[int, int]) -> None:
    """Batch norms directly behind a convolution of the sequence go into it, unless it has uses elsewhere, without the norm.

    Not into a linear layer: of (B, n, C) the norm takes n for its channels.
    """
    for (_, layer), (name, norm) in pairwise(list(sequence._modules.items())):
        if type(layer) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and uses[id(layer)] == 1 and not _hooked(layer, norm):
            setattr(sequence, name, fold_norm_(layer, norm))


def _hooked(*layers: nn.Module) -> bool:
    """Whether somebody else sees, or changes, what goes in and out of one of them."""
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def _suit_(part: nn.Module) -> None:
    """Linear children to InferenceLinear; a dense convolution's weight channels-last in memory, as the tokens are."""
    for name, child in part.named_children():
        if type(child) is nn.Linear and not _hooked(child):
            setattr(part, name, InferenceLinear.of(child))
    if isinstance(part, nn.Conv2d) and part.groups == 1 and part.kernel_size != (1, 1):
        part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
