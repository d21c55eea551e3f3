"""arch.json and model.safetensors: what a pruned network is on disk, and the one loader that reads it. Never a pickle.

arch.json holds an Arch (networks of the search and the zoo, pruned or not) or a Plan (families whose parts an Arch does not name).
Neither needs the library or the weights that the dense model came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasvit.arch import Arch
from nasvit.errors import CheckpointError, ConfigError
from nasvit.models.build import build as build_arch
from nasvit.models.weight_file import read_weights, write_weights
from nasvit.pruning.dense import build
from nasvit.pruning.plan import Plan
from nasvit.whole_file import whole

Form = Arch | Plan
DENSE, SCORES, RESULT = "dense", "importance.safetensors", "pruned"
"""In a run directory: the folder of the dense model, in it the importance of its units, and the folder of the result."""


def form_of(module: nn.Module) -> Form:
    """The Arch or Plan a network was built from; raises ConfigError for any other module."""
    for name in ("plan", "arch"):
        form = getattr(module, name, None)
        if isinstance(form, (Arch, Plan)):
            return form
    raise ConfigError(f"{type(module).__name__} was built from no Arch and no Plan; accepted: a network of nasvit")


def form_from_dict(data: Any) -> Form:
    """An Arch or a Plan from JSON data, told apart by their keys; raises ConfigError."""
    if isinstance(data, Mapping) and "source" in data:
        return Plan.from_dict(data)
    return Arch.from_dict(data)


def read_form(path: str | Path) -> Form:
    """The Arch or Plan of an arch.json; raises ConfigError naming the file."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as an Arch or a Plan ({error})") from None
    try:
        return form_from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def build_form(form: Form) -> nn.Module:
    """The untrained module of either form, in eval mode."""
    return (build_arch(form, seed=0) if isinstance(form, Arch) else build(form)).eval()


def save(module: nn.Module, directory: str | Path) -> tuple[Path, Path]:
    """Write arch.json and model.safetensors, each under a temporary name and renamed. Returns both paths."""
    form, directory = form_of(module), Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arch, weights = directory / "arch.json", directory / "model.safetensors"
    write_weights(weights, module.state_dict(), metadata={"id": form.id})
    with whole(arch) as temporary:
        temporary.write_text(form.to_json() + "\n", encoding="utf-8")
    return arch, weights


def load(arch: str | Path, weights: str | Path, *, place: str = "cpu") -> nn.Module:
    """The network of an arch.json with the weights of a .safetensors file, in eval mode. Raises ConfigError or CheckpointError."""
    module = build_form(read_form(arch))
    tensors = read_weights(Path(weights), sealed=False)  # of other code too
    own = module.state_dict()
    faults = [f"{n} is missing" for n in own if n not in tensors] + [f"{n} has no place" for n in tensors if n not in own]
    faults += [f"{n} is {tuple(v.shape)}, not {tuple(own[n].shape)}" for n, v in tensors.items() if n in own and own[n].shape != v.shape]
    if faults:
        raise CheckpointError(f"{weights} does not fit {arch}: {'; '.join(faults[:10])}")
    kinds = {v.dtype for v in tensors.values() if v.is_floating_point()}
    module.to(torch.device(place), kinds.pop() if len(kinds) == 1 else None)
    module.load_state_dict(tensors)
    return module.eval()
