"""Where improvement counts."""

from __future__ import annotations

import numpy as np
import pytest

from nasvit.search.acquisition import Goal, useful_quality, which_is_quality


def test_useless_quality_counts_as_often_as_it_has_reached_the_front() -> None:
    first = np.arange(8.0)  # three quarters: 5.25

    def counts(late: list[float], reached: list[bool]) -> float:
        """The share of 1,000 chances in which everything counts."""
        quality, on_front = np.array([*first, *late]), np.array([False] * 8 + reached)
        lines = [useful_quality(quality, on_front, first=8, chance=c / 1000) for c in range(1000)]
        assert set(lines) <= {5.25, np.inf}
        return float(np.mean(np.isinf(lines)))

    assert counts([], []) == pytest.approx(0.5, abs=0.002)
    assert counts([6.0] * 6 + [9.0], [True] * 6 + [False]) == pytest.approx(7 / 9, abs=0.002)
    assert counts([6.0] * 6 + [9.0], [False] * 7) == pytest.approx(1 / 9, abs=0.002)
    assert counts([9.0] * 7, [True] * 7) == pytest.approx(1 / 9, abs=0.002)  # the worst there is, cheap as it may be
    assert counts([1.0] * 7, [True] * 7) == pytest.approx(0.5, abs=0.002)  # good ones say nothing of the useless


def test_a_goal_is_the_volume_that_the_front_leaves_free() -> None:
    points = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    goal = Goal.of(points, reference=np.array([2.0, 2.0]))
    assert goal.volume == pytest.approx(3.0) and len(goal.front) == 2
    free = np.prod(goal.highs - goal.lows, axis=1).sum()
    assert free == pytest.approx(4 * 4 - 3)  # the box from as far before the best as the reference lies behind it


def test_the_quality_is_what_is_maximised_and_modelled() -> None:
    assert which_is_quality([1, -1, -1], [0, 2]) == 2
    assert which_is_quality([1, 1], [1]) == 1
    assert which_is_quality([1, 1], []) is None
