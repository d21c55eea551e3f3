"""Reading a live model without touching it: every submodule and every tensor must be known, else the model is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.errors import first_of
from nasvit.pruning.families.base import UnsupportedModelError

_ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "SiLU": "silu", "Swish": "silu", "ReLU": "relu",
                "Hardswish": "hardswish", "HardSwish": "hardswish"}
_PLAIN = {"Linear", "Conv2d", "LayerNorm", "RMSNorm", "Identity", "Dropout", "Sequential", "ModuleList", "GELU", "SiLU", "ReLU",
          "Hardswish", "BatchNorm1d", "BatchNorm2d", "Softmax", "AvgPool2d", "AdaptiveAvgPool2d"}
_OF_TIMM = {"DropPath", "GELU", "QuickGELU", "GELUTanh", "Swish", "HardSwish", "LayerNorm", "RmsNorm", "RmsNorm2d", "PatchDropout"}


def survey(model: nn.Module, *, known: Iterable[str]) -> None:
    """Raise UnsupportedModelError naming every submodule that is neither one of torch's plain ones nor of timm and in `known`.

    Hooks, replaced methods, parametrizations and other scales of attention change what a module does, so modules that have them are
    refused, too.
    """
    names, faults = set(known) | _OF_TIMM, []
    for path, module in model.named_modules():
        kind, home = type(module).__name__, type(module).__module__
        own = home.startswith("torch.nn.modules") and kind in _PLAIN
        if not own and not (home.startswith("timm.") and kind in names):
            faults.append(f"{path or 'the model'} ({kind})")
        elif replaced := [n for n, v in vars(module).items() if callable(v) and callable(getattr(type(module), n, None))]:
            faults.append(f"{path or 'the model'} ({kind} with a replaced {replaced[0]})")
        elif module._forward_hooks or module._forward_pre_hooks:
            faults.append(f"{path or 'the model'} ({kind} with forward hooks)")
        elif (scale := _other_scale(module)) is not None:
            faults.append(f"{path} ({kind} with a scale of {scale})")
    refuse(model, faults)


def _other_scale(attention: Any) -> float | None:
    """The scale of an attention where it is not the usual head_dim ** -0.5."""
    scale, heads = getattr(attention, "scale", None), getattr(attention, "num_heads", None)
    if not isinstance(scale, float) or heads is None:
        return None
    width = getattr(attention, "key_dim", None) or getattr(attention, "head_dim", None) or attention.proj.in_features // heads
    return None if abs(scale - width**-0.5) < 1e-9 else scale


def refuse(model: nn.Module, faults: list[str]) -> None:
    """Raise UnsupportedModelError if there are faults."""
    if faults:
        named = first_of(faults, most=8, between="; ")
        raise UnsupportedModelError(f"{type(model).__name__} cannot be pruned: {named}; the model is unchanged. Supported parts are listed "
                                    "in docs/pruning.md")


class Tensors:
    """The tensors of a model, each taken once under the name of ours it goes to."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._left = {name: value.detach() for name, value in model.state_dict().items()}
        self.state: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def pop(self, name: str) -> Tensor:
        """The tensor of this name, to be converted."""
        if name not in self._left:
            refuse(self._model, [f"{name} is missing"])
        return self._left.pop(name)

    def give(self, name: str, value: Tensor) -> None:
        """Put a converted tensor under our name; a copy of its own."""
        self.state[name] = value.detach().clone()

    def move(self, name: str, to: str) -> None:
        self.give(to, self.pop(name))

    def move_all(self, prefix: str, to: str) -> None:
        """Every tensor below `prefix.` to the same ending below `to.`"""
        for name in [n for n in self._left if n.startswith(f"{prefix}.")]:
            self.move(name, f"{to}.{name.removeprefix(f'{prefix}.')}")

    def drop(self, *endings: str) -> None:
        """What follows from the architecture alone."""
        for name in [n for n in self._left if n.endswith(endings)]:
            del self._left[name]

    def done(self) -> dict[str, Tensor]:
        """All of ours; refuses the model by name where a tensor was left over."""
        refuse(self._model, [f"{name} has no counterpart" for name in self._left])
        return self.state


def norm_form(module: nn.Module) -> list[Any] | None:
    """[kind, eps, bias] of a layer or RMS norm, None for an identity; raises UnsupportedModelError."""
    if isinstance(module, nn.Identity):
        return None
    kind = type(module).__name__
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if kind == "LayerNorm" and weight is not None:
        return ["layer", float(module.eps), bias is not None]  # type: ignore[arg-type]
    if kind in ("RmsNorm", "RMSNorm") and weight is not None and isinstance(module.eps, float):
        return ["rms", float(module.eps), False]
    raise UnsupportedModelError(f"a norm of kind {kind} without weights, or of a kind that is not known; the model is unchanged")


def activation_form(module: nn.Module) -> str:
    """The name of an activation in `transformer.ACTIVATIONS`; raises UnsupportedModelError."""
    kind = type(module).__name__
    if kind == "GELU":
        return "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"
    if kind in _ACTIVATIONS:
        return _ACTIVATIONS[kind]
    raise UnsupportedModelError(f"the activation {kind} is not known (accepted: GELU, {', '.join(_ACTIVATIONS)}); the model is unchanged")


def has_bias(module: nn.Module) -> bool:
    """Whether a linear map or convolution has a bias."""
    return getattr(module, "bias", None) is not None


def same_eval(one: nn.Module, two: nn.Module, *, shape: tuple[int, ...]) -> float:
    """The largest difference of two modules' outputs in eval mode on a fixed image, relative to the largest output; both modules are left
    in the mode they were in."""
    image = torch.linspace(-1.5, 1.5, steps=int(torch.tensor(shape).prod())).reshape(1, *shape)
    image = image[..., torch.randperm(shape[-1], generator=torch.Generator().manual_seed(0))]
    outputs = []
    for module in (one, two):
        modes = {m: m.training for m in module.modules()}
        place = next(module.parameters())
        try:
            module.eval()
            with torch.no_grad():
                outputs.append(module(image.to(place.device, place.dtype)).double())
        finally:
            for part, mode in modes.items():
                part.training = mode
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max().clamp(min=1e-12))
