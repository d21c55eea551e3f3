"""Successive halving over several objectives, asynchronous: pure functions over records.

A trial is judged once at each rung, when its result there arrives, among all results of that rung so far. Best is the lower
non-dominated rank; within a rank, the larger hypervolume contribution. It is promoted if it stands among the first
n // eta of n, so the first promotion needs eta results. Afterwards the front's members below the top rung are promoted
until the front stands on the top rung alone (`unfinished`).
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


def unfinished(records: Sequence[TrialRecord], names: Sequence[str], *, top: int) -> list[TrialRecord]:
    """The members of the front below the top rung, without those whose promotion has failed: it would fail again."""
    stuck = {r.trial for r in records if r.status == "failed"}
    return [r for r in pareto(records, names) if r.rung < top and r.trial not in stuck]
