"""The network as it is timed: its inference form, with nothing in it that an optimiser could delete for being zero."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasvit.models.deploy import deploy


def inference_form(module: nn.Module) -> nn.Module:
    """A copy of the module in its inference form (`nasvit.models.deploy`), eval mode; the module itself stays as it is.

    Networks are timed untrained, and some start with residual branches of scale exactly 0. A graph compiler deletes such a branch:
    measured as a 3x speed-up that the trained network does not have. So all-zero parameters get values from a fixed seed first.
    """
    ready = copy.deepcopy(module)
    fill_zeros_(ready)
    return deploy(ready)


@torch.no_grad()
def fill_zeros_(module: nn.Module) -> int:
    """Give every floating parameter that is zero throughout, and every untouched batch norm statistic, values that are not; how many.

    One-dimensional scales (a norm's weight, a residual branch's gamma) get 0.5 to 1.5, everything else -0.1 to 0.1.
    """
    generator = torch.Generator().manual_seed(0)
    found = 0
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and not parameter.is_meta and not parameter.any():
            scale = parameter.dim() <= 1 and not name.rpartition(".")[2].endswith("bias")
            _draw_(parameter, *((0.5, 1.5) if scale else (-0.1, 0.1)), generator=generator)
            found += 1
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None and not part.running_mean.any():
            _draw_(part.running_mean, -0.1, 0.1, generator=generator)
            _draw_(part.running_var, 0.5, 1.5, generator=generator)
            found += 1
    return found


def _draw_(tensor: torch.Tensor, low: float, high: float, *, generator: torch.Generator) -> None:
    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
