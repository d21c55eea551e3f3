from __future__ import annotations

import numpy as np
import pytest

from nasvit.search import gaussian
from nasvit.search.gaussian import LITTLE_NOISE, MUCH_NOISE, GaussianProcess, Watch, _loss


def data(n: int, *, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.random((n, 6))
    return x, 100 + 10 * (np.sin(4 * x[:, 0]) + x[:, 1] * x[:, 2]) + noise * rng.standard_normal(n)


def test_the_gradient_is_the_losss() -> None:
    x, y = data(20)
    squares = ((x[:, None] - x[None]) ** 2).transpose(2, 0, 1)
    theta, z = np.linspace(-1, 0.5, 8), (y - y.mean()) / y.std()
    for noise, beyond in ((LITTLE_NOISE, np.zeros(20)), (MUCH_NOISE, np.linspace(0, 2, 20))):
        ends = [[_loss(theta + way * step, squares, z, beyond, noise)[0] for way in (1, -1)] for step in 1e-6 * np.eye(8)]
        numeric = [(above - below) / 2e-6 for above, below in ends]
        assert _loss(theta, squares, z, beyond, noise)[1] == pytest.approx(numeric, rel=1e-4, abs=1e-4)


def test_a_value_in_doubt_weighs_less() -> None:
    x, y = data(80)
    doubt = np.where(np.arange(80) % 2, 30.0**2, 0.0)
    wild = y + np.sqrt(doubt) * np.random.default_rng(1).standard_normal(80)
    errors = []
    for told in (None, doubt):
        process = GaussianProcess()
        process.fit(x, wild, doubt=told)
        errors.append(np.sqrt(np.mean((process.mean(x) - y) ** 2)))
    assert errors[1] < 0.4 * errors[0]


def test_it_predicts_what_it_has_not_seen_and_knows_how_well() -> None:
    x, y = data(160)
    process = GaussianProcess()
    process.fit(x[:120], y[:120])
    mean, deviation = process.predict(x[120:])
    assert np.corrcoef(mean, y[120:])[0, 1] > 0.98
    assert 0.3 < np.sqrt(np.mean(((mean - y[120:]) / deviation) ** 2)) < 2


def test_lengths_are_learned_from_a_part_of_many_points_and_predictions_use_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(gaussian, "LEARNT_FROM", 60)
    monkeypatch.setattr(gaussian, "_squares", lambda x, *rest, whole=gaussian._squares: (asked.append(len(x)), whole(x, *rest))[1])
    x, y = data(200)
    errors = []
    for n in (60, 200):
        process = GaussianProcess()
        process.fit(x[:n], y[:n])
        errors.append(np.abs(process.mean(x[100:]) - y[100:]).mean())
    assert asked == [60, 60] and process.predict(x)[0].shape == (200,)
    assert errors[1] < 0.1 * errors[0]  # it has seen these


def test_noise_is_estimated_in_the_unit_of_the_values() -> None:
    process = GaussianProcess()
    process.fit(*data(150, noise=2.0))
    assert process.noise == pytest.approx(2.0, rel=0.4)


def test_of_a_few_noisy_values_of_many_columns_no_structure_is_made_where_noise_is_expected() -> None:
    rng, found = np.random.default_rng(0), {LITTLE_NOISE: [], MUCH_NOISE: []}  # type: ignore[var-annotated]
    for _ in range(10):
        x = rng.random((40, 20))
        y = x[:, 0] + 0.3 * rng.standard_normal(40)  # the first column alone says something, as much as the noise
        for prior, shares in found.items():
            process = GaussianProcess(noise_prior=prior)
            process.fit(x, y)
            shares.append(process.noise / 0.3)
    assert np.median(found[MUCH_NOISE]) > 0.5 and np.median(found[MUCH_NOISE]) > 1.5 * np.median(found[LITTLE_NOISE])


def test_far_from_the_data_it_is_unsure() -> None:
    x, y = data(60)
    process = GaussianProcess()
    process.fit(x, y)
    assert process.predict(x + 20)[1].min() > 3 * process.predict(x)[1].max()


def test_equal_values_are_no_trouble() -> None:
    x, _ = data(10)
    process = GaussianProcess()
    process.fit(x, np.full(10, 7.0))
    assert process.predict(x)[0] == pytest.approx(7.0)


def test_columns_of_a_group_share_their_length() -> None:
    x, y = data(80)
    process = GaussianProcess(groups=(0, 1, 1, 2, 2, 2))
    process.fit(x, y)
    assert process.theta is not None and len(process.theta) == 3 + 2
    assert process.theta[2] > process.theta[0]  # the columns that say nothing are far from mattering


def test_a_watch_predicts_what_the_process_does_row_by_row_and_after_a_refit() -> None:
    x, y = data(90)
    process, query = GaussianProcess(), data(50, seed=1)[0]
    watch = Watch(query)
    process.fit(x[:40], y[:40])
    for n in (40, 41, 60):
        process.fit(x[:n], y[:n], steps=0)
        for mine, its in zip(watch.predict(process), process.predict(query), strict=True):
            assert mine == pytest.approx(its, rel=2e-3, abs=2e-3)
    process.fit(x[10:], y[10:], steps=5)  # other data, other lengths
    given = data(4, seed=2)[0]
    for mine, its in zip(watch.predict(process, given=given), process.predict(query, given=given), strict=True):
        assert mine == pytest.approx(its, rel=5e-3, abs=5e-3)


def test_points_that_will_be_known_take_doubt_away_around_them() -> None:
    x, y = data(40)
    process = GaussianProcess()
    process.fit(x, y)
    query = data(20, seed=3)[0]
    mean, deviation = process.predict(query)
    same, less = process.predict(query, given=query[:5])
    assert same == pytest.approx(mean) and np.all(less <= deviation + 1e-9)
    assert less[:5].max() < 0.5 * deviation[:5].min() + 4 * process.noise


def test_the_mean_alone_is_that_of_a_prediction_to_the_bit() -> None:
    x, y = data(80, noise=1.0)
    process = GaussianProcess()
    process.fit(x[:60], y[:60])
    assert np.array_equal(process.mean(x), process.predict(x)[0])


def test_points_to_come_are_remembered_until_they_or_the_data_change() -> None:
    x, y = data(80)
    process, other = GaussianProcess(), GaussianProcess()
    process.fit(x[:40], y[:40])
    first = process.predict(x[60:], given=x[40:50])
    assert np.array_equal(process.predict(x[60:], given=x[40:50].copy()), first)
    assert process.predict(x[60:], given=x[40:60])[1].sum() < first[1].sum()
    process.fit(x[:50], y[:50], steps=0)
    other.theta = process.theta
    other.fit(x[:50], y[:50], steps=0)
    assert np.array_equal(process.predict(x[60:], given=x[40:60]), other.predict(x[60:], given=x[40:60]))


def test_its_doubt_is_that_of_leaving_each_point_out() -> None:
    x, y = data(40, noise=4.0)
    process = GaussianProcess()
    process.fit(x, y)
    inverse = np.linalg.inv(process._lower @ process._lower.T)
    errors = np.clip(process._weights / np.sqrt(np.diag(inverse)), -5, 5)
    assert process._doubt == pytest.approx(np.clip(np.sqrt(np.mean(errors**2)), 1, 4), rel=1e-9)
