"""Which zero-cost scores count."""

from __future__ import annotations

import numpy as np
import pytest

from nasvit.search.telling import Columns, telling


def trials(n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (n, 4): follows the quality, follows it reversed, follows cost alone, follows nothing."""
    rng = np.random.default_rng(0)
    cost, own = rng.random(n), rng.random(n)
    quality = 3 * cost + own
    return np.column_stack([own + cost, np.exp(-9 * own), cost**3, rng.random(n)]), quality, cost[:, None]


def test_a_score_counts_by_what_it_says_beyond_cost_whatever_its_sign() -> None:
    scores, quality, costs = trials()
    assert telling(scores, quality, costs) == [0, 1]


def test_a_score_that_repeats_the_cost_or_is_constant_is_nil() -> None:
    _, quality, costs = trials()
    assert telling(np.column_stack([costs[:, 0] ** 2, np.ones(60)]), quality, costs) == []


def test_few_trials_decide_nothing() -> None:
    scores, quality, costs = trials(8)
    assert telling(scores, quality, costs) == []


def test_columns_have_about_unit_range_and_what_is_not_finite_says_nothing() -> None:
    rows = [{"synflow": 10.0**i, "zico": -float(i)} for i in range(20)]
    columns = Columns.of([*rows, {"synflow": float("inf"), "zico": 1.0, "more": 0.0}])
    made = columns(rows)
    assert columns.names == ("synflow", "zico") and np.isfinite(made).all() and made.shape == (20, 2)
    assert np.ptp(made, axis=0) == pytest.approx([1, 1], abs=0.5)
