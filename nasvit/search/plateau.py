"""Whether going on is worth it: the hypervolume that the next tenth of the budget would add, against half a percent.

A model-based sampler says what it expects; for the others, what the last tenth has added stands for what the next one will.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nasvit.results.front import hypervolume, reference_point, to_minimised
from nasvit.results.record import TrialRecord

LEAST_GAIN = 0.005
"""Of the front's hypervolume; below it the search ends."""
SHARE = 0.1
"""Of the budget: how far ahead, or back, the gain is looked at."""
FEWEST = 10
"""Trials of a look; with a small budget a tenth says nothing."""
BEFORE = 0.3
"""Of the budget: no end before it, because a search begins with draws that look for nothing."""


def stretch(budget: int) -> int:
    """Trials of a look."""
    return max(FEWEST, math.ceil(SHARE * budget))


def due(evaluated: int, *, budget: int, looked: int) -> bool:
    """Whether it is time to look: late enough, and half a stretch after the last time."""
    return evaluated >= max(BEFORE * budget, 2 * stretch(budget)) and evaluated - looked >= stretch(budget) // 2


def observed_gain(records: Sequence[TrialRecord], names: Sequence[str], *, last: int) -> float | None:
    """What everything since the `last` trials began has added to the front's hypervolume, as a share of it; None with fewer trials.

    Promotions count where they came. The reference point is that of all trials.
    """
    complete = [r for r in records if r.status == "complete" and all(n in r.objectives for n in names)]
    firsts = list(dict.fromkeys(r.trial for r in complete))
    if len(firsts) <= last:
        return None
    began = next(i for i, r in enumerate(complete) if r.trial == firsts[-last])
    points = to_minimised([r.objectives for r in _top(complete)], names)
    reference = reference_point(points)
    now = hypervolume(points, reference)
    before = hypervolume(to_minimised([r.objectives for r in _top(complete[:began])], names), reference)
    return max(0.0, now - before) / now if now > 0 else None


def _top(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Each trial at its highest rung so far."""
    best: dict[int, TrialRecord] = {}
    for record in records:
        if record.trial not in best or record.rung >= best[record.trial].rung:
            best[record.trial] = record
    return list(best.values())


def reason(gain: float, *, expected: bool, trials: int) -> str:
    """Why the search ends, in words."""
    what = f"the next {trials} trials are expected to add" if expected else f"the last {trials} trials added"
    return f"plateau: {what} {gain:.2%} of hypervolume, under {LEAST_GAIN:.1%}"
