from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nasvit.results.record import TrialRecord, append
from nasvit.search import loop
from nasvit.search.progress import Tally, counts, snapshot
from nasvit.search.rungs import at_rung
from tests.unit.search.fakes import make_loop, record


@pytest.mark.parametrize("seed", range(5))
def test_a_tally_counts_what_all_records_say_at_every_moment(seed: int) -> None:
    rng, records, tally = random.Random(seed), [], Tally()
    for _ in range(80):
        status = rng.choice(["complete", "complete", "rejected", "failed"])
        records.append(record(rng.randrange(20), rung=0 if status == "rejected" else rng.randint(0, 3), status=status))
        tally.add(records[-1])
        assert tally.counts == counts(records)
    assert all(list(tally.at_rung(rung)) == at_rung(records, rung) for rung in range(5))
    assert Tally(records).counts == tally.counts


def test_a_long_search_is_reported_once_in_a_while_and_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORTED", 5)
    monkeypatch.setattr(loop, "REPORT_SECONDS", 1e9)
    seen: list[tuple[int, str | None]] = []
    made = make_loop(tmp_path, progress=lambda s: seen.append((s.evaluated, s.stopped_because)), budget=10, rungs=(60,))
    made.run()
    assert [n for n, _ in seen] == [1, 2, 3, 4, 5, 10] and seen[-1][1] == "budget"


def test_every_trial_that_has_stopped_rising_is_told_once_and_again_only_if_the_end_promotes_it(tmp_path: Path) -> None:
    told: list[TrialRecord] = []
    made = make_loop(tmp_path, budget=9, rungs=(60, 120))
    made.settled = told.append
    made.run()
    assert {r.trial for r in told} == {r.trial for r in made.records} and len({(r.trial, r.rung) for r in told}) == len(told)


def test_a_record_costs_the_same_whatever_stands_before_it(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for number in range(3):
        append(path, replace(record(0), trial=number))
    lines = path.read_bytes().splitlines()
    assert len({len(line) for line in lines}) == 1


def test_what_is_left_is_what_ends_first() -> None:
    def left(**given: Any) -> float | None:
        return snapshot([], budget=60, rungs=1, names=("accuracy", "latency_ms"), running=0, elapsed_s=30.0, before=-30, **given).eta_s

    assert left() == 60.0  # thirty in thirty seconds
    assert left(minutes=1) == 30.0
    assert left(minutes=0.1) == 0.0
    assert left(finish_s=15.0) == 75.0


def test_what_is_left_behind_the_last_trial_is_its_trainings_and_never_nothing_while_they_run() -> None:
    def left(running: int, **given: Any) -> float | None:
        return snapshot([record(0), record(1)], budget=2, rungs=2, names=("accuracy", "latency_ms"), running=running, elapsed_s=30.0,
                        before=0, **given).eta_s

    assert (left(1, finish_s=40.0), left(1, finish_s=40.0, minutes=1)) == (40.0, 30.0)
    assert left(1) is None and left(0) == 0.0


def test_a_promotion_never_makes_the_front_look_smaller() -> None:
    def seen(*trials: tuple[int, int, float, float]) -> float:
        records = [record(trial, rung=rung, accuracy=accuracy, latency=ms) for trial, rung, accuracy, ms in trials]
        return snapshot(records, budget=9, rungs=2, names=("accuracy", "latency_ms"), running=0, elapsed_s=30.0, before=0).hypervolume

    before = ((0, 1, 0.3, 1.0), (1, 1, 0.9, 2.0), (2, 1, 0.5, 3.0))
    assert seen(*before, (0, 2, 0.6, 1.0)) > seen(*before) > 0
