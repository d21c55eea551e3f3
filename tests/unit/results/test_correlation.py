from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nasvit.results.correlation import kendall, kendall_interval, partial_correlation


def test_kendall_is_scipys_tau_b_with_and_without_ties() -> None:
    rng = np.random.default_rng(0)
    for ties in (False, True):
        a, b = rng.normal(size=(2, 30))
        a, b = (np.round(a), np.round(b)) if ties else (a, b)
        assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert math.isnan(kendall([1, 1, 1], [1, 2, 3]))


def test_an_interval_holds_its_tau_and_shrinks_with_more_networks() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for n in (10, 100):
        x = rng.normal(size=n)
        found = kendall_interval(x, x + rng.normal(size=n), seed=0)
        assert found is not None and found.low <= found.value <= found.high and found.n == n
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2
    assert kendall_interval([1, 2, 3], [1, 2, 3], seed=0) is None and kendall_interval([1] * 9, range(9), seed=0) is None


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(2), 0
    for seed in range(60):
        cloud = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], size=25)
        found = kendall_interval(cloud[:, 0], cloud[:, 1], seed=seed)
        assert found is not None
        inside += found.low <= 2 / math.pi * math.asin(0.7) <= found.high
    assert inside >= 48


def test_a_score_that_only_follows_the_cost_is_nil_and_one_that_says_more_is_not() -> None:
    rng = np.random.default_rng(3)
    cost, more = rng.normal(size=(2, 80))
    accuracy = cost + more
    nil = [partial_correlation(cost + 0.3 * rng.normal(size=80), cost + rng.normal(size=80), [cost]) for _ in range(20)]
    assert sum(found is not None and not found.nil for found in nil) <= 5
    for sign in (1, -1):
        found = partial_correlation(sign * more + 0.3 * rng.normal(size=80), accuracy, [cost])
        assert found is not None and not found.nil and found.value * sign > 0.5


def test_nothing_is_left_of_the_cost_itself_and_of_too_few_networks() -> None:
    cost = list(range(20))
    assert partial_correlation(cost, np.random.default_rng(0).normal(size=20), [cost]) is None
    assert partial_correlation([1, 2, 3, 4], [2, 1, 3, 4], [[1, 2, 3, 4]]) is None
    assert partial_correlation([1.0] * 20, cost, [[*cost[::-1]]]) is None


def test_without_costs_it_is_spearmans_correlation() -> None:
    a, b = np.random.default_rng(4).normal(size=(2, 30))
    found = partial_correlation(a, b, [])
    assert found is not None and found.value == pytest.approx(stats.spearmanr(a, b).statistic)


def test_with_groups_only_their_own_pairs_count_and_one_alone_does_not() -> None:
    a, b, groups = [1, 2, 3, 11, 12, 13, 0], [11, 12, 13, 1, 2, 3, 50], [1, 1, 1, 2, 2, 2, 3]
    found = kendall_interval(a, b, seed=0, groups=groups)
    assert kendall(a, b) < 0 and found is not None and found.value == 1.0 and found.n == 6
    assert kendall_interval(a, b, seed=0, groups=range(7)) is None
