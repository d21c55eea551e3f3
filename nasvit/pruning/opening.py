"""From a name on the command line to a dense model: timm's models and the zoo's by name, nasvit's own by their two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from nasvit.errors import CheckpointError, ConfigError
from nasvit.named import check_names, make_named
from nasvit.pruning.files import load
from nasvit.torchvision_ops import ensure


def open_model(name: str, *, arch: str | None, checkpoint: str | None, num_classes: int, in_channels: int,
               image_size: tuple[int, int] | None) -> nn.Module:
    """The trained model: `timm:NAME` with a checkpoint or its published weights, or a .safetensors file with the `arch` that describes it.

    Raises ConfigError for a model that does not exist or has other classes than the data, CheckpointError for weights that do not fit.
    """
    if name.startswith("timm:"):
        short = name.removeprefix("timm:")
        check_names([short])
        if arch is not None:
            raise ConfigError(f"--arch goes with a .safetensors file; {name} says by itself what it is")
        model = (_published(short) if checkpoint is None else
                 _trained(short, checkpoint, num_classes=num_classes, in_channels=in_channels, image_size=image_size))
    else:
        if arch is None:
            raise ConfigError(f"{name} is no timm:NAME; for a .safetensors file give --arch, the arch.json beside it")
        if checkpoint is not None:
            raise ConfigError("--checkpoint goes with timm:NAME; the .safetensors file is the checkpoint already")
        model = load(arch, name)
    classes = int(getattr(model, "num_classes", num_classes))
    if classes != num_classes:
        raise ConfigError(f"{name} tells {classes} classes apart and the data have {num_classes}; give a model trained on these data "
                          "(nasvit train), with --checkpoint where it is timm's")
    return model.eval()


def image_size_of(name: str, *, arch: str | None) -> tuple[int, int] | None:
    """(H, W) that the model was made for, None where timm's name does not say."""
    if not name.startswith("timm:"):
        from nasvit.pruning.files import read_form
        from nasvit.pruning.plan import Plan

        if arch is None:
            return None
        form = read_form(arch)
        if isinstance(form, Plan):
            height, width = form.source.options["image_size"]
            return int(height), int(width)
        return form.image_size
    ensure()
    import timm

    check_names([name.removeprefix("timm:")])
    settings = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    return None if settings is None else (int(settings.input_size[1]), int(settings.input_size[2]))


def _published(name: str) -> nn.Module:
    ensure()
    import timm

    try:
        return timm.create_model(name, pretrained=True)  # type: ignore[no-any-return]
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"the published weights of {name} could not be had ({type(error).__name__}: {str(error)[:300]}); "
                              "give weights of your own with --checkpoint FILE") from None


def _trained(name: str, checkpoint: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int] | None) -> nn.Module:
    model = make_named(name, image_size=image_size or image_size_of(f"timm:{name}", arch=None) or (224, 224), in_channels=in_channels,
                       num_classes=num_classes, seed=0)
    state = _state(Path(checkpoint))
    own = model.state_dict()
    faults = [f"{n} is missing" for n in own if n not in state] + [f"{n} has no place" for n in state if n not in own]
    faults += [f"{n} is {tuple(v.shape)}, not {tuple(own[n].shape)}" for n, v in state.items() if n in own and own[n].shape != v.shape]
    if faults:
        raise CheckpointError(f"{checkpoint} does not fit {name} with {num_classes} classes: {'; '.join(faults[:6])}")
    model.load_state_dict(state)
    return model


def _state(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and safetensors raise many kinds for a file that is none of theirs
        raise CheckpointError(f"{path} cannot be read as weights ({type(error).__name__}: {str(error)[:200]})") from None
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(v, torch.Tensor) for v in data.values()):
        raise CheckpointError(f"{path} holds no state dict of tensors")
    return data
