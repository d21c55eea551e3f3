"""Folding what is affine in eval into the linear map beside it: exact but for rounding, which is done once, in float64.

The contract of the inference form (`nasvit.models.deploy`): a module that has one defines `deploy_()`, which changes it in place and
may leave its children to theirs. A mixer of norm "batch" may define `absorb_norm_(scale, shift)`: from then on it does
itself what the norm x * scale + shift before it did.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


def foldable(norm: nn.Module) -> bool:
    """Whether `norm` is a batch norm that is affine in eval: one with running statistics."""
    return isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and norm.running_mean is not None and norm.running_var is not None


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(scale, shift) with norm(x) = x * scale + shift in eval, (C,) each in float64, for a batch norm that is `foldable`."""
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


@torch.no_grad()
def scale_output_(layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """`layer` becomes layer(x) * scale + shift, (C',) each; it gets a bias if it has none."""
    before = layer.weight.double()
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    _set(layer, before * scale.view(-1, *[1] * (before.ndim - 1)), bias)


@torch.no_grad()
def scale_input_(layer: nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """`layer` becomes layer(x * scale + shift), (C,) each; it gets a bias if it has none."""
    before = layer.weight.double()
    bias = before @ shift
    _set(layer, before * scale, bias if layer.bias is None else layer.bias.double() + bias)


def fold_norm_(layer: Layer, norm: nn.Module) -> nn.Module:
    """Put the batch norm behind `layer` into it; returns what stands in the norm's place from then on."""
    if not foldable(norm):
        return norm
    scale_output_(layer, *affine(norm))
    return nn.Identity()


def _set(layer: Layer, weight: Tensor, bias: Tensor) -> None:
    dtype, trained = layer.weight.dtype, layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=trained)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=trained)


@torch.no_grad()
def merge_linears_(first: nn.Linear, second: nn.Linear) -> None:
    """`first` becomes the mean of both."""
    biases = [layer.bias.double() if layer.bias is not None else torch.zeros_like(layer.weight[:, 0]).double() for layer in (first, second)]
    _set(first, (first.weight.double() + second.weight.double()) / 2, (biases[0] + biases[1]) / 2)
