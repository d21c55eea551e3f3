"""Proxy truth: did the short trainings of the search rank networks as a longer training does?

After the search a spread of networks, half of them from the front, is trained from new weights for STRETCH times the steps of the top rung,
in one cycle. The report compares what each rung and each zero-cost proxy said with that. The records stand in truth.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nasvit.results.front import pareto
from nasvit.results.record import TrialRecord, append, latest, read
from nasvit.search.evaluate import Job, Settings, failure
from nasvit.search.in_turn import Submits, in_turn
from nasvit.search.rungs import best

FILE = "truth.jsonl"
STRETCH = 2
"""The truth's steps, as a multiple of the top rung's."""
FEWEST, MOST = 6, 24
"""Networks: with fewer than FEWEST a tau says nothing, more than MOST say little more."""
ALLOWED = 0.75
"""FEWEST are trained although the share buys fewer, if they take no more than this share of the search's steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthPlan:
    """networks: how many are trained, each for `steps`. reason: why none is, where none is."""

    networks: int
    steps: int
    reason: str = ""


def steps_trained(records: Sequence[TrialRecord], rungs: Sequence[int]) -> int:
    """Training steps of all trials of a search."""
    return sum(rungs[r.rung - 1] for r in latest(records).values() if r.status == "complete" and 1 <= r.rung <= len(rungs))


def plan(records: Sequence[TrialRecord], rungs: Sequence[int], *, share: float) -> TruthPlan:
    """How many networks `share` of the search's training steps buys, between FEWEST and MOST."""
    steps, spent = STRETCH * rungs[-1], steps_trained(records, rungs)
    there = sum(r.status == "complete" for r in latest(records).values())
    wanted = max(FEWEST, min(MOST, int(share * spent / steps)))
    if not share:
        return TruthPlan(networks=0, steps=steps, reason="switched off (truth: 0)")
    if there < FEWEST:
        return TruthPlan(networks=0, steps=steps, reason=f"{there} networks were evaluated, and fewer than {FEWEST} rank nothing")
    if wanted * steps > max(share, ALLOWED) * spent:
        return TruthPlan(networks=0, steps=steps, reason=f"{wanted} networks at {steps} steps would take {wanted * steps} steps, and the "
                         f"whole search took {spent}")
    return TruthPlan(networks=min(wanted, there), steps=steps)


def spread(records: Sequence[TrialRecord], names: Sequence[str], *, count: int) -> list[TrialRecord]:
    """`count` evaluated networks from the whole range: by turns one of the front, evenly along it, and one behind it, evenly from the best
    to the worst. Any beginning of the list is a spread, too."""
    done = [r for r in latest(records).values() if r.status == "complete" and r.has_arch and all(n in r.objectives for n in names)]
    front = pareto(done, names)
    members = {r.trial for r in front}
    rest = [done[i] for i in best(done, names, count=len(done)) if done[i].trial not in members]
    rest = [rest[i] for i in _evenly(len(rest), first=count)]
    front = [front[i] for i in _evenly(len(front), first=count)]
    mixed = [r for pair in zip(front, rest, strict=False) for r in pair]
    left = front[len(rest):] + rest[len(front):]
    return (mixed + left)[:count]


def _evenly(count: int, *, first: int) -> list[int]:
    """The first of 0 .. count - 1 in an order whose every beginning is spread over the range: the ends, then always the middle of the
    widest gap."""
    order = [0, count - 1][:count]
    while len(order) < min(count, first):
        known = np.sort(order)
        gap = int(np.argmax(np.diff(known)))
        order.append(int((known[gap] + known[gap + 1]) // 2))
    return order


def run_truth(records: Sequence[TrialRecord], *, settings: Settings, names: Sequence[str], share: float, engine: Submits, path: Path,
              evaluate: Callable[[Job], TrialRecord], seconds: float | None = None,
              told: Callable[[str], object] = lambda text: None) -> dict[str, Any]:
    """Train the spread and append its records to the file; returns what summary.json says of it.

    What the file has already is not trained again, so a killed or resumed run goes on. seconds: nothing is begun after so long. told hears
    how far it is.
    """
    made = plan(records, settings.rungs, share=share)
    began, stopped = time.monotonic(), ""
    known = {r.arch_id for r in read(path, mend=True) if r.details.get("truth_steps") == made.steps}
    waiting = [r for r in spread(records, names, count=made.networks) if r.arch_id not in known]
    waiting = waiting[: max(0, made.networks - len(known))]
    done_now = len(known)

    def jobs() -> Iterator[tuple[Job]]:
        nonlocal stopped
        for record in waiting:
            if seconds is not None and time.monotonic() - began > seconds:
                stopped = f"the minutes were over before {made.networks} networks"
                return
            yield (Job(settings=settings, trial=record.trial, arch=record.network(), rung=len(settings.rungs) + 1, params=record.params,
                       truth=made.steps),)

    for (job,), future in in_turn(engine, evaluate, jobs()):
        landed = _landed(future, job, steps=made.steps)
        if landed is not None:
            append(path, landed)
            done_now += 1
            told(f"proxy truth: {done_now} of {made.networks} networks trained for {made.steps} steps")
    done = [r for r in read(path) if r.status == "complete" and r.details.get("truth_steps") == made.steps]
    spent = steps_trained(records, settings.rungs)
    return {"networks": len(done), "steps": made.steps, "share": len(done) * made.steps / spent if spent else 0.0,
            "train_seconds": sum(r.seconds.get("train", 0.0) for r in done), "reason": made.reason or stopped}


def _landed(future: Future[TrialRecord], job: Job, *, steps: int) -> TrialRecord | None:
    """The record; of a worker that died, or took too much, a failed one."""
    try:
        record = future.result()
    except CancelledError:
        return None
    except Exception as error:  # the worker died: one truth less, and its reason on record
        record = replace(TrialRecord(trial=job.trial, status="failed", rung=job.rung, arch=job.arch.to_dict(), arch_id=job.arch.id,
                                     params=job.params, versions=job.settings.versions, started=time.time()), **failure(error))
    return replace(record, details={**record.details, "truth_steps": steps})
