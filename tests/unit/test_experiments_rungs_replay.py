from __future__ import annotations

import random

import pytest

from experiments.rungs_replay import replay
from tests.unit.search.fakes import arch


def table(*, noise: float) -> dict[str, object]:
    """16 networks, every second one on the front of full training; what the lower rungs say is that with noise."""
    rng, rows = random.Random(0), []
    for n in range(16):
        network, final = arch(width=8 * (n + 1)), 0.9 - 0.5 / (n + 1) if n % 2 == 0 else 0.05
        said = [(1 - noise) * final + noise * rng.random() for _ in range(2)]
        rows.append({"arch_id": network.id, "arch": network.to_dict(), "macs_g": 0.001 * (n + 1), "params_m": 0.01,
                     "accuracy": [*said, final]})
    return {"rungs": [30, 60, 120], "networks": rows}


def test_a_replay_finds_the_whole_front_where_the_rungs_rank_truly_and_counts_the_steps_that_took() -> None:
    found = replay(table(noise=0.0), rungs=(30, 60, 120), eta=2, seed=0)
    assert found.volume == pytest.approx(1) and found.best_lost == pytest.approx(0)
    assert (8 * 30 + 8 * 120) / (16 * 120) <= found.steps < 0.8, "the eight of the front go to the top"
    assert replay(table(noise=0.0), rungs=(60, 120), eta=2, seed=0).steps > found.steps


def test_rungs_that_rank_by_chance_lose_some_of_the_front() -> None:
    runs = [replay(table(noise=1.0), rungs=(30, 60, 120), eta=4, seed=seed) for seed in range(3)]
    assert all(run.steps < 1 for run in runs) and min(run.volume for run in runs) < 0.999
