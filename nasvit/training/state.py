"""What a training needs to go on after a kill: one safetensors file with its JSON in the header, renamed into place, never a pickle.

Chance needs no keeping: it follows from seed and step (`nasvit.training.examples`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nasvit.data import DataSet
from nasvit.errors import CheckpointError, RunError
from nasvit.models.weight_file import verify, write_weights
from nasvit.training.optimiser import Average
from nasvit.training.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a training keeps itself, and how often (in seconds; 0: after every step). An existing file is gone on from."""

    path: Path
    every_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The moving parts of a training: everything that a step changes."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    scaler: torch.amp.GradScaler


def identity(module: nn.Module, data: DataSet, *, steps: int, seed: int, recipe: Recipe, parts: int) -> dict[str, Any]:
    """What must agree for a training to go on: another one would end elsewhere."""
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    network = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()[:12]
    return {"steps": steps, "seed": seed, "recipe": asdict(recipe), "data": data.fingerprint, "network": network, "parts": parts}


def save(path: Path, parts: Parts, *, losses: list[Tensor], seconds: float, about: Mapping[str, Any]) -> None:
    """Write the state after `len(losses)` steps and `seconds` of training: under a temporary name, synced, then renamed."""
    tensors = {f"module.{name}": value for name, value in parts.module.state_dict().items()}
    tensors["losses"] = torch.stack(losses).float()
    for number, entry in parts.optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{number}.{key}": value for key, value in entry.items()})
    if parts.average is not None:
        tensors.update({f"average.{number}": value for number, value in enumerate(parts.average.mean)})
    header = {"step": len(losses), "seconds": seconds, "identity": dict(about), "scaler": parts.scaler.state_dict()}
    write_weights(path, tensors, metadata={"nasvit": json.dumps(header)})


def restore(path: Path, parts: Parts, *, about: Mapping[str, Any]) -> tuple[list[Tensor], float]:
    """Set every part as it was saved; returns the losses so far, one per step, and the seconds they took (none where there is no file).

    Raises RunError for a state of another training, CheckpointError for a damaged file.
    """
    if not path.exists():
        return [], 0.0
    verify(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["nasvit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as the state of a training ({error}); remove it to begin anew") from None
    differs = [name for name, value in about.items() if header["identity"].get(name) != json.loads(json.dumps(value))]
    if differs:
        raise RunError(f"{path} is the state of another training: {', '.join(differs)} differ; restore the settings to go on with it, or "
                       "remove it to begin anew")
    parts.module.load_state_dict({name.removeprefix("module."): v for name, v in tensors.items() if name.startswith("module.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = value
    parts.optimizer.load_state_dict({"state": state, "param_groups": parts.optimizer.state_dict()["param_groups"]})
    if parts.average is not None:
        with torch.no_grad():
            for number, mean in enumerate(parts.average.mean):
                mean.copy_(tensors[f"average.{number}"])
    if header["scaler"]:
        parts.scaler.load_state_dict(header["scaler"])
    return list(tensors["losses"].unbind()), float(header.get("seconds", 0.0))  # an earlier version kept no seconds
