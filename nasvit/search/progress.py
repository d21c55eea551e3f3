"""What a display is told while a search goes on: a frozen Snapshot, computed from the records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nasvit.engines import Node
from nasvit.results.front import hypervolume, pareto, reference_point, to_minimised
from nasvit.results.record import TrialRecord, latest


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of a run. budget, evaluated, rejected, failed: trials. running: jobs in the workers.

    per_rung: complete results at rung 1, 2, ... best: (latency band such as "<= 0.5 ms", best accuracy in it), fastest first.
    hypervolume: of the front, against the worst values seen so far. front: (latency_ms, accuracy), fastest first.
    elapsed_s: of this session. eta_s: to the end, None while nothing is known. last: the record that came last.
    stopped_because: None while the search goes on. notes: what the user must know, of the space and of what happens.
    nodes: the machines of a cluster that workers are on just now. of: what these figures are of, where not of the search itself.
    """

    budget: int
    evaluated: int
    rejected: int
    failed: int
    running: int
    per_rung: tuple[int, ...]
    best: tuple[tuple[str, float], ...]
    hypervolume: float
    front: tuple[tuple[float, float], ...]
    elapsed_s: float
    eta_s: float | None
    last: TrialRecord | None = None
    stopped_because: str | None = None
    notes: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    of: str = ""


Progress = Callable[[Snapshot], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Trials by what became of them: evaluated has a complete result at rung 1 or above, rejected and failed have none."""

    evaluated: int
    rejected: int
    failed: int


def counts(records: Sequence[TrialRecord]) -> Counts:
    """Distinct trials, each counted once; a failed promotion leaves its trial evaluated."""
    evaluated = {r.trial for r in records if r.status == "complete" and r.rung >= 1}
    rejected = {r.trial for r in records if r.status == "rejected"} - evaluated
    failed = {r.trial for r in records if r.status == "failed"} - evaluated
    return Counts(evaluated=len(evaluated), rejected=len(rejected), failed=len(failed))


class Tally:
    """`counts`, and the complete results of each rung, kept up as records come: a driver asks for them at every trial."""

    def __init__(self, records: Iterable[TrialRecord] = ()) -> None:
        self._evaluated: set[int] = set()
        self._rejected: set[int] = set()
        self._failed: set[int] = set()
        self._rungs: dict[int, list[TrialRecord]] = {}
        for record in records:
            self.add(record)

    def add(self, record: TrialRecord) -> None:
        """Count one more."""
        if record.status == "complete":
            self._rungs.setdefault(record.rung, []).append(record)
        if record.status == "complete" and record.rung >= 1:
            self._evaluated.add(record.trial)
            self._rejected.discard(record.trial)
            self._failed.discard(record.trial)
        elif record.trial not in self._evaluated:
            if record.status == "rejected":
                self._rejected.add(record.trial)
            elif record.status == "failed":
                self._failed.add(record.trial)

    @property
    def counts(self) -> Counts:
        """As `counts` gives them."""
        return Counts(evaluated=len(self._evaluated), rejected=len(self._rejected), failed=len(self._failed))

    def at_rung(self, rung: int) -> Sequence[TrialRecord]:
        """As `rungs.at_rung` gives them; not a copy."""
        return self._rungs.get(rung, ())


def bands(points: Sequence[tuple[float, float]]) -> tuple[tuple[str, float], ...]:
    """Best accuracy in each octave of latency that has a point; points are (latency_ms, accuracy)."""
    best: dict[int, float] = {}
    for latency, accuracy in points:
        octave = math.ceil(math.log2(max(latency, 1e-6)) - 1e-9)
        best[octave] = max(best.get(octave, 0.0), accuracy)
    return tuple((f"<= {2.0**octave:g} ms", best[octave]) for octave in sorted(best))


def snapshot(records: Sequence[TrialRecord], *, budget: int, rungs: int, names: Sequence[str], running: int, elapsed_s: float,
             before: int, minutes: float | None = None, finish_s: float = 0.0, last: TrialRecord | None = None,
             stopped_because: str | None = None) -> Snapshot:
    """Compute a Snapshot; before: trials evaluated when this session began, which tell nothing about its speed; minutes: its limit;
    finish_s: what the trainings behind the last trial take."""
    done = counts(records)
    trained = [r for r in records if r.status == "complete" and all(n in r.objectives for n in names)]
    complete = list(latest(trained).values())
    cost = next((name for name in names if name.partition("@")[0] == "latency_ms"), "latency_ms")  # another one where the first is gone
    plane = [(r.objectives[cost], r.objectives["accuracy"]) for r in complete if cost in r.objectives]
    front = pareto(records, names)
    volume = 0.0
    if trained:  # of every rung: what a promotion makes better must not move the point back
        reference = reference_point(to_minimised([r.objectives for r in trained], names))
        volume = hypervolume(to_minimised([r.objectives for r in front], names), reference)
    fresh = done.evaluated - before
    ends = [60 * minutes - elapsed_s] if minutes is not None else []
    if done.evaluated >= budget:
        ends += [finish_s] if finish_s > 0 or not running else []  # it takes longer than was thought: nobody knows
    elif fresh > 0:
        ends.append(elapsed_s / fresh * (budget - done.evaluated) + finish_s)
    return Snapshot(
        budget=budget, evaluated=done.evaluated, rejected=done.rejected, failed=done.failed, running=running,
        per_rung=tuple(sum(r.rung == rung and r.status == "complete" for r in records) for rung in range(1, rungs + 1)),
        best=bands(plane), hypervolume=volume,
        front=tuple(sorted((r.objectives[cost], r.objectives["accuracy"]) for r in front if cost in r.objectives)),
        elapsed_s=elapsed_s, eta_s=max(0.0, min(ends)) if ends else None,
        last=last, stopped_because=stopped_because)
