from __future__ import annotations

import numpy as np
import pytest

from nasvit.search.rising import risen


def grown(n: int, *, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, list[list[float]]]:
    """True quality at the top, and curves of three rungs whose better half rises: each rung lies higher and spreads three times as wide."""
    rng = np.random.default_rng(seed)
    top = 0.45 + 0.09 * rng.standard_normal(n)
    rungs = np.stack([0.25 + (top - 0.45) / 9, 0.35 + (top - 0.45) / 3, top]) + noise * rng.standard_normal((3, n))
    rises = np.stack([rungs[0] >= np.median(rungs[0]), (rungs[0] >= np.median(rungs[0])) & (rungs[1] >= np.quantile(rungs[1], 0.7))])
    return top, [list(map(float, rungs[: 1 + rises[:, i].sum(), i])) for i in range(n)]


def test_what_stopped_below_is_held_for_what_it_would_have_become() -> None:
    top, curves = grown(400)
    value, variance = risen(curves)
    stopped = np.array([len(c) < 3 for c in curves])
    assert np.corrcoef(value[stopped], top[stopped])[0, 1] > 0.999
    assert np.polyfit(top[stopped], value[stopped], 1)[0] == pytest.approx(1.0, abs=0.25)  # the prior's slope of 1 pulls a little
    assert value[~stopped] == pytest.approx(top[~stopped]) and not variance[~stopped].any()


def test_a_noisy_rung_is_believed_as_far_as_it_tells_and_its_doubt_is_the_error() -> None:
    top, curves = grown(2000, noise=0.01)
    value, variance = risen(curves)
    level = np.array([len(c) for c in curves])
    for rung in (1, 2):
        error = (value - top)[level == rung]
        assert np.sqrt(np.mean(error**2)) == pytest.approx(np.sqrt(variance[level == rung].mean()), rel=0.35)
    assert np.all(np.diff([variance[level == rung].max() for rung in (1, 2, 3)]) < 0), "the lower, the less is known"


def test_one_trial_that_rose_tells_by_how_much() -> None:
    value, variance = risen([[0.2], [0.3], [0.25, 0.45]])
    assert value == pytest.approx([0.4, 0.5, 0.45])
    assert np.all(variance[:2] >= np.var([0.2, 0.3, 0.25])) and variance[2] == 0


@pytest.mark.parametrize("curves", [[[0.3]], [[0.1], [0.4]], [[0.2, 0.3], [0.2, 0.3], [0.2]], [[0.5, 0.5, 0.5], [0.5]]])
def test_few_and_equal_values_are_no_trouble(curves: list[list[float]]) -> None:
    value, variance = risen(curves)
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(variance)) and np.all(variance >= 0)
