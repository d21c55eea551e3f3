"""What a full training leaves in its folder, and how it is read back.

`model.safetensors` (weights), `arch.json` (the Arch, where there is one), `metrics.json` (what it scores, and everything that a user of
the weights must know: images, normalisation, class names), `history.csv`, `plan.json` (what makes it this training); while it goes on
`state.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nasvit.arch import Arch
from nasvit.errors import CheckpointError, ConfigError, RunError
from nasvit.finals.subject import Subject
from nasvit.models.weight_file import read_weights
from nasvit.whole_file import whole

METRICS, WEIGHTS, ARCH, HISTORY, PLAN, STATE = ("metrics.json", "model.safetensors", "arch.json", "history.csv", "plan.json",
                                                "state.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained network in eval mode with what its metrics.json says."""

    module: nn.Module
    subject: Subject
    metrics: Mapping[str, Any]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.metrics["data"]["image_size"]
        return int(height), int(width)

    @property
    def in_channels(self) -> int:
        return len(self.metrics["data"]["mean"])


def load_trained(folder: Path | str) -> Trained:
    """The network of a finished full training. Raises ConfigError where there is none, RunError or CheckpointError where it is damaged."""
    folder = Path(folder)
    metrics = read_metrics(folder)
    try:
        text = (folder / ARCH).read_text(encoding="utf-8") if (folder / ARCH).exists() else None
        data, model = metrics["data"], metrics["model"]
        subject = Subject.of_model(f"timm:{model}") if text is None else Subject.of_arch(Arch.from_json(text))
        module = subject.make(image_size=tuple(data["image_size"]), in_channels=len(data["mean"]), num_classes=len(data["class_names"]),
                              seed=0)
        module.load_state_dict(read_weights(folder / WEIGHTS))
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / METRICS} is damaged: {error!r}") from None
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {subject.label}: {str(error)[:300]}") from None
    return Trained(module=module.eval(), subject=subject, metrics=metrics)


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json; raises ConfigError where the training is absent or not finished."""
    path = Path(folder) / METRICS
    if not path.is_file():
        raise ConfigError(f"{folder} holds no finished training (no {METRICS}); give a folder that `nasvit train` wrote, train/ID of a run")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise RunError(f"{path} is damaged: it must hold a mapping")
    return data


def write_text(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    try:
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """`write_text` as indented JSON."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")
