"""Fronts and hypervolumes that can be checked with a pencil, and against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from nasvit.results.front import contributions, hypervolume, knee, non_dominated, pareto, ranks, reference_point, to_minimised
from nasvit.results.record import TrialRecord


def test_the_front_of_six_points() -> None:
    points = np.array([[1, 5], [2, 3], [4, 1], [3, 3], [4, 4], [2, 3]], dtype=float)
    assert non_dominated(points).tolist() == [True, True, True, False, False, True]
    assert ranks(points).tolist() == [0, 0, 0, 1, 2, 0]


def test_hypervolume_of_a_staircase() -> None:
    points = np.array([[1, 5], [2, 3], [4, 1]], dtype=float)
    assert hypervolume(points, np.array([6.0, 6.0])) == pytest.approx(1 * 5 + 2 * 4 + 2 * 2)
    assert contributions(points, np.array([6.0, 6.0])).tolist() == pytest.approx([1.0, 4.0, 4.0])


def test_points_beyond_the_reference_count_nothing() -> None:
    assert hypervolume(np.array([[7.0, 0.0]]), np.array([6.0, 6.0])) == 0.0
    assert hypervolume(np.zeros((0, 2)), np.array([6.0, 6.0])) == 0.0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_agrees_with_monte_carlo(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    points = rng.random((12, objectives))
    samples = rng.random((200_000, objectives)) * 1.1
    inside = np.zeros(len(samples), dtype=bool)
    for point in points:
        inside |= np.all(samples >= point, axis=1)
    assert hypervolume(points, np.full(objectives, 1.1)) == pytest.approx(inside.mean() * 1.1**objectives, rel=0.01)


def test_maximised_objectives_are_turned() -> None:
    assert to_minimised([{"accuracy": 0.9, "latency_ms": 2.0}], ["accuracy", "latency_ms"]).tolist() == [[-0.9, 2.0]]


def test_the_knee_is_the_corner() -> None:
    assert knee(np.array([[0.0, 1.0], [0.1, 0.1], [1.0, 0.0], [0.5, 0.05]])) == 1


def test_the_reference_point_is_worse_than_every_point() -> None:
    points = np.array([[1.0, 5.0], [1.0, 3.0]])
    assert np.all(reference_point(points) > points.max(axis=0))


def test_the_front_takes_each_trial_at_its_highest_rung_and_only_complete_ones() -> None:
    def record(trial: int, rung: int, accuracy: float, latency: float, status: str = "complete") -> TrialRecord:
        return TrialRecord(trial=trial, rung=rung, status=status, arch=None, arch_id=str(trial),  # type: ignore[arg-type]
                           objectives={"accuracy": accuracy, "latency_ms": latency})

    records = [record(0, 1, 0.5, 1.0), record(1, 1, 0.9, 3.0), record(0, 2, 0.8, 1.0), record(2, 1, 0.7, 2.0),
               record(3, 1, 0.99, 0.1, "failed")]
    assert [(r.trial, r.rung) for r in pareto(records, ["accuracy", "latency_ms"])] == [(0, 2), (1, 1)]
