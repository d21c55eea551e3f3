from __future__ import annotations

import numpy as np
import pytest

from nasvit.results.front import contributions, hypervolume, non_dominated, ranks, reference_point


def peeled(points: np.ndarray) -> np.ndarray:
    """Ranks by their definition."""
    rank, level = np.full(len(points), -1), 0
    while (rank < 0).any():
        rest = np.flatnonzero(rank < 0)
        keep = [not any(np.all(points[j] <= points[i]) and np.any(points[j] < points[i]) for j in rest) for i in rest]
        rank[rest[np.array(keep)]] = level
        level += 1
    return rank


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_the_definition_ties_included(objectives: int, seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 6, (60, objectives)).astype(float)
    assert ranks(points).tolist() == peeled(points).tolist()
    assert (ranks(points) == 0).tolist() == non_dominated(points).tolist()


def test_no_points_have_no_ranks() -> None:
    assert ranks(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("seed", range(10))
def test_contributions_of_a_front_are_what_its_hypervolume_loses(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 12, (40, 2)).astype(float) if seed % 2 else rng.random((40, 2))
    front = points[non_dominated(points)]
    reference = reference_point(points)
    lost = [hypervolume(front, reference) - hypervolume(np.delete(front, i, axis=0), reference) for i in range(len(front))]
    assert contributions(front, reference) == pytest.approx(np.array(lost))


@pytest.mark.parametrize("objectives", [1, 3, 4])
def test_contributions_in_any_number_of_objectives_are_what_the_hypervolume_loses(objectives: int) -> None:
    points = np.random.default_rng(objectives).integers(0, 5, (25, objectives)).astype(float)
    reference = reference_point(points)
    lost = [hypervolume(points, reference) - hypervolume(np.delete(points, i, axis=0), reference) for i in range(len(points))]
    assert contributions(points, reference) == pytest.approx(np.array(lost), abs=1e-9)


def test_contributions_of_points_that_dominate_one_another_or_pass_the_reference_are_right_too() -> None:
    points, reference = np.array([[1.0, 1.0], [2.0, 2.0], [0.5, 9.0]]), np.array([3.0, 3.0])
    assert contributions(points, reference).tolist() == [3.0, 0.0, 0.0]
