from __future__ import annotations

from pathlib import Path

import pytest

from nasvit.search import plateau
from nasvit.search.plateau import due, observed_gain, stretch
from tests.unit.search.fakes import make_loop, record

NAMES = ("accuracy", "latency_ms")


def test_a_look_is_due_late_enough_and_not_all_the_time() -> None:
    assert stretch(300) == 30 and stretch(20) == 10
    assert not due(80, budget=300, looked=0) and due(90, budget=300, looked=0)
    assert not due(100, budget=300, looked=90) and due(105, budget=300, looked=90)
    assert not due(19, budget=30, looked=0), "twice a look at least"


def test_the_observed_gain_is_what_the_last_trials_and_promotions_added() -> None:
    flat = [record(n, accuracy=0.9 - 0.01 * (n > 2), latency=1.0 + 0.1 * n) for n in range(30)]
    assert observed_gain(flat, NAMES, last=10) == 0
    assert observed_gain(flat[:10], NAMES, last=10) is None
    better = [*flat, record(30, accuracy=0.99, latency=1.0)]
    gain = observed_gain(better, NAMES, last=10)
    assert gain is not None and gain > 0.02
    promoted = [*flat, record(0, rung=2, accuracy=0.99, latency=1.0)]
    assert observed_gain(promoted, NAMES, last=10) == pytest.approx(gain)


def test_a_search_without_progress_ends_and_says_why(tmp_path: Path) -> None:
    loop = make_loop(tmp_path / "a", budget=100, stop="plateau", rungs=(1, 2))
    (tmp_path / "a").mkdir()
    assert loop.run().startswith("plateau: the last 10 trials added 0.")
    assert 30 <= len({r.trial for r in loop.records}) < 100
    (tmp_path / "b").mkdir()
    assert make_loop(tmp_path / "b", budget=100, rungs=(1, 2)).run() == "budget"


def test_what_the_sampler_expects_goes_before_what_was_observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected, end in (("a", 0.2, "budget"), ("b", 0.001, "plateau: the next 10 trials are expected to add 0.10%")):
        (tmp_path / name).mkdir()
        loop = make_loop(tmp_path / name, budget=60, stop="plateau", rungs=(1, 2))
        asked: list[int] = []

        def gain(*, proposals: int, value: float = expected, asked: list[int] = asked) -> float:
            asked.append(proposals)
            return value

        monkeypatch.setattr(loop.proposer, "expected_gain", gain)
        assert loop.run().startswith(end) and set(asked) == {plateau.stretch(60)}
