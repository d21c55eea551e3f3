"""What a trial that stopped at a lower rung would be worth at the highest, learned from the trials that rose.

From one rung to the next the quality of the trials that reached both is a straight line of the lower one: short trainings lie lower, closer
together, and say little of the order. Which trials rise is decided by what they had at the lower rung, so that the line is not
bent by the choice. What it leaves unexplained, and what the lines above it leave, is the doubt in such a value.

A process that is given the rung as one more input sees the shift alone, and holds the networks that stopped for better than they are
(experiments/LOG.md, 2026-11-23).

Legend: n trials, r rungs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SLOPE_SD = 0.5
"""Of the slope around 1, as believed beforehand."""
PRIOR_DOUBTS = 2.0
"""The variance of the lower rung's values is believed to be that of the doubt, as if so many trials had shown it."""


class Risen(NamedTuple):
    """value: (n,) at the highest rung, seen or expected. variance: (n,) of the doubt in it, 0 where it was seen."""

    value: Array
    variance: Array


def risen(curves: Sequence[Sequence[float]]) -> Risen:
    """curves: of each trial its quality at the rungs that it reached, the lowest first, at least one."""
    level = np.array([len(curve) for curve in curves])
    value, variance = np.array([curve[-1] for curve in curves], dtype=float), np.zeros(len(curves))
    for rung in range(1, int(level.max(initial=0))):
        waits = level <= rung
        low, high = (np.array([curve[k] for curve in curves if len(curve) > rung]) for k in (rung - 1, rung))
        spread = float(np.var([curve[rung - 1] for curve in curves if len(curve) >= rung]))
        x, y = low - low.mean(), high - high.mean()
        slope = 1.0
        for _ in range(3):  # how far the pairs are believed hangs on what the line leaves of them
            left = y - slope * x
            doubt = float(left @ left + PRIOR_DOUBTS * spread) / (len(left) + PRIOR_DOUBTS - 1)
            if doubt > 0:
                slope = float(x @ y / doubt + 1 / SLOPE_SD**2) / float(x @ x / doubt + 1 / SLOPE_SD**2)
        value[waits] = high.mean() + slope * (value[waits] - low.mean())
        variance[waits] = slope**2 * variance[waits] + doubt
    return Risen(value, variance)
