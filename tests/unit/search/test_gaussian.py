from __future__ import annotations

import numpy as np
import pytest

from nasvit.search.gaussian import GaussianProcess, _loss


def data(n: int, *, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.random((n, 6))
    return x, 100 + 10 * (np.sin(4 * x[:, 0]) + x[:, 1] * x[:, 2]) + noise * rng.standard_normal(n)


def test_the_gradient_is_the_losss() -> None:
    x, y = data(20)
    squares = ((x[:, None] - x[None]) ** 2).transpose(2, 0, 1)
    theta, z = np.linspace(-1, 0.5, 8), (y - y.mean()) / y.std()
    numeric = [(_loss(theta + step, squares, z, 0.4)[0] - _loss(theta - step, squares, z, 0.4)[0]) / 2e-6 for step in 1e-6 * np.eye(8)]
    assert _loss(theta, squares, z, 0.4)[1] == pytest.approx(numeric, rel=1e-4, abs=1e-4)


def test_it_predicts_what_it_has_not_seen_and_knows_how_well() -> None:
    x, y = data(160)
    process = GaussianProcess()
    process.fit(x[:120], y[:120])
    mean, deviation = process.predict(x[120:])
    assert np.corrcoef(mean, y[120:])[0, 1] > 0.98
    assert 0.3 < np.sqrt(np.mean(((mean - y[120:]) / deviation) ** 2)) < 2


def test_noise_is_estimated_in_the_unit_of_the_values() -> None:
    process = GaussianProcess()
    process.fit(*data(150, noise=2.0))
    assert process.noise == pytest.approx(2.0, rel=0.4)


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
