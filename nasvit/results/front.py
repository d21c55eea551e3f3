"""Pareto dominance, front and hypervolume. Inside this file every objective is minimised: turn signs at the edge.

Legend: points (n, m) float array, n points and m objectives.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from nasvit.results.objectives import objective
from nasvit.results.record import TrialRecord, latest

Points = NDArray[np.float64]


def to_minimised(rows: Sequence[dict[str, float]], names: Sequence[str]) -> Points:
    """(n, m) array of the named objectives, with the sign turned where an objective is maximised."""
    signs = np.array([-1.0 if objective(n).direction == "maximize" else 1.0 for n in names])
    table = np.array([[row[n] for n in names] for row in rows], dtype=float).reshape(len(rows), len(names))
    return np.asarray(table * signs, dtype=float)


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """(n,) bool: no other point is at least as good everywhere and better somewhere. Equal points stand together."""
    n = len(points)
    if n and points.shape[1] == 2:  # the usual case, and the driver of a search asks it often: one sweep over the sorted points
        unique, place = np.unique(points, axis=0, return_inverse=True)
        lowest_before = np.concatenate([[np.inf], np.minimum.accumulate(unique[:, 1])[:-1]])
        return np.asarray((unique[:, 1] < lowest_before)[place.reshape(-1)])
    keep = np.ones(n, dtype=bool)
    for i in range(n):  # one row at a time: O(n) memory
        no_worse = np.all(points <= points[i], axis=1)
        better = np.any(points < points[i], axis=1)
        keep[i] = not np.any(no_worse & better)
    return keep


def ranks(points: Points) -> NDArray[np.int64]:
    """(n,) int: 0 on the front, 1 on the front of the rest, and so on (non-dominated sorting).

    n log n for two objectives; else each point is held against a few fronts, found by halving (Zhang et al., ENS-BS, 2015).
    """
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    # in this order no point dominates an earlier one; equal ones stand together
    unique, place = np.unique(points, axis=0, return_inverse=True)
    level = _levels_of_two(unique) if points.shape[1] == 2 else _levels(unique)
    return np.asarray(level[place.reshape(-1)], dtype=np.int64)


def _levels_of_two(ordered: Points) -> NDArray[np.int64]:
    """Of points in ascending order, no two equal: a front is as good as its last point, whose second value is its lowest."""
    lowest: list[float] = []  # of each front, ascending
    level = np.empty(len(ordered), dtype=np.int64)
    for i, y in enumerate(ordered[:, 1].tolist()):
        level[i] = found = bisect_right(lowest, y)
        if found == len(lowest):
            lowest.append(y)
        else:
            lowest[found] = y
    return level


def _levels(ordered: Points) -> NDArray[np.int64]:
    """Of points in ascending order, no two equal: the first front of which no member dominates the point; those before it all have one."""
    fronts: list[list[int]] = []
    level = np.empty(len(ordered), dtype=np.int64)
    for i, point in enumerate(ordered):
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            if np.any(np.all(ordered[fronts[middle]] <= point, axis=1)):
                low = middle + 1
            else:
                high = middle
        if low == len(fronts):
            fronts.append([])
        fronts[low].append(i)
        level[i] = low
    return level


def hypervolume(points: Points, reference: NDArray[np.float64]) -> float:
    """Volume dominated by the points and bounded by `reference` (m,). Points not better than it count nothing.

    Exact in any number of objectives, by slicing along the last one; two objectives take n log n.
    """
    reference = np.asarray(reference, dtype=float)
    inside = points[np.all(points < reference, axis=1)] if len(points) else points
    if not len(inside):
        return 0.0
    if inside.shape[1] == 1:
        return float(reference[0] - inside[:, 0].min())
    inside = inside[non_dominated(inside)]
    if inside.shape[1] == 2:
        order = inside[np.argsort(inside[:, 0], kind="stable")]
        ceilings = np.concatenate([[reference[1]], np.minimum.accumulate(order[:, 1])[:-1]])
        return float(np.sum((reference[0] - order[:, 0]) * np.clip(ceilings - order[:, 1], 0, None)))
    order = inside[np.argsort(inside[:, -1], kind="stable")]
    edges = np.append(order[:, -1], reference[-1])
    return float(sum((edges[i + 1] - edges[i]) * hypervolume(order[: i + 1, :-1], reference[:-1])
                     for i in range(len(order)) if edges[i + 1] > edges[i]))


def contributions(points: Points, reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) hypervolume lost when one point is taken away; twins of a point each contribute nothing.

    n log n for two objectives where no point dominates another.
    """
    if len(points) and points.shape[1] == 2 and np.all(points < reference):
        unique, place, copies = np.unique(points, axis=0, return_inverse=True, return_counts=True)
        if np.all(np.diff(unique[:, 1]) < 0):  # a staircase: each point has a rectangle of its own
            right = np.append(unique[1:, 0], reference[0])
            above = np.append(reference[1], unique[:-1, 1])
            alone = np.where(copies == 1, (right - unique[:, 0]) * (above - unique[:, 1]), 0.0)
            return np.asarray(alone[place.reshape(-1)])
    return np.array([_alone(points[i], np.delete(points, i, axis=0), reference) for i in range(len(points))])


def _alone(point: NDArray[np.float64], others: Points, reference: NDArray[np.float64]) -> float:
    """The volume that the point dominates and no other: of its box, what the others do not reach (While et al., WFG, 2012)."""
    if not np.all(point < reference):
        return 0.0
    within = np.unique(np.maximum(others, point), axis=0)
    return max(0.0, float(np.prod(reference - point)) - hypervolume(within, reference))


def reference_point(points: Points, *, margin: float = 0.1) -> NDArray[np.float64]:
    """(m,) the worst value of each objective plus `margin` of its range (1 % of its size where there is no range)."""
    worst, best = points.max(axis=0), points.min(axis=0)
    spread = np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1e-12) * 0.1)
    return np.asarray(worst + margin * spread)


def knee(points: Points) -> int:
    """Index of the front point farthest from the line through the front's two ends, axes scaled to 0..1 (two objectives
    or more; with three and more the plane through the ends is replaced by the distance to the ideal point)."""
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    if points.shape[1] != 2:
        return int(np.argmin(np.linalg.norm(scaled, axis=1)))
    return int(np.argmin(scaled.sum(axis=1)))  # distance to the line x + y = 1 is (1 - x - y) / sqrt(2)


def pareto(records: Iterable[TrialRecord], names: Sequence[str]) -> list[TrialRecord]:
    """The non-dominated complete records, each trial at its highest rung, cheapest first: by latency if it is an objective, else by
    the first objective that is minimised.

    A trial stopped at a lower rung counts with the accuracy measured there, which can only understate it.
    """
    done = [r for r in latest(records).values() if r.status == "complete" and all(n in r.objectives for n in names)]
    if not done:
        return []
    points = to_minimised([r.objectives for r in done], names)
    keep = non_dominated(points)
    costs = sorted((n for n in names if objective(n).direction == "minimize"), key=lambda n: n != "latency_ms")
    order = np.argsort(points[:, list(names).index(costs[0]) if costs else 0], kind="stable")
    return [done[i] for i in order if keep[i]]
