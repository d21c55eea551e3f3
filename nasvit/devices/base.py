"""A device = runtime + place + settings. What every place shares: the protocol of a measurement, and the scale."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.devices import calibration
from nasvit.devices.protocol import patiently, settle
from nasvit.devices.spec import NOISE, DeviceSpec
from nasvit.devices.stats import LatencyStats, quantile
from nasvit.devices.timing import Attempt
from nasvit.errors import ConfigError
from nasvit.registry import Registry
from nasvit.runtimes import Runtime

LEVELS, FEW_LEVELS = 100, 20
"""Repeats over which the machine's own speed is remembered (ten measurements or less), and how many show that it is faster than thought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One network on its device, ready to be timed. It lives inside `Device.prepared`; ask it inside `Device.alone`."""

    device: Device
    batch_size: int
    attempt: Callable[[int], Attempt]
    peak: Callable[[], float]
    peak_step_mb: float = 0.0
    """What is less than this, `peak` does not tell from nothing; 0 where bytes are added up."""

    def measure(self) -> LatencyStats:
        """Latency of one inference: about a second up to 3 ms and three seconds otherwise, up to eight attempts where it stays unstable.

        Raises MeasurementError where it stays so (see `settle`), or the device gives an absurd figure.
        """
        device = self.device
        scale = device.reference_ms or device.calibrate()
        seen: list[float] = []
        try:
            return settle(self.attempt, scale=scale, threads=device.threads, batch_size=self.batch_size, fingerprint=device.fingerprint,
                          noise=device.noise, level_ms=device.level_ms(scale), seen=seen)
        finally:
            device.levels.extend(seen)

    def peak_memory_mb(self) -> float:
        """Peak memory of one inference in MB (10^6 bytes); what it is made of is the runtime's (docs/metrics.md).

        Raises MeasurementError for a network that needs more than the machine can give, before it takes it.
        """
        return self.peak()


class Device(ABC):
    """Measures modules in one place with one runtime. Abstract; places are final and registered in DEVICES."""

    torch_device: str
    """What `Tensor.to` takes: where the host prepares networks, and trains."""

    def __init__(self, *, spec: DeviceSpec, runtime: Runtime, threads: int, reference_ms: float | None) -> None:
        if threads < 1:
            raise ConfigError(f"threads must be at least 1, not {threads}")
        if reference_ms is not None and not (math.isfinite(reference_ms) and reference_ms > 0):
            raise ConfigError(f"reference_ms must be a positive number of milliseconds, not {reference_ms}")
        self.spec, self.runtime, self.threads, self.reference_ms = spec, runtime, threads, reference_ms
        self.noise = spec.noise or os.environ.get("NASVIT_NOISE") or "fail"
        if self.noise not in NOISE:
            raise ConfigError(f"NASVIT_NOISE is {' or '.join(NOISE)}, not {self.noise}")
        self.scale: calibration.Scale | None = None
        self.levels: deque[float] = deque(maxlen=LEVELS)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """12 hex digits of place, runtime and settings; latencies of two fingerprints are never put in one column."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able facts: what the fingerprint stands for, and the state of the machine, which may vary."""

    @abstractmethod
    def prepared(self, module: nn.Module, *, input_shape: tuple[int, ...]) -> AbstractContextManager[Prepared]:
        """The module's inference form on this device, for the time of the context; the module itself stays as it is.

        Raises MeasurementError for a module that does not run on this shape.
        """

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """While held, no training step and no other measurement runs on the device's machine. Nested calls do nothing."""

    @abstractmethod
    def rounds(self, seconds: float) -> list[float]:
        """Time the reference network alone: medians of a round each, in ms."""

    def close(self) -> None:  # noqa: B027 (a device in this process holds nothing)
        """Give back what the device holds (a process, a connection); it can be used again."""

    def calibrate(self) -> float:
        """Set and return `reference_ms`, the scale of this device: the kept one where there is one and it still holds, else a new one."""
        with self.alone():
            self.scale = calibration.scale_of(self.rounds, fingerprint=self.fingerprint, place=self.spec.where)
        self.reference_ms = self.scale.reference_ms
        return self.reference_ms

    def measure(self, module: nn.Module, *, input_shape: tuple[int, ...], patient: bool = False) -> LatencyStats:
        """Latency of one inference of a batch of `input_shape` (B, C, H, W), alone on the machine; see `Prepared.measure`.

        Calibrates first if there is no `reference_ms`. patient: for a figure that a run cannot do without; see `patiently`. Raises
        MeasurementError for a module that does not run on this shape or needs more memory than there is, UnstableError (one of these)
        where no attempt was stable and noise is not kept, DeviceLostError where the device is gone.
        """
        with self.prepared(module, input_shape=input_shape) as ready:

            def once() -> LatencyStats:
                with self.alone():
                    return ready.measure()

            return patiently(once) if patient else once()

    def peak_memory_mb(self, module: nn.Module, *, input_shape: tuple[int, ...]) -> float:
        """Peak memory of one inference of a batch of `input_shape`; see `Prepared.peak_memory_mb`."""
        with self.prepared(module, input_shape=input_shape) as ready, self.alone():
            return ready.peak_memory_mb()

    def settings_facts(self) -> dict[str, str]:
        """The runtime's settings as they hold, defaults included; where its interpreter lies is no property of the figure."""
        return {key: self.runtime.setting(key) for key in self.runtime.accepted if key != "python"}

    def level_ms(self, scale: float) -> float:
        """The reference's time alone on this machine when it is calm: what its better moments have been of late.

        Until enough is known, the fastest that it has been seen: beside a scale taken in a slow hour everything would pass for calm. A
        machine that has become slower for good (hot, on battery) is calm at its new speed, once it has kept it for a while.
        """
        better = quantile(self.levels, 0.1) if len(self.levels) >= FEW_LEVELS else math.inf
        if len(self.levels) == LEVELS:
            return better
        return min(scale, better, self.scale.now_ms if self.scale is not None else math.inf)

    def scale_facts(self) -> dict[str, Any]:
        """What `describe` says of the scale."""
        scale = self.scale
        return {"reference_ms": self.reference_ms, "noise": self.noise, "calibration": None if scale is None else {
            "source": scale.source, "now_ms": scale.now_ms, "taken": scale.taken, "before_ms": scale.before}}


def example(module: nn.Module, *, shape: tuple[int, ...]) -> Tensor:
    """The input of a measurement: normal values from a fixed seed, in the module's floating type."""
    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kind)


DEVICES: Registry[type[Device]] = Registry("device")
