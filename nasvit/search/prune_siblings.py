"""The siblings of a pruned model under its run's protocol: which they are, and what each does beside it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from nasvit.cost import count
from nasvit.data import DataSet
from nasvit.devices import Device
from nasvit.errors import NasvitError
from nasvit.experiment import PruneExperiment
from nasvit.named import is_named, make_named
from nasvit.pruning import UnsupportedModelError, prepare
from nasvit.pruning.opening import as_trained, open_model
from nasvit.pruning.siblings import Measured, measured, smaller_names, verdict
from nasvit.training import evaluate


def check_named(experiment: PruneExperiment, data: DataSet) -> None:
    """Open each sibling that the user named, and let go of it. Raises ConfigError for a name that timm does not have or for images
    normalised in no way, CheckpointError for weights that do not fit: before the search, not behind it."""
    for name in experiment.siblings:
        _open(name.removeprefix("timm:"), experiment, data)


def compared(pruned: Measured, experiment: PruneExperiment, *, model: str, data: DataSet, device: Device) -> dict[str, Any]:
    """`siblings` and `verdict` of prune.json. One that cannot be built or measured here stands there with the reason.

    model: what the dense model's source calls it, by which its family is known. data: as loaded, because each model's images are
    normalised as in its own training.
    """
    rows: list[dict[str, Any]] = []
    found: list[Measured] = []
    for name in _names(experiment, model=model):
        try:
            found.append(_measured(name, experiment, data=data, device=device))
            rows.append(asdict(found[-1]))
        except Exception as error:  # timm refuses sizes in many ways, and the run's result must not be lost to a comparison
            rows.append({"name": name, "latency_ms": None, "ci_low_ms": None, "ci_high_ms": None, "accuracy": None,
                         "why": f"{type(error).__name__}: {str(error)[:500]}"})
    told = verdict(pruned, found, unmeasured=[row["name"] for row in rows if "why" in row])
    return {"siblings": rows, "verdict": {"dominated": told.dominated, "by": told.by, "text": told.text}}


def _names(experiment: PruneExperiment, *, model: str) -> list[str]:
    """Those the user named, and smaller models of the family that timm has. The two files of a dense model say what it was, too."""
    named = [name.removeprefix("timm:") for name in experiment.siblings]
    if not model.startswith("timm:"):
        return named
    return list(dict.fromkeys([*named, *smaller_names(model.removeprefix("timm:").split(".")[0], exists=is_named)]))


def _open(name: str, experiment: PruneExperiment, data: DataSet) -> tuple[nn.Module, DataSet | None]:
    """The model, and the data as it was trained on them where weights of it for these data are given."""
    checkpoint = experiment.siblings.get(name) or experiment.siblings.get(f"timm:{name}")
    if checkpoint is None:
        module = make_named(name, image_size=data.image_size, in_channels=data.in_channels, num_classes=data.num_classes, seed=0)
        return module.eval(), None
    module = open_model(f"timm:{name}", arch=None, checkpoint=checkpoint, num_classes=data.num_classes, in_channels=data.in_channels,
                        image_size=data.image_size)
    return module, as_trained(data, name=f"timm:{name}", checkpoint=checkpoint)[0]


def _measured(name: str, experiment: PruneExperiment, *, data: DataSet, device: Device) -> Measured:
    module, seen = _open(name, experiment, data)
    accuracy = None if seen is None else evaluate(module, seen.val, data=seen, device=device.torch_device)[0]
    best, shape = _best(module, image_size=data.image_size), (1, data.in_channels, *data.image_size)
    found = measured(name, device.measure(best, input_shape=shape).to_dict(), accuracy=accuracy)
    with suppress(NasvitError):  # timm's may have operations that nasvit does not count, and its latency stands all the same
        cost = count(best, input_shape=shape)
        found = replace(found, macs_g=cost.macs / 1e9, params_m=cost.params / 1e6)
    return found


def _best(module: nn.Module, *, image_size: tuple[int, int]) -> nn.Module:
    """What the pruned model would be without anything taken away: no sibling loses to the inference form of owned networks alone."""
    try:
        return prepare(module, image_size=image_size).module
    except UnsupportedModelError:
        return module
