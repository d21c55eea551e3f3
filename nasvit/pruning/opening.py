"""From a name on the command line to a dense model: timm's models and the zoo's by name, nasvit's own by their two files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from nasvit.data import DataSet
from nasvit.errors import CheckpointError, ConfigError, NasvitError
from nasvit.named import check_names, make_named
from nasvit.pruning.dense import family_for
from nasvit.pruning.files import load
from nasvit.torchvision_ops import ensure


def full_name(name: str, *, arch: str | None) -> str:
    """`timm:NAME` for a bare name that timm or the zoo has; a file, and what says timm: already, as they are.

    Raises ConfigError for a name that neither has.
    """
    if arch is not None or name.startswith("timm:") or "/" in name or name.endswith(".safetensors") or Path(name).is_file():
        return name
    try:
        check_names([name])
    except ConfigError as error:
        raise ConfigError(f"{error}; of weights of another name give the .safetensors file, with --arch") from None
    return f"timm:{name}"


def open_model(name: str, *, arch: str | None, checkpoint: str | None, num_classes: int, in_channels: int,
               image_size: tuple[int, int] | None) -> nn.Module:
    """The trained model: `timm:NAME` with a checkpoint or its published weights, or a .safetensors file with the `arch` that describes it.

    Raises ConfigError for a model that does not exist or has other classes than the data, CheckpointError for weights that do not fit,
    NasvitError for published weights that cannot be fetched.
    """
    if name.startswith("timm:"):
        short = name.removeprefix("timm:")
        check_names([short])
        if arch is not None:
            raise ConfigError(f"--arch goes with a .safetensors file; {name} says by itself what it is")
        model = (_published(short, num_classes=num_classes) if checkpoint is None else
                 _trained(short, checkpoint, num_classes=num_classes, in_channels=in_channels, image_size=image_size))
    else:
        if arch is None:
            raise ConfigError(f"{name} is no timm:NAME; for a .safetensors file give --arch, the arch.json beside it")
        if checkpoint is not None:
            raise ConfigError("--checkpoint goes with timm:NAME; the .safetensors file is the checkpoint already")
        model = load(arch, name)
    _same_classes(name, model, num_classes=num_classes)
    return model.eval()


def image_size_of(name: str, *, arch: str | None, checkpoint: str | None) -> tuple[int, int] | None:
    """(H, W) that the model was made for: of timm's models what the metrics.json of `nasvit train` beside the checkpoint says, else what
    the name does. None where neither says any."""
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
    for path in _records(Path(checkpoint)) if checkpoint is not None else ():
        size = _part(_read(path), "data").get("image_size")
        if isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
            return size[0], size[1]
    ensure()
    import timm

    check_names([name.removeprefix("timm:")])
    settings = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    return None if settings is None else (int(settings.input_size[1]), int(settings.input_size[2]))


def as_trained(data: DataSet, *, name: str, checkpoint: str | None) -> tuple[DataSet, str]:
    """The data with the mean and std that the model's images had in its training, and in words whose these are.

    Published weights have timm's. Own weights have those that `nasvit train` wrote into metrics.json beside them, or the prune.json of the
    run whose dense/ or pruned/ they stand in; where neither is there, the data's own. Raises ConfigError where they are not for these
    channels.
    """
    if name.startswith("timm:") and checkpoint is None:
        ensure()
        import timm

        known = timm.get_pretrained_cfg(name.removeprefix("timm:"))
        found, words = ({} if known is None else known.to_dict()), f"as the published weights of {name} expect"
        if "mean" not in found or "std" not in found:
            raise ConfigError(f"timm does not say how the images of {name} were normalised; give weights of yours with --checkpoint FILE")
    else:
        for path in _records(Path(checkpoint or name)):
            found, words = _recorded(path), f"as {path} says of the model's training"
            if found:
                break
        else:
            return data, "by mean and std of these data: nothing beside the weights says what they were trained with"
    mean, std = ([v for v in found[key] if isinstance(v, int | float) and math.isfinite(v)] for key in ("mean", "std"))
    if not len(mean) == len(std) == data.in_channels or min(std) <= 0:
        raise ConfigError(f"images are to be normalised {words}, with mean {found['mean']} and std {found['std']}; accepted: "
                          f"{data.in_channels} finite numbers each, one for each channel of the data, std above 0")
    return replace(data, mean=tuple(map(float, mean)), std=tuple(map(float, std))), words


def trained_steps(*, name: str, checkpoint: str | None) -> tuple[int | None, str]:
    """How many steps the model was trained, as the file beside its weights says, and in words which; None where there is none."""
    if not name.startswith("timm:") or checkpoint is not None:
        for path in _records(Path(checkpoint or name)):
            steps = _read(path).get("steps" if path.name == "metrics.json" else "dense_steps")
            if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0:
                return steps, f"the dense training had {steps} steps, as {path} says"
    return None, "how long the dense model was trained is not known, because nothing beside its weights says so: give --dense-epochs"


def _records(weights: Path) -> list[Path]:
    """The files beside a model's weights that may say of its training: of `nasvit train`, and of the run whose dense/ or pruned/ it is."""
    folder = weights.resolve().parent
    return [folder / "metrics.json", *([folder.parent / "prune.json"] if folder.name in ("dense", "pruned") else [])]


