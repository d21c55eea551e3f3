"""A teacher for distillation: any model of timm with weights, or a network trained here before, behind the student's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasvit.data import DataSet
from nasvit.errors import CheckpointError, ConfigError
from nasvit.finals.subject import Subject
from nasvit.finals.trained import load_trained
from nasvit.named import check_names
from nasvit.torchvision_ops import ensure
from nasvit.zoo import Checkpoint


class Teacher(nn.Module):
    """Turns the student's normalised images into the teacher's: other size, other normalisation.

    size: (H, W) of the teacher's images. mean, std: its own, per channel on the 0..1 scale; the student's are those of the data.
    """

    def __init__(self, module: nn.Module, data: DataSet, *, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.module, self.size = module, size
        own = [torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std, mean, std)]
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", own[1] / own[3])
        self.register_buffer("shift", (own[0] - own[2]) / own[3])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) as the student sees them -> (B, classes)."""
        x = torch.addcmul(self.shift, x, self.scale)
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, size=self.size, mode="bilinear", antialias=True, align_corners=False)
        logits: Tensor = self.module(x)
        return logits


def load_teacher(spec: str, data: DataSet) -> Teacher:
    """The teacher of "timm:NAME" (timm's pretrained weights), "timm:NAME@CHECKPOINT", or the folder of a full training.

    Raises ConfigError where it does not know the same classes, CheckpointError where its weights cannot be loaded.
    """
    if not spec.startswith("timm:"):
        return _trained_here(Path(spec), data)
    name, _, file = spec.removeprefix("timm:").partition("@")
    if file:
        module = Subject.of_model(f"timm:{name}").make_for(data, seed=0)
        _fill(module, Checkpoint.read(file), spec=spec)
        return Teacher(module.eval(), data, size=data.image_size, mean=data.mean, std=data.std)
    return _pretrained(name, data)


def _fill(module: nn.Module, checkpoint: Checkpoint, *, spec: str) -> None:
    """Every tensor of the checkpoint into the module, and none missing but what follows from the architecture alone."""
    derived = set(module.state_dict()) - set(Checkpoint.of(module.state_dict()).left)
    try:
        found = module.load_state_dict({name: checkpoint.take(name) for name in checkpoint.left}, strict=False)
    except RuntimeError as error:  # shapes
        raise CheckpointError(f"teacher {spec}: the checkpoint does not fit: {str(error)[:300]}") from None
    wrong = [f"{name} has no place" for name in found.unexpected_keys]
    wrong += [f"{name} is missing" for name in found.missing_keys if name not in derived]
    if wrong:
        raise CheckpointError(f"teacher {spec}: the checkpoint does not fit: {'; '.join(wrong[:10])}")


def _trained_here(folder: Path, data: DataSet) -> Teacher:
    trained = load_trained(folder)
    about = trained.metrics["data"]
    if tuple(about["class_names"]) != data.class_names or len(about["mean"]) != data.in_channels:
        raise ConfigError(f"teacher {folder} knows {len(about['class_names'])} classes in {len(about['mean'])} channels, which are not "
                          f"those of the data ({data.num_classes} in {data.in_channels}); train one on the same data")
    return Teacher(trained.module, data, size=trained.image_size, mean=tuple(about["mean"]), std=tuple(about["std"]))


def _pretrained(name: str, data: DataSet) -> Teacher:
    ensure()
    check_names([name])
    import timm

    known = timm.get_pretrained_cfg(name)
    settings: dict[str, Any] = {} if known is None else known.to_dict()
    if settings.get("num_classes") != data.num_classes or settings.get("input_size", (0,))[0] != data.in_channels:
        raise ConfigError(f"teacher timm:{name} was trained for {settings.get('num_classes')} classes, the data has {data.num_classes}; "
                          f"train one with `nasvit train --model timm:{name}` and give that folder, or timm:{name}@CHECKPOINT")
    module = timm.create_model(name, pretrained=True)
    height, width = settings["input_size"][1:]
    return Teacher(module.eval(), data, size=(height, width), mean=tuple(settings["mean"]), std=tuple(settings["std"]))
