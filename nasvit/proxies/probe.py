"""What the zero-cost proxies look at: gradients of a few batches, a linearised pass, and what goes into and out of every block.

Each pass is made once, on a copy, and shared by the proxies that need it; the network itself, its weights and its batch norm statistics
stay as they are. All copies are in training mode, so that batch norms use the statistics of the batch: at initialisation the running
ones are 0 and 1, which is no normalisation at all.

Legend: B images of a batch, n tokens, C channels, p elements of a parameter, k batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nasvit.errors import MeasurementError
from nasvit.models.blocks import MixerBlock
from nasvit.models.layers import ChannelBatchNorm
from nasvit.models.mixers import Mixer
from nasvit.training import Recipe, batch_loss

BATCHES = 4
"""The images are seen in so many batches: ZiCo needs the spread of a gradient from batch to batch."""
NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, ChannelBatchNorm)
ACTIVATIONS = {getattr(torch.ops.aten, name) for name in ("relu", "relu_", "gelu", "gelu_", "hardswish", "hardswish_", "silu", "silu_")}
"""Packets of operators whose input's sign is a unit's state: above 0 they pass it, below they hold it back."""
_PLAIN = Recipe(label_smoothing=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linearised:
    """Of one parameter: weight (its absolute values) and gradient of the summed output, and whether a token mixer's linear map has it."""

    weight: Tensor
    gradient: Tensor
    mixes: bool


class Probe:
    """One network, and a few images to look at it with.

    images: (B, C, H, W), normalised. labels: (B,). seed: of the random vectors. Raises MeasurementError for fewer than two images a batch.
    """

    def __init__(self, module: nn.Module, *, images: Tensor, labels: Tensor, seed: int) -> None:
        if len(images) < 2 * BATCHES or len(images) != len(labels):
            raise MeasurementError(f"a zero-cost proxy needs at least {2 * BATCHES} images, each with its label, not {len(images)} images "
                                   f"and {len(labels)} labels")
        self.module, self.images, self.labels, self.seed = module, images, labels, seed

    def _copy(self) -> nn.Module:
        return copy.deepcopy(self.module).train()

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Parameter name to (weight (p,), gradients (k, p)) of the training's loss, the class token's own included, without smoothing."""
        module, found = self._copy(), []
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for x, labels in zip(self.images.chunk(BATCHES), self.labels.chunk(BATCHES), strict=True):
            with torch.enable_grad():
                loss = batch_loss(module, x, labels, recipe=_PLAIN)
                found.append(torch.autograd.grad(loss, list(named.values()), allow_unused=True))
        return {name: (p.detach().flatten(), torch.stack([g[i].flatten() for g in found if g[i] is not None]))
                for i, (name, p) in enumerate(named.items()) if found[0][i] is not None}

    @cached_property
    def layers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """`gradients` of the weights of convolutions and linear layers alone."""
        own = {f"{name}.weight" for name, m in self.module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        return {name: pair for name, pair in self.gradients.items() if name in own}

    @cached_property
    def linearised(self) -> list[Linearised]:
        """SynFlow's pass (arXiv 2006.05467) in double precision: absolute weights, one image of ones, the sum of the outputs. Norms divide
        by the size of their input, a constant: as they are they would turn the positive flow half negative, and without them the products
        of additive attention overflow after a dozen blocks."""
        module = _scaling_norms(self._copy()).double()
        with torch.no_grad():
            for p in module.parameters():
                p.abs_()
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        with torch.enable_grad():
            out = module(torch.ones_like(self.images[:1], dtype=torch.float64)).sum()
            gradients = torch.autograd.grad(out, [p for _, p in named], allow_unused=True)
        mixing = _mixing(module)
        return [Linearised(weight=p.detach(), gradient=g, mixes=name in mixing)
                for (name, p), g in zip(named, gradients, strict=True) if g is not None]

    @cached_property
    def blocks(self) -> list[tuple[Tensor, Tensor]]:
        """(input, output) of every block for normal noise, (B, .., C) each and differentiable. A block's tokens are those it updates: in a
        slow-fast segment of attention the kept ones, the representative and the class token."""
        module = self._copy()
        pairs: list[tuple[Tensor, Tensor]] = []
        for block in module.modules():
            if isinstance(block, MixerBlock):
                for name in ("forward", "forward_set", "forward_segment"):
                    setattr(block, name, _noting(getattr(block, name), pairs))
        noise = torch.randn(self.images.shape, generator=self._generator()).to(self.images)
        with torch.enable_grad():
            module(noise.requires_grad_())
        return pairs

    def signs(self, *, like: Tensor) -> Tensor:
        """Independent random signs of the shape of `like`, the same for the same seed."""
        return torch.randint(0, 2, like.shape, generator=self._generator()).to(like) * 2 - 1

    @cached_property
    def agreement(self) -> tuple[Tensor, int]:
        """((B, B) number of activation units in the same state for both images, units of an image)."""
        total, units = torch.zeros(len(self.images), len(self.images), dtype=torch.float64), 0
        for x in self._activations():
            on = (x.reshape(len(self.images), -1) > 0).float()
            total += (on @ on.T + (1 - on) @ (1 - on).T).double()
            units += on.shape[1]
        return total, units

    def _activations(self) -> list[Tensor]:
        with torch.no_grad(), _Inputs() as seen:
            self._copy()(self.images)
        return [x for x in seen.inputs if x.shape[0] % len(self.images) == 0]


class _Inputs(TorchDispatchMode):
    """Keeps the inputs of activation functions, whichever way the network calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in ACTIVATIONS:
            self.inputs.append(args[0].detach().clone())  # some work in place
        return func(*args, **(kwargs or {}))


def _noting(method: Callable[..., Any], pairs: list[tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """The method, noting its first argument and its first result: a block's tokens."""
    @wraps(method)
    def noted(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = method(x, *args, **kwargs)
        pairs.append((x, result[0]))
        return result

    return noted


class _Scaling(nn.Module):
    """x divided by its root mean square, taken as a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.detach().square().mean().sqrt() + 1e-12)


def _scaling_norms(module: nn.Module) -> nn.Module:
    """In place: norms become their scale alone."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NORMS):
                setattr(parent, name, _Scaling())
    return module


def _mixing(module: nn.Module) -> set[str]:
    """Names of the weights of linear maps inside token mixers."""
    return {f"{path}.{name}.weight" for path, mixer in module.named_modules() if isinstance(mixer, Mixer)
            for name, m in mixer.named_modules() if isinstance(m, nn.Linear)}
