"""Checkpoints of other code: read safely, converted by taking each tensor once by its own name, and strict about what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nasvit.errors import CheckpointError
from nasvit.models.network import Network

# What a checkpoint may hold that follows from the architecture alone: index tables, masks and counters.
_DERIVED = ("relative_position_index", "attn_mask", "num_batches_tracked", "attention_bias_idxs", "total_ops", "total_params")
_WRAPPERS = ("model", "state_dict", "model_ema", "state_dict_ema")


class Checkpoint:
    """Official name -> tensor, being emptied by a conversion."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._left = {name: value for name, value in tensors.items() if not name.endswith(_DERIVED)}
        self.taken: list[str] = []

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Checkpoint:
        """From a state dict, or a dict that holds one under "model" or "state_dict"; "module." of data-parallel training is removed."""
        for wrapper in _WRAPPERS:
            if isinstance(state.get(wrapper), Mapping):
                state = state[wrapper]
                break
        wrong = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
        if wrong or not state:
            raise CheckpointError(f"not a state dict: {', '.join(wrong[:5]) or 'it is empty'}; accepted: names to tensors, or such a "
                                  f"dict under {', '.join(_WRAPPERS)}")
        prefix = "module." if all(name.startswith("module.") for name in state) else ""
        return cls({name.removeprefix(prefix): value for name, value in state.items()})

    @classmethod
    def read(cls, source: str | Path | Mapping[str, Any]) -> Checkpoint:
        """From a state dict, a safetensors file, or a file of torch.save, which is read with weights_only."""
        if isinstance(source, Mapping):
            return cls.of(source)
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"no such file: {path}")
        try:
            return cls.of(load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True))
        except CheckpointError:
            raise
        except Exception as error:  # torch and safetensors raise many kinds for a file that is none of theirs
            raise CheckpointError(f"{path} cannot be read as a checkpoint ({type(error).__name__}: {str(error)[:200]}); accepted: "
                                  ".safetensors, or a file of torch.save that holds tensors only") from None

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def fits(self, name: str, shape: Sequence[int]) -> bool:
        """Whether there is a tensor of this name and shape that nobody took."""
        return name in self and self._left[name].shape == tuple(shape)

    def take(self, name: str, *, shape: Sequence[int] | None = None) -> Tensor:
        """The tensor of this name, once. Raises CheckpointError where it is missing, or of another shape than a conversion needs."""
        if name not in self._left:
            near = [n for n in self._left if n.split(".")[0] == name.split(".")[0]][:3]
            raise CheckpointError(f"the checkpoint has no {name}; it has {len(self._left)} other tensors"
                                  + (f", such as {', '.join(near)}" if near else ""))
        if shape is not None and not self.fits(name, shape):
            raise CheckpointError(f"the checkpoint does not fit this model: {name} is {tuple(self._left[name].shape)}, not {tuple(shape)}")
        self.taken.append(name)
        return self._left.pop(name)

    def take_all(self, name: str, to: str) -> dict[str, Tensor]:
        """Every tensor below `name.` as `to.` with the same ending (weight, bias, running_mean, ...), of modules that are alike."""
        endings = [n.removeprefix(f"{name}.") for n in self._left if n.startswith(f"{name}.")]
        if not endings:
            self.take(f"{name}.weight")  # raises, naming it
        return {f"{to}.{ending}": self.take(f"{name}.{ending}") for ending in endings}

    def take_classifier(self, name: str, to: str, *, classes: int) -> dict[str, Tensor]:
        """`take_all` of a relative's classifier of so many classes; one of others, or none, gives nothing and stays unused."""
        weight = self._left.get(f"{name}.weight")
        return self.take_all(name, to) if weight is not None and len(weight) == classes else {}

    @property
    def left(self) -> list[str]:
        """The names nobody took."""
        return list(self._left)

    def must_be_used_up(self) -> None:
        """Raise CheckpointError naming what nobody took."""
        if self._left:
            raise CheckpointError(f"the checkpoint has {len(self._left)} tensors that this model has no place for: "
                                  f"{', '.join(list(self._left)[:10])}; is it of another variant, or with other options?")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a start from a relative's weights did: names of ours that were loaded, names of ours that keep their initial values,
    names of the checkpoint that were not used."""

    loaded: tuple[str, ...]
    initial: tuple[str, ...]
    unused: tuple[str, ...]


def fill(model: Network, converted: Mapping[str, Tensor], *, partial: bool = False) -> list[str]:
    """Put converted tensors into the model; raises CheckpointError for a missing name or another shape. Returns the names not given
    (only with `partial`). Nothing is changed where it raises."""
    own = model.state_dict()
    shapes = [f"{n} is {tuple(v.shape)}, not {tuple(own[n].shape)}" for n, v in converted.items() if n in own and own[n].shape != v.shape]
    strange = [n for n in converted if n not in own]
    missing = [n for n in own if n not in converted and not n.endswith("num_batches_tracked")]
    if shapes or strange or (missing and not partial):
        faults = [*shapes, *(f"{n} has no place" for n in strange), *(f"{n} is missing" for n in ([] if partial else missing))]
        raise CheckpointError(f"the checkpoint does not fit this model: {'; '.join(faults[:10])}")
    nn.Module.load_state_dict(model, dict(converted), strict=False)
    return missing
