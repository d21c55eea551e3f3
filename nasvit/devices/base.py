"""A device = runtime + place + settings. The timing loop of the project stands here, once.

Every sample of a candidate is taken beside one of a fixed reference network, so that clocks, caches and neighbours that
slow down both cancel in the ratio; milliseconds are the ratio times the reference's own, calibrated once per run.
"""

from __future__ import annotations

import gc
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.devices.lock import machine_lock
from nasvit.devices.reference import make_reference
from nasvit.devices.stats import LatencyStats, Repeat, summarise
from nasvit.errors import ConfigError, MeasurementError
from nasvit.registry import Registry
from nasvit.runtimes import RUNTIMES, Runtime

Call = Callable[[], object]
Clock = Callable[[Call], tuple[float, float]]
"""Runs a call once; its time and its process CPU time in milliseconds."""

REPEATS = 5
PAIRS = 20
LEAST_PAIRS = 2
"""Pairs of a repeat: PAIRS where the total stays under LONGEST_S, fewer for slow networks."""
SHORTEST_S, LONGEST_S = 0.3, 2.5
REFERENCE_SHARE = 0.1
"""Of a slow candidate's time; the reference runs often enough beside it to see the same machine."""
ATTEMPTS = 3
WARM_UP_S = 0.1


def warm_up(call: Call, *, clock: Clock) -> float:
    """Call until two successive medians of three differ by under 5 %, at most WARM_UP_S after six calls; the last median in ms."""
    start = time.perf_counter()
    last = math.inf
    while True:
        now = median(clock(call)[0] for _ in range(3))
        settled = abs(now - last) <= 0.05 * now
        if settled or (last < math.inf and time.perf_counter() - start > WARM_UP_S):
            return now
        last = now


def plan(candidate_ms: float, reference_ms: float) -> tuple[int, int]:
    """(pairs of a repeat, reference calls beside each candidate call) for these speeds."""
    beside = min(20, max(1, round(REFERENCE_SHARE * candidate_ms / reference_ms)))
    pair_s = (candidate_ms + beside * reference_ms) / 1e3
    seconds = min(max(SHORTEST_S, REPEATS * PAIRS * pair_s), LONGEST_S)
    return min(4 * PAIRS, max(LEAST_PAIRS, int(seconds / REPEATS / pair_s))), beside


