"""What the workers of a cluster run in a test: an evaluation that says where it was, and the driver of a search."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from nasvit.engines import parcels
from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord
from nasvit.search import Snapshot, run
from nasvit.search.evaluate import Job, evaluated, parcel_of, twofold

MEETING = "NASVIT_TEST_MEETING"
"""A folder in which workers leave their process ids."""


@twofold
def tracing(job: Job) -> TrialRecord:
    """Its details say who measured and who trained; its checkpoint is a text that every rung adds a line to."""
    return evaluated(job, first=_first, further=_further)


def _first(job: Job, blank: TrialRecord) -> TrialRecord:
    size = int(job.arch.id[:4], 16) / 65536
    gated = job.gated or replace(blank, status="complete", objectives={"latency_ms": 0.5 + size}, details={"measured_by": os.getpid()})
    return gated if job.only_gate else _trained(job, gated, "")


def _further(job: Job, blank: TrialRecord) -> TrialRecord:
    assert job.earlier is not None and job.earlier.checkpoint is not None
    before = (Path(job.settings.run) / job.earlier.checkpoint).read_text()
    return _trained(job, replace(blank, status="complete", objectives=job.earlier.objectives), before)


def _meet(trial: int) -> None:
    """Later trials wait until two, then three workers have ever been at work: a busy machine starts them slowly."""
    folder, wanted = Path(os.environ[MEETING]), 1 + (trial >= 8) + (trial >= 16)
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 150
    while len(list(folder.iterdir())) < wanted and time.monotonic() < end:
        time.sleep(0.05)


def _trained(job: Job, record: TrialRecord, before: str) -> TrialRecord:
    time.sleep(0.05)
    _meet(job.trial)
    name = f"checkpoints/{job.arch.id}-r{job.rung}.safetensors"
    path = Path(job.settings.run) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before}rung {job.rung}\n")
    size = int(job.arch.id[:4], 16) / 65536
    data = parcels.fetched(parcel_of(job.settings))
    details = {**record.details, "trained_by": os.getpid(), "run": job.settings.run, "train_on": job.settings.train_on,
               "images": 0 if data is None else len(data["train.images"])}
    return replace(record, objectives={**record.objectives, "accuracy": 0.5 + 0.1 * job.rung * size}, checkpoint=name, details=details)


def drive(out: str, values: dict[str, Any], *, real: bool) -> None:
    """Search, and print what a display is told of nodes, then the summary."""
    seen: set[str] = set()

    def progress(snapshot: Snapshot) -> None:
        for node in snapshot.nodes:
            if node.name not in seen:
                seen.add(node.name)
                print(f"NODE {node.name}", flush=True)

    more = {} if real else {"evaluate": tracing}
    print("SUMMARY " + json.dumps(run(Experiment(**values), out=Path(out), progress=progress, **more)), flush=True)


if __name__ == "__main__":
    from tests.integration import cluster_tasks  # so that functions have a name that workers can import

    cluster_tasks.drive(sys.argv[1], json.loads(sys.argv[2]), real=sys.argv[3] == "real")
