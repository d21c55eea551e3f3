"""Evaluations that train nothing: what a worker does in the fault and scaling experiments. Values follow from the architecture alone."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from nasvit.results.record import TrialRecord
from nasvit.search.evaluate import Job


def values_of(job: Job) -> dict[str, float]:
    """Accuracy and latency of a network that nobody trains, the same in every process."""
    size = int(job.arch.id[:6], 16) / 16**6
    return {"accuracy": 0.4 + 0.2 * size + 0.1 * job.rung * (1 - size), "latency_ms": 0.5 + 4 * size, "macs_g": size, "params_m": 2 * size}


def made(job: Job, *, seconds: float = 0.0, **objectives: Any) -> TrialRecord:
    """The record of a job that took so long and ends now."""
    return TrialRecord(trial=job.trial, status="complete", rung=job.rung, arch=job.arch.to_dict(), arch_id=job.arch.id, params=job.params,
                       objectives={**values_of(job), **objectives}, seconds={"train": seconds, "measure": 0.0, "total": seconds},
                       started=time.time() - seconds)


def nothing(job: Job) -> TrialRecord:
    """No work at all."""
    return made(job)


def about_a_second(job: Job) -> TrialRecord:
    """0.5 to 1.5 s of doing nothing."""
    seconds = 0.5 + values_of(job)["latency_ms"] / 4.5
    time.sleep(seconds)
    return made(job, seconds=seconds)


ATTEMPTS = "attempts.jsonl"
"""In the run directory: [trial, when it was begun] of every attempt at a trial that goes wrong."""


def _every_fifth(job: Job) -> bool:
    """Whether the trial goes wrong; if so, that it was begun is noted."""
    if job.trial % 5 != 2:
        return False
    with (Path(job.settings.run) / ATTEMPTS).open("a") as file:
        file.write(json.dumps([job.trial, time.time()]) + "\n")
    return True


def hangs(job: Job) -> TrialRecord:
    """Every fifth trial never ends."""
    if _every_fifth(job):
        time.sleep(10**6)
    return made(job)


def swells(job: Job) -> TrialRecord:
    """Every fifth trial takes 3 GB."""
    if _every_fifth(job):
        block = bytearray(3 * 10**9)
        block[::4096] = b"x" * len(block[::4096])  # touched, so that it is resident
        time.sleep(60)
    return made(job)


def crashes(job: Job) -> TrialRecord:
    """Every fifth trial takes its process with it."""
    if _every_fifth(job):
        os.kill(os.getpid(), signal.SIGSEGV)
    return made(job)


ODD: dict[str, Any] = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "1e308": 1e308, "negative": -1.0, "text": "0.9",
                       "none": None, "true": True}
SOUND = 6
METRICS = ("accuracy", "latency_ms", "macs_g", "params_m", "peak_memory_mb")


def odd(job: Job) -> TrialRecord:
    """After six sound trials, 40 that give one odd value in one metric each."""
    names = [(metric, value) for metric in METRICS for value in ODD.values()]
    return made(job, **dict([names[job.trial - SOUND]])) if 0 <= job.trial - SOUND < len(names) else made(job)
