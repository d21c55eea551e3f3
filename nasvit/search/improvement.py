"""Hypervolume improvement: how much of objective space a candidate would add to a front. Every objective is minimised.

Legend: f points of the front, m objectives, b boxes, c candidates, s samples of a candidate's uncertain objectives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def free_boxes(front: Array, reference: Array, ideal: Array) -> tuple[Array, Array]:
    """Disjoint boxes (b, m) lower and (b, m) upper corners that fill what lies between `ideal` and `reference` and is not dominated.

    By slabs along the last objective: inside a slab the points at or below it form a front of one objective less. O(f^(m-1)).
    """
    inside = front[np.all(front < reference, axis=1)]
    lows, highs = _slabs(inside, reference, ideal)
    return np.asarray(lows).reshape(-1, len(reference)), np.asarray(highs).reshape(-1, len(reference))


def spread(front: Array, most: int) -> Array:
    """(f, m) -> (most, m): the best of each objective, then one by one the point farthest from those taken; all where they are no more."""
    if len(front) <= most:
        return front
    scaled = (front - front.min(axis=0)) / np.maximum(np.ptp(front, axis=0), 1e-300)
    taken = list(dict.fromkeys(int(i) for i in scaled.argmin(axis=0)))
    gaps = ((scaled[:, None] - scaled[None, taken]) ** 2).sum(-1).min(axis=1)
    while len(taken) < most:
        taken.append(int(gaps.argmax()))
        gaps = np.minimum(gaps, ((scaled - scaled[taken[-1]]) ** 2).sum(-1))
    return front[taken]


def _slabs(front: Array, reference: Array, ideal: Array) -> tuple[list[list[float]], list[list[float]]]:
    m = len(reference)
    if m == 1:
        top = min(float(front.min()), float(reference[0])) if len(front) else float(reference[0])
        return ([[float(ideal[0])]], [[top]]) if top > ideal[0] else ([], [])
    front = front[np.argsort(front[:, -1], kind="stable")]
    edges = np.concatenate([[ideal[-1]], front[:, -1], [reference[-1]]])
    lows: list[list[float]] = []
    highs: list[list[float]] = []
    for i in range(len(edges) - 1):
        low, high = max(edges[i], ideal[-1]), edges[i + 1]
        if high <= low:
            continue
        inner_low, inner_high = _slabs(front[:i, :-1], reference[:-1], ideal[:-1])
        lows += [[*corner, low] for corner in inner_low]
        highs += [[*corner, high] for corner in inner_high]
    return lows, highs


def improvement(points: Array, lows: Array, highs: Array) -> Array:
    """(c, m) points -> (c,) the volume of the free boxes that each would dominate."""
    total = np.zeros(len(points))
    width = max(1, 2_000_000 // max(len(lows), 1))
    for start in range(0, len(points), width):
        part = points[start : start + width]
        volume = np.ones((len(part), len(lows)))
        for j in range(points.shape[1]):
            volume *= np.maximum(highs[None, :, j] - np.maximum(lows[None, :, j], part[:, None, j]), 0.0)
        total[start : start + width] = volume.sum(axis=1)
    return total


def exact_improvement(below: Array, grid: Array, others: Array, lows: Array, highs: Array, *, uncertain: int) -> Array:
    """(c,) the expected improvement where one objective is uncertain and the others are known, or are few draws (s) of equal weight.

    below: (c, t) the probability that the uncertain objective is at most grid[t]; grid: (t,) ascending; others: (c, s, m - 1).
    Exact but for the integral over the grid, which the boxes' edges join: the improvement of a value y below an edge e grows as
    e - y, and the mean of max(e - Y, 0) is the integral of P(Y <= t) up to e.
    """
    mass = np.concatenate([np.zeros((len(below), 1)), np.cumsum((below[:, 1:] + below[:, :-1]) / 2 * np.diff(grid), axis=1)], axis=1)

    def up_to(edges: Array) -> Array:
        """(c, b): the mass up to each edge, between grid points by interpolation."""
        right = np.clip(np.searchsorted(grid, edges), 1, len(grid) - 1)
        share = np.clip((edges - grid[right - 1]) / (grid[right] - grid[right - 1]), 0.0, 1.0)
        return np.asarray(mass[:, right - 1] * (1 - share) + mass[:, right] * share)

    depth = up_to(highs[:, uncertain]) - up_to(lows[:, uncertain])
    rest = [j for j in range(lows.shape[1]) if j != uncertain]
    volume = np.ones((others.shape[0], others.shape[1], len(lows)))
    for place, j in enumerate(rest):
        volume *= np.maximum(highs[None, None, :, j] - np.maximum(lows[None, None, :, j], others[:, :, None, place]), 0.0)
    return np.asarray((volume.mean(axis=1) * depth).sum(axis=1))


def expected_improvement(samples: Array, lows: Array, highs: Array) -> Array:
    """(c, s, m) samples -> (c,) the mean improvement."""
    count, draws, m = samples.shape
    return np.asarray(improvement(samples.reshape(-1, m), lows, highs).reshape(count, draws).mean(axis=1))
