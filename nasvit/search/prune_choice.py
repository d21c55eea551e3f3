"""Which plan of a pruning becomes the result, and which one to try once more."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from nasvit.pruning.space import SOLVED
from nasvit.results.front import knee, pareto, to_minimised
from nasvit.results.record import TrialRecord, latest
from nasvit.search.distributions import next_to, ordered
from nasvit.search.objectives import known_of, passed

NEAR = 0.985
"""A plan below this share of what strengths are solved for leaves time unused."""
Again = Mapping[str, Sequence[float]]
"""Milliseconds that were measured later, by the trial's number."""


def within(records: Sequence[TrialRecord], *, limits: Mapping[str, float]) -> list[TrialRecord]:
    """Each trial's complete record at its highest rung, of those that keep every limit as trials are held against it."""
    return [r for r in latest(records).values() if r.status == "complete" and passed(known_of(r), limits) is None]


def timed(record: TrialRecord, again: Again) -> float:
    """Milliseconds of a trial: the mean of its own measurement and of those made again, by its number. Of equals the slowest is chosen, so
    the one that was measured too slow: again, it is a percent or two faster."""
    return fmean((record.objectives["latency_ms"], *again.get(str(record.trial), ())))


def compromise(done: Sequence[TrialRecord], *, dense_ms: float) -> TrialRecord:
    """The result where no target was given: the knee of accuracy and latency, among the plans that are faster than the dense model where
    any is. The most accurate plan is one from which hardly anything was taken."""
    names = ("accuracy", "latency_ms")
    front = pareto([r for r in done if r.objectives["latency_ms"] < dense_ms] or done, names)
    return front[knee(to_minimised([r.objectives for r in front], names))]


def choose(done: list[TrialRecord], *, images: int, again: Again) -> TrialRecord:
    """The result where a target was given. What is within one standard error of the most accurate plan (of an accuracy on so many images)
    counts as equal, and of those the one that was recovered longest and then the slowest is taken: time that the target leaves is better
    spent on what would be pruned. Last, a slower plan of the same shape keeps all that this one keeps and more: it is taken unless it was
    seen to be worse by two standard errors."""
    best = max(r.objectives["accuracy"] for r in done)
    least = best - math.sqrt(best * (1 - best) / images)
    found = max((r for r in done if r.objectives["accuracy"] >= least), key=lambda r: (r.rung, timed(r, again)))
    enough = found.objectives["accuracy"] - 2 * (best - least)
    more = (r for r in done if r.rung >= found.rung and shape(r) == shape(found) and r.objectives["accuracy"] >= enough)
    return max(more, key=lambda r: timed(r, again))


def shape(record: TrialRecord) -> dict[str, Any]:
    """What a trial chose: all its parameters but those that are solved for."""
    return {name: value for name, value in record.params.items() if name not in SOLVED}


def nearer(seen: Sequence[TrialRecord], *, limits: Mapping[str, float], images: int, aim_ms: float, again: Again,
           beside: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None) -> list[dict[str, Any]]:
    """Choices to solve for once more: those of the plan that would be chosen, where it is so much faster than `aim_ms`, which strengths are
    solved for, that less could be taken away; what was measured of it tells the solver how to come nearer. Then, if anything is to be tried
    there, what is `beside` them."""
    done = within(seen, limits=limits)
    if not done:
        return []
    best = choose(done, images=images, again=again)
    once_more = [shape(best)] if timed(best, again) < NEAR * aim_ms else []
    return once_more + (beside(shape(best)) if beside is not None else [])


def kin(of: Mapping[str, Any], *, values: Mapping[str, Sequence[Any]], rng: random.Random) -> list[dict[str, Any]]:
    """The choices `of` a plan with one of them a step higher or lower, of those that `values` has in order (another, where they are names).

    The last trial tries a plan next to the best: how fast a plan of quite another shape is, is predicted too badly for a trial after
    which none comes back to it.
    """
    near = [{**of, name: value} for name, old in of.items() if name in values
            for value in next_to(old, values[name], steps=ordered(values[name]))]
    return rng.sample(near, len(near))
