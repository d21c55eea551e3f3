"""The machine a process runs on: what it is, and the state it is in. The standard library of Python 3.8 is enough (see timing.py)."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from typing import Any

_CPU = "/sys/devices/system/cpu/cpu0/cpufreq/"
_THERMAL = "/sys/class/thermal"


def read(path: str) -> str | None:
    """The first 4 kB of a small system file, stripped; None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return None


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    lines = (read_all("/proc/cpuinfo") or "").splitlines()
    for key in ("model name", "Hardware", "CPU part"):  # the last two: ARM
        for line in lines:
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_all(path: str) -> str | None:
    """A whole system file; None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1_000_000)
    except OSError:
        return None


def facts() -> dict[str, Any]:
    """What does not change while a machine is up: processor, cores, architecture, system, memory."""
    return {"cpu": cpu_model(), "cores": os.cpu_count() or 1, "machine": platform.machine(), "system": platform.platform(),
            "python": platform.python_version(), "memory_mb": _memory("MemTotal")}


def state() -> dict[str, Any]:
    """What may change from one measurement to the next; None where the system does not tell."""
    return {"governor": read(_CPU + "scaling_governor"), "frequency_mhz": _mhz("scaling_cur_freq"),
            "max_frequency_mhz": _mhz("scaling_max_freq"), "temperature_c": temperature_c(), "load_average": _load(),
            "available_mb": available_mb()}


def temperature_c() -> float | None:
    """The hottest thermal zone in degrees Celsius."""
    found: list[float] = []
    try:
        zones = sorted(os.listdir(_THERMAL))
    except OSError:
        return None
    for zone in zones:
        text = read(f"{_THERMAL}/{zone}/temp")
        if zone.startswith("thermal_zone") and text and text.lstrip("-").isdigit():
            degrees = int(text) / 1000
            if -50 < degrees < 200:  # broken sensors say anything
                found.append(degrees)
    return max(found) if found else None


def available_mb() -> float | None:
    """Memory that a new process could have without swapping, in MB (10^6 bytes): the system's figure or the container's, if less.

    A container's use counts files in the page cache, which give way; they are taken off.
    """
    system = _memory("MemAvailable")
    for folder, limit, used, cache in (("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
                                       ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")):
        most, now = read(f"{folder}/{limit}"), read(f"{folder}/{used}")
        if most and now and most.isdigit() and now.isdigit():
            facts = [line.split() for line in (read(f"{folder}/memory.stat") or "").splitlines()]
            files = next((int(fact[1]) for fact in facts if len(fact) == 2 and fact[0] == cache and fact[1].isdigit()), 0)
            left = max(0.0, (int(most) - max(0, int(now) - files)) / 1e6)
            system = left if system is None else min(system, left)
    return system


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


def resident_mb() -> tuple[float, float]:
    """(now, most so far) of this process's memory in MB (10^6 bytes), as Linux counts them.

    Elsewhere both are the most so far, so that growth below an earlier peak is not seen. Raises OSError where nothing is told.
    """
    status = read("/proc/self/status")
    if status is None and sys.platform != "win32":
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        return most, most
    values = dict(line.split(":", 1) for line in (status or "").splitlines() if ":" in line)
    try:
        return int(values["VmRSS"].split()[0]) * 1024 / 1e6, int(values["VmHWM"].split()[0]) * 1024 / 1e6
    except KeyError:
        raise OSError("this system does not tell a process's peak memory") from None


def _memory(key: str) -> float | None:
    for line in (read("/proc/meminfo") or "").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def _mhz(name: str) -> float | None:
    text = read(_CPU + name)
    return int(text) / 1e3 if text and text.isdigit() else None


def _load() -> list[float] | None:
    try:
        return list(os.getloadavg())
    except (OSError, AttributeError):
        return None
