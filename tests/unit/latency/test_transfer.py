from __future__ import annotations

import random

import numpy as np
import pytest

from nasvit.errors import NasvitError
from nasvit.latency.transfer import Transfer, features
from nasvit.space import SearchSpace


def devices(networks: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of networks (N, 6), and latencies (N, 5) of devices that weigh them differently."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 6, size=(networks, 6)).astype(float)
    costs = np.array([1.0, 2, 3, 1, 2, 4])[None] * np.exp(rng.normal(0, 0.4, size=(5, 6)))
    return counts, (2 + counts @ costs.T) * np.exp(rng.normal(0, 0.02, size=(networks, 5)))


def test_ten_measurements_and_known_devices_beat_ten_measurements_alone_by_half() -> None:
    counts, ms = devices(400, seed=0)
    known, scratch = [], []
    for target in range(5):
        for found, table in ((known, np.delete(ms, target, axis=1)), (scratch, ms[:, :0])):
            transfer = Transfer(table, features=counts)
            rows = transfer.choose(10, seed=0)
            transfer.fit(rows, ms[rows, target])
            found.append(np.abs(transfer.predict()[0] / ms[:, target] - 1).mean())
    assert np.mean(known) < 0.06 and np.mean(scratch) > 1.5 * np.mean(known)


def test_the_deviation_is_about_the_error() -> None:
    counts, ms = devices(400, seed=1)
    transfer = Transfer(ms[:, 1:], features=counts)
    rows = transfer.choose(10, seed=0)
    transfer.fit(rows, ms[rows, 0])
    middle, deviation = transfer.predict()
    assert 0.75 <= np.mean(np.abs(np.log(ms[:, 0] / middle)) <= 1.645 * deviation) <= 1


def test_different_networks_are_chosen_the_same_for_one_seed() -> None:
    counts, ms = devices(200, seed=2)
    transfer = Transfer(ms, features=counts)
    rows = transfer.choose(10, seed=3)
    assert len(set(rows)) == 10 and rows == transfer.choose(10, seed=3)


def test_latencies_that_cannot_be_are_refused() -> None:
    with pytest.raises(NasvitError, match="positive"):
        Transfer(np.array([[1.0], [0.0]]), features=np.zeros((2, 3)))


def test_features_of_networks_have_unit_spread() -> None:
    space, rng = SearchSpace.load("hybrid_tiny"), random.Random(0)
    table = features([space.sample(rng) for _ in range(50)])
    assert table.shape[0] == 50 and np.all((np.abs(table.std(axis=0) - 1) < 1e-9) | (table.std(axis=0) == 0))
