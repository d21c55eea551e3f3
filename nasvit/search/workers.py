"""A search's workers: its experiment's engine with what a job may take, and the process that measures for a cluster.

Light to import, because workers of a resumed run are warmed while the driver itself still imports what it needs.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasvit.allowance import usable_mb
from nasvit.engines import Engine, JobLimits, make_engine, resident_mb
from nasvit.engines.ray_access import check_start, running_cluster
from nasvit.experiment import Experiment

NEEDED = "nasvit.search.evaluate"
"""What every worker imports before its first job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """engine: does the jobs. measuring: one process on this machine that measures, where the engine's workers are on others."""

    engine: Engine
    measuring: Engine | None = None

    def shutdown(self, *, cancel: bool) -> None:
        """End all; measuring first, whose results become jobs of the other."""
        for engine in (self.measuring, self.engine):
            if engine is not None:
                engine.shutdown(cancel=cancel)


def open_workers(experiment: Experiment, *, warm: bool = False) -> Workers:
    """The experiment's engine. Of a cluster the workers train, and one process here measures. warm: all start now, each importing what its
    jobs need, and not with their first jobs; the one that measures while the cluster is joined, which takes a second.

    Raises ConfigError for an unknown engine, limits that it cannot hold, and a cluster that cannot be joined.
    """
    limits = job_limits(experiment)

    def opened(name: str, **settings: Any) -> Engine:
        engine = make_engine(name, limits=limits, **settings)
        if warm:
            engine.warm(NEEDED)
        return engine

    if experiment.engine != "ray":
        return Workers(engine=opened(experiment.engine, workers=experiment.workers))
    measuring = opened("processes", workers=1) if running_cluster(experiment.ray_address) else None
    try:
        engine = opened("ray", workers=experiment.workers, address=experiment.ray_address, gpus=experiment.gpus_per_worker)
    except BaseException:
        if measuring is not None:
            measuring.shutdown(cancel=True)
        raise
    return Workers(engine=engine, measuring=measuring)


def check_workers(experiment: Experiment) -> None:
    """Raises ConfigError for what is wrong with the engine, and known before anything is joined or begun."""
    if experiment.engine == "ray":
        check_start(experiment.ray_address, gpus=experiment.gpus_per_worker)


@contextmanager
def joined(experiment: Experiment, begun: Workers | None = None) -> Iterator[Workers | None]:
    """`begun`, else the workers of a running cluster: it is joined before anything is measured, because it may refuse. None where workers
    start on this machine, which would disturb the device's calibration. Those of the cluster are shut down at the end."""
    if begun is not None or experiment.engine != "ray" or running_cluster(experiment.ray_address) is None:
        yield begun
        return
    workers = open_workers(experiment)
    try:
        yield workers
    finally:
        workers.shutdown(cancel=True)  # where the search came to its end it has done so


def warmed(experiment: Experiment, out: Path) -> Workers | None:
    """Workers that import what they need while the driver imports, for a run that can be resumed; None for a directory that holds no run,
    or in which another search works, whose measurements they would disturb."""
    if not (out / "env.json").is_file():
        return None
    try:
        with (out / ".lock").open("a") as file:  # held for this look alone; the search claims it when it begins
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return open_workers(experiment, warm=True)


def job_limits(experiment: Experiment) -> JobLimits:
    """What one job may take in this experiment's engine; inline has no worker that could be ended."""
    if experiment.engine == "inline":
        return JobLimits()
    memory = None if experiment.job_memory_gb is None else 1e3 * experiment.job_memory_gb
    if memory is None and experiment.engine == "processes" and resident_mb(os.getpid()):  # where the system tells (Linux does)
        memory = 0.9 * usable_mb() / experiment.workers
    return JobLimits(seconds=60 * experiment.job_minutes, memory_mb=memory)