def sample(candidate: Call, reference: Call, *, clock: Clock, pairs: int, beside: int) -> Repeat:
    """THE timing loop: one repeat of `pairs` candidate calls, each followed by `beside` calls of the reference."""
    candidate_ms: list[float] = []
    reference_ms: list[float] = []
    cpu_ms: list[float] = []
    for _ in range(pairs):
        wall, cpu = clock(candidate)
        candidate_ms.append(wall)
        cpu_ms.append(cpu)
        reference_ms.extend(clock(reference)[0] for _ in range(beside))
    return Repeat(candidate_ms=tuple(candidate_ms), reference_ms=tuple(reference_ms), cpu_ms=tuple(cpu_ms))


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode, and back to its own."""
    before = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in before:
            each.training = training


@contextmanager
def _quiet(threads: int) -> Iterator[None]:
    """Inference mode, this many torch threads, no garbage collection; all given back."""
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


class Device(ABC):
    """Measures modules in one place with one runtime. Abstract; places are final and registered in DEVICES."""

    torch_device: str
    """What `Tensor.to` takes."""

    def __init__(self, *, runtime: Runtime, runtime_name: str, threads: int, reference_ms: float | None) -> None:
        if threads < 1:
            raise ConfigError(f"threads must be at least 1, not {threads}")
        if reference_ms is not None and not (math.isfinite(reference_ms) and reference_ms > 0):
            raise ConfigError(f"reference_ms must be a positive number of milliseconds, not {reference_ms}")
        self.runtime, self.runtime_name, self.threads = runtime, runtime_name, threads
        self.reference_ms = reference_ms
        self._reference: Call | None = None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """12 hex digits of place, runtime and settings; latencies of two fingerprints are never put in one column."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able facts about place, runtime and settings."""

    @abstractmethod
    def clock(self, call: Call) -> tuple[float, float]:
        """Run a call to its end; its milliseconds (docs/metrics.md, latency) and process CPU milliseconds."""

    @abstractmethod
    def peak_memory_mb(self, module: nn.Module, *, input_shape: tuple[int, ...]) -> float:
        """Peak memory of one inference in MB (10^6 bytes), parameters and input included."""

    def calibrate(self) -> float:
        """Time the reference network alone, under the machine lock; sets and returns `reference_ms`.

        The lower quartile of rounds: what disturbs a machine only ever adds time. Two calibrations of one machine still differ by
        several percent, so latencies are comparable only where they share a `reference_ms`.
        """
        reference = self._reference_call()
        with machine_lock.measuring(), _quiet(self.threads):
            warm_up(reference, clock=self.clock)
            rounds = [median(self.clock(reference)[0] for _ in range(PAIRS)) for _ in range(8 * REPEATS)]
        self.reference_ms = quantiles(rounds, n=4)[0]
        return self.reference_ms

    def measure(self, module: nn.Module, *, input_shape: tuple[int, ...]) -> LatencyStats:
        """Latency of one inference of a batch of `input_shape` (B, C, H, W), alone on the machine.

        Takes about 0.4 s up to 3 ms and a few seconds at most otherwise; up to ATTEMPTS times that where the interval
        stays too wide, keeping the narrowest. Calibrates first if there is no `reference_ms`. The module is left in its
        mode and place. Raises MeasurementError for a module that does not run on this shape, or an absurd time.
        """
        scale = self.reference_ms or self.calibrate()
        reference = self._reference_call()
        best: LatencyStats | None = None
        with self._placed(module), in_eval(module):
            image = self.image(module, shape=input_shape)
            candidate = self._checked(module, image)
            with machine_lock.measuring(), _quiet(self.threads):
                for _ in range(ATTEMPTS):
                    stats = self._attempt(candidate, reference, scale=scale, batch_size=input_shape[0])
                    if best is None or (stats.verdict == "stable", -stats.half_width) > (best.verdict == "stable", -best.half_width):
                        best = stats
                    if best.verdict == "stable":
                        break
        assert best is not None
        return best

    def _attempt(self, candidate: Call, reference: Call, *, scale: float, batch_size: int) -> LatencyStats:
        pairs, beside = plan(warm_up(candidate, clock=self.clock), warm_up(reference, clock=self.clock))
        repeats = [sample(candidate, reference, clock=self.clock, pairs=pairs, beside=beside) for _ in range(REPEATS)]
        return summarise(repeats, reference_ms=scale, batch_size=batch_size, fingerprint=self.fingerprint, threads=self.threads)

    def image(self, module: nn.Module, *, shape: tuple[int, ...]) -> Tensor:
        """The input of a measurement: normal values from a fixed seed, in the module's floating type."""
        kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.torch_device, kind)

    def _checked(self, module: nn.Module, image: Tensor) -> Call:
        """The prepared call, run once: a module may fail with any exception, and all are the user's to see."""
        try:
            with torch.inference_mode():
                prepared = self.runtime.prepare(module, image)
                prepared(image)
        except Exception as error:
            raise MeasurementError(f"{type(module).__name__} does not run on an input of shape {tuple(image.shape)} "
                                   f"({type(error).__name__}: {error}); check the network's image size and channels") from error
        return lambda: prepared(image)

    def _reference_call(self) -> Call:
        if self._reference is None:
            module, image = make_reference()
            module, image = module.to(self.torch_device), image.to(self.torch_device)
            self._reference = self._checked(module, image)
        return self._reference

    @contextmanager
    def _placed(self, module: nn.Module) -> Iterator[None]:
        """The module where this device is, and back."""
        home = next((p.device for p in module.parameters()), torch.device(self.torch_device))
        if home.type == torch.device(self.torch_device).type:
            yield
            return
        module.to(self.torch_device)
        try:
            yield
        finally:
            module.to(home)


DEVICES: Registry[type[Device]] = Registry("device")


def open_device(spec: str, *, threads: int = 1, reference_ms: float | None = None) -> Device:
    """The device of a spec "place" or "place/runtime" (default runtime: eager), such as "cpu" or "cuda/eager".

    reference_ms: the run's calibrated scale; without it the device calibrates itself at the first measurement.
    Raises ConfigError for an unknown or absent place, an unknown runtime, or settings out of range.
    """
    place, _, runtime = spec.partition("/")
    runtime = runtime or "eager"
    return DEVICES[place](runtime=RUNTIMES[runtime](), runtime_name=runtime, threads=threads, reference_ms=reference_ms)
