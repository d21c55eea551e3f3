"""The machine this process runs on, with torch inside this process: its CPU, or its first CUDA GPU."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from nasvit.devices import machine, timing
from nasvit.devices.base import DEVICES, Device, Prepared, example
from nasvit.devices.form import inference_form
from nasvit.devices.lock import machine_lock
from nasvit.devices.memory import peak_bytes
from nasvit.devices.reference import VERSION, make_reference
from nasvit.devices.spec import DeviceSpec
from nasvit.errors import ConfigError, MeasurementError
from nasvit.runtimes import Runtime

MEMORY_SHARE = 0.8
"""Of the memory that is free: a network that needs more is refused before it takes the machine down."""


def fingerprint_of(facts: dict[str, Any]) -> str:
    """12 hex digits of SHA-256 over the facts' canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many torch threads, the number before given back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet(threads: int) -> Iterator[None]:
    """Inference mode, this many torch threads, no garbage collection; all given back."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch_threads(threads), torch.inference_mode():
            yield
    finally:
        if collecting:
            gc.enable()


class _Local(Device):
    """What both places of this machine share: facts and fingerprint, and calls inside this process."""

    _reference: timing.Call | None = None

    def _identity(self) -> dict[str, Any]:
        facts = machine.facts()
        return {"kind": self.torch_device, "cpu": facts["cpu"], "cores": facts["cores"], "torch": torch.__version__,
                "threads": self.threads, "runtime": self.spec.runtime, "settings": self.settings_facts(),
                "runtime_version": self.runtime.version(), "reference": VERSION, "form": self.runtime.form}

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of(self._identity())

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        return {**self._identity(), "place": self.spec.where, "fingerprint": self.fingerprint, **self.scale_facts(), **machine.state(),
                "system": machine.facts()["system"]}

    def alone(self) -> AbstractContextManager[None]:
        return machine_lock.measuring()

    @abstractmethod
    def clock(self, call: timing.Call) -> tuple[float, float]:
        """Run a call to its end; its milliseconds (docs/metrics.md, latency) and process CPU milliseconds."""

    @abstractmethod
    def first_run(self, form: nn.Module, image: Tensor) -> tuple[timing.Call, int]:
        """The prepared call, run once, and the peak memory of one inference in bytes.

        Raises MeasurementError for more memory than the machine can give, where that can be known in time.
        """

    @contextmanager
    def prepared(self, module: nn.Module, *, input_shape: tuple[int, ...]) -> Iterator[Prepared]:
        form = inference_form(module).to(self.torch_device)
        image = example(form, shape=input_shape).to(self.torch_device)
        with machine_lock.training():  # preparing is work too: it would disturb another worker's measurement
            reference = self._reference_call()
            try:
                candidate, peak = self.first_run(form, image)
            except MeasurementError:
                raise
            except Exception as error:  # a module may fail with any exception, and all are the user's to see
                raise MeasurementError(f"{type(module).__name__} does not run on an input of shape {input_shape} "
                                       f"({type(error).__name__}: {error}); check the network's image size and channels") from error

        def attempt(repeats: int) -> timing.Attempt:
            with quiet(self.threads):
                return timing.attempt(candidate, reference, clock=self.clock, repeats=repeats)

        yield Prepared(device=self, batch_size=input_shape[0], attempt=attempt, peak=lambda: peak / 1e6)

    def rounds(self, seconds: float) -> list[float]:
        with quiet(self.threads):
            return timing.rounds(self._reference_call(), clock=self.clock, seconds=seconds)

    def _call(self, module: nn.Module, image: Tensor) -> timing.Call:
        with torch_threads(self.threads), torch.inference_mode():  # a compiler writes code for as many threads as there are
            ready = self.runtime.prepare(module, image)
            ready(image)
        return lambda: ready(image)

    def _reference_call(self) -> timing.Call:
        if self._reference is None:
            module, image = make_reference()
            self._reference = self._call(module.to(self.torch_device), image.to(self.torch_device))
        return self._reference


@DEVICES.register("cpu")
@final
class Cpu(_Local):
    """This machine's CPU."""

    torch_device = "cpu"

    def __init__(self, *, spec: DeviceSpec, runtime: Runtime, threads: int, reference_ms: float | None) -> None:
        self._keeps_memory = machine.keep_freed_memory()
        super().__init__(spec=spec, runtime=runtime, threads=threads, reference_ms=reference_ms)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "keeps_freed_memory": self._keeps_memory}

    def clock(self, call: timing.Call) -> tuple[float, float]:
        return timing.cpu_clock(call, threads=self.threads)

    def first_run(self, form: nn.Module, image: Tensor) -> tuple[timing.Call, int]:
        free = machine.available_mb()
        peak = peak_bytes(form, image, limit=None if free is None else MEMORY_SHARE * free * 1e6)
        return self._call(form, image), peak


@DEVICES.register("cuda")
@final
class Cuda(_Local):
    """This machine's first CUDA GPU."""

    torch_device = "cuda"

    def __init__(self, *, spec: DeviceSpec, runtime: Runtime, threads: int, reference_ms: float | None) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("device 'cuda': this torch finds no CUDA GPU; use --device cpu, or install a CUDA build of torch "
                              "and its driver")
        super().__init__(spec=spec, runtime=runtime, threads=threads, reference_ms=reference_ms)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}

    def clock(self, call: timing.Call) -> tuple[float, float]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        cpu = time.process_time_ns()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)), (time.process_time_ns() - cpu) / 1e6

    def first_run(self, form: nn.Module, image: Tensor) -> tuple[timing.Call, int]:
        held = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in (*form.parameters(), *form.buffers(), image))}
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()  # preparing counts too: a captured graph keeps what its capture took
        call = self._call(form, image)
        torch.cuda.synchronize()
        return call, int(torch.cuda.max_memory_allocated()) - before + sum(held.values())
