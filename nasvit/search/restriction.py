"""The space that a device's runtime can take: the rest is left out before anything is sampled, and told."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from nasvit.devices import Device, machine_lock
from nasvit.devices.calibration import cache_folder
from nasvit.devices.form import inference_form
from nasvit.errors import ConfigError
from nasvit.runtimes.support import known_unsupported
from nasvit.space import SearchSpace


def restricted(space: SearchSpace, *, device: Device, found: Mapping[str, str] | None = None) -> tuple[SearchSpace, dict[str, str]]:
    """The space without what the device's runtime cannot take, and each choice that was left out with its reason.

    found: what an earlier session left out. Raises ConfigError, with the reasons, where nothing of a stage is left.
    """

    def form(module: nn.Module) -> nn.Module:
        return inference_form(module).to(device.torch_device)

    excluded = dict(found) if found is not None else known_unsupported(space, device.runtime, form=form, cache=cache_folder(),
                                                                          place=_processor(device), turn=machine_lock.training)
    try:
        return space.without(excluded), excluded
    except ConfigError as error:
        reasons = "; ".join(f"{choice}: {reason}" for choice, reason in excluded.items())
        raise ConfigError(f"{device.runtime.name} cannot take this space: {error} ({reasons}); choose another device or space") from None


def _processor(device: Device) -> str:
    """What a runtime of this machine prepares networks for: compilers take other things on another kind of it."""
    return torch.cuda.get_device_name() if device.torch_device == "cuda" else device.torch_device


def told(excluded: Mapping[str, str]) -> tuple[str, ...]:
    """One line for each choice that was left out; the reasons name the runtimes."""
    return tuple(f"left out of the space: {choice} ({reason})" for choice, reason in excluded.items())
