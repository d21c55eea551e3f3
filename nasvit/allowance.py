"""What of this machine a process may use: its cores and memory, or the container's share of them where that is less."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a container its limits; the folders below it are those of version 1."""


def usable_cores() -> int:
    """Cores that this process may run on (its affinity), or the whole ones in the container's quota, if fewer; at least 1."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return there if quota is None else max(1, min(there, int(quota)))


def usable_mb() -> float:
    """Memory that all processes here may have together in MB (10^6 bytes): the machine's, or the container's limit, if less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    limits = [_number(CGROUP / name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    return min([machine, *(limit / 1e6 for limit in limits if limit is not None)])


def _quota() -> float | None:
    """Processors that a container may keep busy, such as 1.5; None for no quota."""
    words = _words(CGROUP / "cpu.max")
    if len(words) != 2:
        words = _words(CGROUP / "cpu" / "cpu.cfs_quota_us") + _words(CGROUP / "cpu" / "cpu.cfs_period_us")
    if len(words) != 2 or not all(word.isdigit() for word in words) or not int(words[1]):  # "max", or -1: no quota
        return None
    return int(words[0]) / int(words[1])


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
