"""Successive halving over several objectives, asynchronous: pure functions over records.

A trial is judged once at each rung, when its result there arrives, among all results of that rung so far. Best is the lower
non-dominated rank; within a rank, the larger hypervolume contribution. It is promoted if it stands among the first
n // eta of n, so the first promotion needs eta results. A judgement on arrival knows only what came before; so in the end the
best n // eta of each rung are promoted as they then stand, and the front's members until it stands on the top rung alone
(`unfinished`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from nasvit.results.front import contributions, pareto, ranks, reference_point, to_minimised
from nasvit.results.record import TrialRecord

JUDGED = 512
"""So many results of a rung a new one is held against: of these, the share of better ones is known to two percent."""


def at_rung(records: Iterable[TrialRecord], rung: int) -> list[TrialRecord]:
    """The complete results of one rung, in the order they came."""
    return [r for r in records if r.rung == rung and r.status == "complete"]


def merits(results: Sequence[TrialRecord], names: Sequence[str]) -> list[dict[str, float]]:
    """What results of one rung are judged by: their objectives, with exp(-validation loss) for the accuracy where every one was trained.

    After a short training the loss ranks networks as a long one does where the accuracy does not yet (reports/published/rung_tau.md): few
    images change from wrong to right, but all of them become more or less likely. Of what was cut and not trained the loss means nothing.
    """
    trained = all(r.details.get("steps") and isinstance(r.details.get("val_loss"), int | float) for r in results)
    if "accuracy" not in names or not trained:
        return [dict(r.objectives) for r in results]
    return [{**r.objectives, "accuracy": math.exp(-r.details["val_loss"])} for r in results]


def best(results: Sequence[TrialRecord], names: Sequence[str], *, count: int) -> list[int]:
    """Indices of the `count` best results, best first: by non-dominated rank, then by hypervolume contribution in the rank."""
    if not results or count < 1:
        return []
    points = to_minimised(merits(results, names), names)
    rank, reference = ranks(points), reference_point(points)
    chosen: list[int] = []
    while len(chosen) < min(count, len(results)):
        members = np.flatnonzero(rank == (rank[chosen[-1]] + 1 if chosen else 0))
        gain = contributions(points[members], reference)
        chosen += [int(members[i]) for i in np.argsort(-gain, kind="stable")]
    return chosen[:count]


def promotable(trial: int, results: Sequence[TrialRecord], names: Sequence[str], *, eta: int) -> bool:
    """Whether the trial stands among the first n // eta of the n results of its rung.

    Of more than JUDGED results the trial is held against so many, spread evenly over all that came: a driver of many workers asks this for
    each of them, and what is judged wrongly on arrival is judged again in the end.
    """
    if len(results) > JUDGED:
        own = next((r for r in reversed(results) if r.trial == trial), None)  # usually the last
        others = [results[i * len(results) // JUDGED] for i in range(JUDGED)]
        results = [*(r for r in others if r.trial != trial), *([own] if own is not None else [])]
    count = len(results) // eta
    place = next((i for i, r in enumerate(results) if r.trial == trial), None)
    if place is None or count < 1:
        return False
    points = to_minimised(merits(results, names), names)
    rank = ranks(points)
    before, level = int((rank < rank[place]).sum()), np.flatnonzero(rank == rank[place])
    if before >= count or before + len(level) <= count:
        return before < count
    gain = contributions(points[level], reference_point(points))
    order = level[np.argsort(-gain, kind="stable")]
    return place in order[: count - before]


def seconds_to_finish(records: Sequence[TrialRecord], names: Sequence[str], *, rungs: Sequence[int], eta: int, workers: int,
                      front_alone: bool = False) -> float:
    """Seconds in which `workers` would train what is `unfinished` at the speed it had so far: the front's members until each stands on the
    top rung, the others (left out with `front_alone`) for one rung. A network trains in one worker.

    A rung without training (a pruning's first) tells no speed: what stands there is taken for as fast as the others were, in the median,
    and for nothing while none was trained.
    """
    steps = np.diff([0, *rungs])

    def speed(record: TrialRecord) -> float | None:
        """Seconds a step."""
        count = int(steps[record.rung - 1])
        return record.seconds.get("train", 0.0) / count if count else None

    usual = [s for r in records if r.status == "complete" and 1 <= r.rung <= len(rungs) and (s := speed(r)) is not None]
    front, each = {r.trial for r in pareto(records, names)}, [0.0]
    for record in unfinished(records, names, top=len(rungs), eta=eta):
        if record.rung >= 1 and (record.trial in front or not front_alone):
            own = speed(record)
            step = own if own is not None else float(np.median(usual)) if usual else 0.0
            each.append(step * (rungs[-1 if record.trial in front else record.rung] - rungs[record.rung - 1]))
    return max(sum(each) / workers, *each)


def unfinished(records: Sequence[TrialRecord], names: Sequence[str], *, top: int, eta: int) -> list[TrialRecord]:
    """What is still to be promoted when no new trial will come: of each rung the best n // eta as it stands in the end, and the
    front's members below the top rung. Not those whose promotion has failed: it would fail again."""
    highest = {r.trial: max(r.rung, top if r.status == "failed" else 0) for r in sorted(records, key=lambda r: r.rung)}
    due = {r.trial: r for r in pareto(records, names) if highest[r.trial] < top}
    for rung in range(1, top):
        results = at_rung(records, rung)
        due |= {results[i].trial: results[i] for i in best(results, names, count=len(results) // eta) if highest[results[i].trial] == rung}
    return list(due.values())