def _read(path: Path) -> dict[str, Any]:
    """What a metrics.json or prune.json holds; empty where there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} should say how the model was trained and its images normalised, and cannot be read ({error}); restore "
                          "or remove it") from None
    return found if isinstance(found, dict) else {}


def _recorded(path: Path) -> dict[str, Any]:
    """Mean and std of a metrics.json or prune.json; empty where there is no such file, or one of another program."""
    told = _part(_read(path), "data")
    whole = all(isinstance(told.get(key), list) for key in ("mean", "std"))
    return {key: told[key] for key in ("mean", "std")} if whole else {}


def _part(found: dict[str, Any], key: str) -> dict[str, Any]:
    """That mapping of a file, the file itself where it has none."""
    told = found.get(key, found)
    return told if isinstance(told, dict) else {}


def _same_classes(name: str, model: nn.Module, *, num_classes: int) -> None:
    classes = int(getattr(model, "num_classes", num_classes))
    if classes != num_classes:
        raise ConfigError(f"{name} tells {classes} classes apart and the data have {num_classes}; give a model trained on these data "
                          "(nasvit train), with --checkpoint where it is timm's")


def _published(name: str, *, num_classes: int) -> nn.Module:
    """With its published weights; what could not be pruned with them is refused before they are fetched."""
    ensure()
    import timm

    untrained = timm.create_model(name)
    family_for(untrained).read(untrained)
    _same_classes(f"timm:{name}", untrained, num_classes=num_classes)
    try:
        return timm.create_model(name, pretrained=True)  # type: ignore[no-any-return]
    except (RuntimeError, OSError, ValueError) as error:
        raise NasvitError(f"the published weights of {name} could not be had ({type(error).__name__}: {str(error)[:300]}); "
                              "give weights of your own with --checkpoint FILE") from None


def _trained(name: str, checkpoint: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int] | None) -> nn.Module:
    size = image_size or image_size_of(f"timm:{name}", arch=None, checkpoint=checkpoint) or (224, 224)
    model = make_named(name, image_size=size, in_channels=in_channels, num_classes=num_classes, seed=0)
    state = _state(Path(checkpoint))
    own = model.state_dict()
    faults = [f"{n} is missing" for n in own if n not in state] + [f"{n} has no place" for n in state if n not in own]
    faults += [f"{n} is {tuple(v.shape)}, not {tuple(own[n].shape)}" for n, v in state.items() if n in own and own[n].shape != v.shape]
    if faults:
        raise CheckpointError(f"{checkpoint} does not fit {name} with {num_classes} classes at {size[0]}x{size[1]} px: "
                              f"{'; '.join(faults[:6])}; {_likely([fault.partition(' ')[0] for fault in faults])}")
    model.load_state_dict(state)
    return model


def _likely(odd: Sequence[str]) -> str:
    """What is probably wrong where these tensors do not fit, and what to do."""
    if all(any(word in name for word in ("pos", "attn_mask", "rope")) for name in odd):
        return "if it was trained on images of another size, give that by --image-size"
    if all("head" in name for name in odd):
        return "it was trained for other classes; give the data it was trained on, or train it on these"
    return "these look like weights of another model, or for images of other channels; name the model they are of"


def _state(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and safetensors raise many kinds for a file that is none of theirs
        why = ("there is no such file" if not path.exists() else "it is empty" if path.is_file() and not path.stat().st_size else
               f"{type(error).__name__}: {str(error)[:200]}")
        raise CheckpointError(f"{path} cannot be read as weights ({why}); accepted: a .safetensors file, or a state dict of torch.save"
                              ) from None
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(v, torch.Tensor) for v in data.values()):
        raise CheckpointError(f"{path} holds no state dict of tensors")
    return data
