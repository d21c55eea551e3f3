from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nasvit.results.record import TrialRecord
from nasvit.search.rungs import JUDGED, at_rung, best, merits, promotable, seconds_to_finish, unfinished
from tests.unit.search.fakes import record

NAMES = ("accuracy", "latency_ms")


def test_a_lower_rank_goes_before_a_larger_contribution() -> None:
    results = [record(0, accuracy=0.9, latency=5.0), record(1, accuracy=0.5, latency=1.0), record(2, accuracy=0.8, latency=6.0)]
    assert set(best(results, NAMES, count=2)) == {0, 1}
    assert best(results, NAMES, count=3)[2] == 2


def test_within_a_rank_the_larger_contribution_goes_first() -> None:
    crowded = [record(0, accuracy=0.50, latency=1.00), record(1, accuracy=0.505, latency=1.01), record(2, accuracy=0.51, latency=1.02),
               record(3, accuracy=0.9, latency=3.0), record(4, accuracy=0.2, latency=4.0)]
    assert best(crowded, NAMES, count=1) == [3]
    assert best(crowded, NAMES, count=5)[-1] == 4


def trained(trial: int, *, accuracy: float, loss: float, steps: int = 30) -> TrialRecord:
    return record(trial, accuracy=accuracy, details={"val_loss": loss, "steps": steps})


def test_after_a_training_the_lower_validation_loss_goes_first_whatever_the_accuracy() -> None:
    results = [trained(0, accuracy=0.3, loss=2.1), trained(1, accuracy=0.2, loss=1.9), trained(2, accuracy=0.25, loss=900.0)]
    assert best(results, NAMES, count=3) == [1, 0, 2]
    assert promotable(1, results, NAMES, eta=3) and not promotable(0, results, NAMES, eta=3)


def test_the_accuracy_counts_where_a_loss_is_missing_or_nothing_was_trained() -> None:
    cut = [trained(0, accuracy=0.3, loss=2.1, steps=0), trained(1, accuracy=0.2, loss=1.9, steps=0)]
    assert best(cut, NAMES, count=1) == [0]
    assert best([trained(0, accuracy=0.3, loss=2.1), record(1, accuracy=0.2)], NAMES, count=1) == [0]
    assert merits([record(1, accuracy=0.2)], ("latency_ms",)) == [{"accuracy": 0.2, "latency_ms": 1.0}]


def test_nothing_is_promoted_before_eta_results() -> None:
    results = [record(0, accuracy=0.9), record(1, accuracy=0.1)]
    assert not promotable(0, results, NAMES, eta=3)
    assert promotable(0, [*results, record(2, accuracy=0.2)], NAMES, eta=3)
    assert not promotable(2, [*results, record(2, accuracy=0.2)], NAMES, eta=3)


def test_only_complete_results_of_the_rung_are_judged() -> None:
    records = [record(0), record(1, status="failed"), record(2, rung=2), record(3, status="rejected", rung=0)]
    assert [r.trial for r in at_rung(records, 1)] == [0]


def test_the_front_below_the_top_rung_is_unfinished() -> None:
    records = [record(0, accuracy=0.5, latency=1.0), record(1, accuracy=0.9, latency=2.0), record(1, rung=3, accuracy=0.95, latency=2.0),
               record(2, accuracy=0.4, latency=3.0)]
    assert [r.trial for r in unfinished(records, NAMES, top=3, eta=3)] == [0]


def test_in_the_end_the_best_of_each_rung_are_due_as_they_then_stand() -> None:
    # trial 5 came first and was judged alone; in the end it is the most accurate of the six at rung 1
    records = [record(5, accuracy=0.7, latency=3.0), *(record(n, accuracy=0.5 - 0.01 * n, latency=1.0 + n) for n in range(5))]
    due = [r.trial for r in unfinished(records, NAMES, top=2, eta=3)]
    assert sorted(due) == [0, 5]
    promoted = [*records, record(5, rung=2, accuracy=0.8, latency=3.0), record(0, rung=2, status="failed")]
    assert unfinished(promoted, NAMES, top=2, eta=3) == []


def test_of_many_results_a_trial_is_judged_as_among_all_of_them_but_near_the_border() -> None:
    rng = random.Random(0)
    results = [record(n, accuracy=rng.random(), latency=1 + rng.random()) for n in range(1500)]
    first = set(best(results, NAMES, count=len(results) // 2))
    asked = range(0, 1500, 15)
    agreed = sum(promotable(n, results, NAMES, eta=2) == (n in first) for n in asked)
    assert len(results) > JUDGED and agreed >= 0.93 * len(asked)


def test_a_few_results_are_judged_exactly_as_the_best_of_them() -> None:
    rng = random.Random(1)
    results = [record(n, accuracy=rng.randint(0, 8) / 10, latency=rng.randint(1, 8)) for n in range(60)]
    for eta in (2, 3, 4):
        first = set(best(results, NAMES, count=len(results) // eta))
        assert [promotable(n, results, NAMES, eta=eta) for n in range(60)] == [n in first for n in range(60)]
    assert not promotable(99, results, NAMES, eta=2)


def test_a_rung_without_training_tells_no_speed_and_is_taken_for_as_fast_as_the_others() -> None:
    def at(trial: int, rung: int, *, accuracy: float, train: float) -> TrialRecord:
        return replace(record(trial, rung=rung, accuracy=accuracy, latency=accuracy), seconds={"train": train})

    first = [at(0, 1, accuracy=0.5, train=3.0), at(1, 1, accuracy=0.6, train=3.0)]
    assert seconds_to_finish(first, NAMES, rungs=(0, 2, 6), eta=2, workers=1) == 0.0
    known = [*first, at(1, 2, accuracy=0.7, train=4.0)]  # two seconds a step
    assert seconds_to_finish(known, NAMES, rungs=(0, 2, 6), eta=2, workers=1) == pytest.approx(2.0 * 6 + 2.0 * 4)


def test_what_is_left_to_train_is_shared_by_workers_but_no_network_is() -> None:
    def at(trial: int, rung: int, *, accuracy: float, latency: float, status: str = "complete") -> TrialRecord:
        return replace(record(trial, rung=rung, accuracy=accuracy, latency=latency), seconds={"train": 10.0}, status=status)

    front = [at(0, 1, accuracy=0.5, latency=1.0), at(1, 1, accuracy=0.6, latency=2.0)]  # a second a step, thirty steps to the top
    assert [seconds_to_finish(front, NAMES, rungs=(10, 20, 40), eta=4, workers=n) for n in (1, 2, 9)] == pytest.approx([60, 30, 30])
    behind = [*front, at(2, 1, accuracy=0.55, latency=3.0), at(3, 1, accuracy=0.1, latency=4.0)]
    whole = [seconds_to_finish(behind, NAMES, rungs=(10, 20, 40), eta=1, workers=1, front_alone=alone) for alone in (False, True)]
    assert whole == pytest.approx([60 + 10 + 10, 60]), "those behind the front rise by one rung, which is ten steps"
    failed = [*front, at(1, 2, accuracy=0.0, latency=2.0, status="failed")]
    assert seconds_to_finish(failed, NAMES, rungs=(10, 20, 40), eta=4, workers=1) == pytest.approx(30), "it is not tried again"
