from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from nasvit.results.front import hypervolume, non_dominated
from nasvit.search.improvement import exact_improvement, expected_improvement, free_boxes, improvement


@pytest.mark.parametrize("m", [2, 3, 4])
def test_improvement_is_the_difference_of_two_hypervolumes(m: int) -> None:
    rng = np.random.default_rng(m)
    points, new, reference = rng.random((30, m)), rng.random((40, m)), np.full(m, 0.9)
    front = points[non_dominated(points)]
    boxes = free_boxes(front, reference, np.full(m, -0.5))
    before = hypervolume(front[np.all(front < reference, axis=1)], reference)
    for point, gain in zip(new, improvement(new, *boxes), strict=True):
        both = np.vstack([front, point])
        assert gain == pytest.approx(hypervolume(both[np.all(both < reference, axis=1)], reference) - before, abs=1e-12)


def test_without_a_front_everything_up_to_the_reference_is_free() -> None:
    lows, highs = free_boxes(np.empty((0, 2)), np.array([1.0, 1.0]), np.zeros(2))
    assert improvement(np.array([[0.25, 0.5]]), lows, highs) == pytest.approx([0.75 * 0.5])


def test_the_expected_improvement_is_the_mean_over_draws() -> None:
    boxes = free_boxes(np.array([[0.5, 0.5]]), np.ones(2), np.zeros(2))
    draws = np.array([[[0.25, 0.5], [0.75, 0.75]]])
    assert expected_improvement(draws, *boxes) == pytest.approx([0.25 * 0.5 / 2])


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_exact_improvement_is_the_mean_of_very_many_draws(m: int) -> None:
    rng = np.random.default_rng(m)
    points = rng.random((12, m))
    front, uncertain = points[non_dominated(points)], m - 1
    lows, highs = free_boxes(front, np.ones(m), np.full(m, -1.0))
    mean, deviation = np.array([0.2, 0.5, 0.9]), np.array([0.1, 0.2, 0.3])
    others = rng.random((3, 2, m - 1))
    grid = np.unique(np.concatenate([np.linspace(-1, 1, 200), lows[:, uncertain], highs[:, uncertain]]))
    exact = exact_improvement(ndtr((grid - mean[:, None]) / deviation[:, None]), grid, others, lows, highs, uncertain=uncertain)
    draws = mean[:, None] + deviation[:, None] * rng.standard_normal((3, 40_000))
    samples = np.concatenate([np.dstack([np.broadcast_to(others[:, s, None, :], (3, 40_000, m - 1)), draws]) for s in range(2)], axis=1)
    assert exact == pytest.approx(expected_improvement(samples, lows, highs), rel=0.03, abs=1e-4)
