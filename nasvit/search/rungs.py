"""Successive halving over several objectives, asynchronous: pure functions over records.

A trial is judged once at each rung, when its result there arrives, among all results of that rung so far. Best is the lower
non-dominated rank; within a rank, the larger hypervolume contribution. It is promoted if it stands among the first
n // eta of n, so the first promotion needs eta results. A judgement on arrival knows only what came before; so in the end the
best n // eta of each rung are promoted as they then stand, and the front's members until it stands on the top rung alone
(`unfinished`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nasvit.results.front import contributions, pareto, ranks, reference_point, to_minimised
from nasvit.results.record import TrialRecord


def at_rung(records: Iterable[TrialRecord], rung: int) -> list[TrialRecord]:
    """The complete results of one rung, in the order they came."""
    return [r for r in records if r.rung == rung and r.status == "complete"]


def best(results: Sequence[TrialRecord], names: Sequence[str], *, count: int) -> list[int]:
    """Indices of the `count` best results, best first: by non-dominated rank, then by hypervolume contribution in the rank."""
    if not results or count < 1:
        return []
    points = to_minimised([r.objectives for r in results], names)
    rank, reference = ranks(points), reference_point(points)
    chosen: list[int] = []
    while len(chosen) < min(count, len(results)):
        members = np.flatnonzero(rank == (rank[chosen[-1]] + 1 if chosen else 0))
        gain = contributions(points[members], reference)
        chosen += [int(members[i]) for i in np.argsort(-gain, kind="stable")]
    return chosen[:count]


def promotable(trial: int, results: Sequence[TrialRecord], names: Sequence[str], *, eta: int) -> bool:
    """Whether the trial stands among the first n // eta of the n results of its rung."""
    return any(results[i].trial == trial for i in best(results, names, count=len(results) // eta))


def unfinished(records: Sequence[TrialRecord], names: Sequence[str], *, top: int, eta: int) -> list[TrialRecord]:
    """What is still to be promoted when no new trial will come: of each rung the best n // eta as it stands in the end, and the
    front's members below the top rung. Not those whose promotion has failed: it would fail again."""
    highest = {r.trial: max(r.rung, top if r.status == "failed" else 0) for r in sorted(records, key=lambda r: r.rung)}
    due = {r.trial: r for r in pareto(records, names) if highest[r.trial] < top}
    for rung in range(1, top):
        results = at_rung(records, rung)
        due |= {results[i].trial: results[i] for i in best(results, names, count=len(results) // eta) if highest[results[i].trial] == rung}
    return list(due.values())
