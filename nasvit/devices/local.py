"""The machine this process runs on: its CPU, or its first CUDA GPU."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import sys
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from nasvit.devices.base import DEVICES, Call, Device, in_eval
from nasvit.devices.memory import peak_bytes
from nasvit.devices.reference import VERSION
from nasvit.errors import ConfigError, MeasurementError
from nasvit.runtimes import Runtime


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in the process; whether it did. Elsewhere nothing is changed.

    By default tensors over 128 kB may come from fresh pages in one process and not in the next, by luck of the heap: hundreds
    of page faults per call, measured as 10 ms against 15 ms of CPU time for one network in two processes.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    return bool(libc.mallopt(mmap_threshold, 1 << 30)) and bool(libc.mallopt(trim_threshold, 1 << 30))


def processor_time(wall_ms: float, thread_ms: float) -> float:
    """Wall time of a one-threaded call, less what it waited for the processor while another process had it.

    Where the two agree to 5 % and 0.02 ms the wall clock, which is the finer one, is believed.
    """
    return thread_ms if wall_ms - thread_ms > max(0.02, 0.05 * wall_ms) else wall_ms


def fingerprint_of(facts: dict[str, Any]) -> str:
    """12 hex digits of SHA-256 over the facts' canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _run(module: nn.Module, image: torch.Tensor, measure: Any) -> float:
    try:
        return float(measure())
    except Exception as error:
        raise MeasurementError(f"{type(module).__name__} does not run on an input of shape {tuple(image.shape)} "
                               f"({type(error).__name__}: {error}); check the network's image size and channels") from error


class _Local(Device):
    """What both places of this machine share: facts and fingerprint."""

    def _identity(self) -> dict[str, Any]:
        return {"kind": self.torch_device, "cpu": cpu_model(), "cores": os.cpu_count(), "torch": torch.__version__, "threads": self.threads,
                "runtime": self.runtime_name, "runtime_version": self.runtime.version(), "reference": VERSION}

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of(self._identity())

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        cpu = "/sys/devices/system/cpu/cpu0/cpufreq/"
        khz = _read(cpu + "scaling_max_freq")
        return {**self._identity(), "fingerprint": self.fingerprint, "reference_ms": self.reference_ms,
                "governor": _read(cpu + "scaling_governor"), "max_frequency_mhz": int(khz) / 1e3 if khz and khz.isdigit() else None,
                "load_average": list(os.getloadavg()), "system": platform.platform()}


@DEVICES.register("cpu")
@final
class Cpu(_Local):
    """This machine's CPU."""

    torch_device = "cpu"

    def __init__(self, *, runtime: Runtime, runtime_name: str, threads: int, reference_ms: float | None) -> None:
        self._keeps_memory = keep_freed_memory()
        super().__init__(runtime=runtime, runtime_name=runtime_name, threads=threads, reference_ms=reference_ms)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "keeps_freed_memory": self._keeps_memory}

    def clock(self, call: Call) -> tuple[float, float]:
        cpu, thread, start = time.process_time_ns(), time.thread_time_ns(), time.perf_counter_ns()
        call()
        wall_ms = (time.perf_counter_ns() - start) / 1e6
        thread_ms, cpu_ms = (time.thread_time_ns() - thread) / 1e6, (time.process_time_ns() - cpu) / 1e6
        return (processor_time(wall_ms, thread_ms) if self.threads == 1 else wall_ms), cpu_ms

    def peak_memory_mb(self, module: nn.Module, *, input_shape: tuple[int, ...]) -> float:
        with self._placed(module), in_eval(module):
            image = self.image(module, shape=input_shape)
            return _run(module, image, lambda: peak_bytes(module, image)) / 1e6


@DEVICES.register("cuda")
@final
class Cuda(_Local):
    """This machine's first CUDA GPU."""

    torch_device = "cuda"

    def __init__(self, *, runtime: Runtime, runtime_name: str, threads: int, reference_ms: float | None) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("device 'cuda': this torch finds no CUDA GPU; use --device cpu, or install a CUDA build of torch "
                              "and its driver")
        super().__init__(runtime=runtime, runtime_name=runtime_name, threads=threads, reference_ms=reference_ms)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}

    def clock(self, call: Call) -> tuple[float, float]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        cpu = time.process_time_ns()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)), (time.process_time_ns() - cpu) / 1e6

    def peak_memory_mb(self, module: nn.Module, *, input_shape: tuple[int, ...]) -> float:
        def peak() -> int:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            with torch.inference_mode():
                module(image)
            torch.cuda.synchronize()
            held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*module.parameters(), *module.buffers(), image)}
            return int(torch.cuda.max_memory_allocated()) - before + sum(held.values())

        with self._placed(module), in_eval(module):
            image = self.image(module, shape=input_shape)
            return _run(module, image, peak) / 1e6
