"""What of a machine a process may use: affinity, and the quotas of both versions of control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from nasvit import allowance
from nasvit.experiment import Experiment

CORES = 8


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the files of a container's limits; of a machine with eight cores."""
    monkeypatch.setattr(allowance, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)), raising=False)

    def write(files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    return write


@pytest.mark.parametrize(("files", "cores"), [
    ({}, CORES), ({"cpu.max": "max 100000\n"}, CORES), ({"cpu.max": "200000 100000\n"}, 2), ({"cpu.max": "250000 100000\n"}, 2),
    ({"cpu.max": "50000 100000\n"}, 1), ({"cpu.max": "1600000 100000\n"}, CORES), ({"cpu.max": "nonsense"}, CORES),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CORES),
    ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "0\n"}, CORES)])
def test_cores_of_a_container(given, files, cores) -> None:
    given(files)
    assert allowance.usable_cores() == cores


@pytest.mark.parametrize(("files", "mb"), [
    ({}, None), ({"memory.max": "max\n"}, None), ({"memory.max": "64000000\n"}, 64.0),
    ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None), ({"memory/memory.limit_in_bytes": "32000000\n"}, 32.0)])
def test_memory_of_a_container(given, files, mb) -> None:
    whole = allowance.usable_mb()
    given(files)
    assert allowance.usable_mb() == (whole if mb is None else mb)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processes")
def test_a_search_pinned_to_one_core_has_one_worker() -> None:
    code = ("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from nasvit.experiment import Experiment; "
            "print(Experiment(data='digits', space='hybrid_tiny').workers)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    assert 1 <= Experiment(data="digits", space="hybrid_tiny").workers <= len(os.sched_getaffinity(0))
