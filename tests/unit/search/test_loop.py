from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nasvit.engines import OverLimitError
from nasvit.errors import StorageError
from nasvit.results.front import pareto
from nasvit.results.record import TrialRecord, read
from nasvit.search.evaluate import Job
from nasvit.search.gone import BLAMELESS, UNSETTLED
from nasvit.search.progress import Snapshot, counts
from tests.unit.search.fakes import Inline, SmallSpace, fake_evaluate, make_loop


def test_it_ends_at_exactly_the_budget_and_every_record_is_on_disk(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, budget=17)
    assert loop.run() == "budget"
    assert counts(loop.records).evaluated == 17
    assert read(tmp_path / "records.jsonl") == loop.records


def test_no_architecture_is_evaluated_twice_at_one_rung(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, budget=60, sampler="tpe")
    loop.run()
    assert max(Counter((r.arch_id, r.rung) for r in loop.records).values()) == 1


def test_the_front_ends_at_the_top_rung(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, budget=20)
    loop.run()
    front = pareto(loop.records, ["accuracy", "latency_ms"])
    assert front and {r.rung for r in front} == {3}
    assert len([r for r in loop.records if r.rung == 3]) < 20  # not everything was trained in full


def test_each_trial_is_told_once_with_the_values_of_its_highest_rung(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, budget=20)
    told = []
    tell = loop.proposer.tell
    loop.proposer.tell = lambda proposal, record: (told.append((record, list(loop.records))), tell(proposal, record))[1]
    loop.run()
    assert Counter(record.trial for record, _ in told) == Counter(range(20))
    assert any(record.rung > 1 for record, _ in told)
    for record, known in told:
        assert record.rung == max(r.rung for r in known if r.trial == record.trial)


def test_a_space_smaller_than_the_budget_is_searched_whole(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, budget=50, space=SmallSpace(widths=3, depths=2, mlps=1))
    assert loop.run() == "space exhausted"
    assert counts(loop.records).evaluated == 6


def test_a_search_stopped_by_its_first_failures_can_be_resumed_when_they_are_mended(tmp_path: Path) -> None:
    def fails(job: Job) -> TrialRecord:
        return replace(fake_evaluate(job), status="failed", objectives={}, reason="no disk")

    broken = make_loop(tmp_path, budget=5, evaluate=fails)
    assert broken.run().startswith("the first")
    assert make_loop(tmp_path, budget=5, records=broken.records).run() == "budget"


def test_rejected_trials_do_not_count_to_the_budget(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, budget=10, limits={"latency_ms": 1.0})
    loop.run()
    done = counts(loop.records)
    assert done.evaluated == 10 and done.rejected > 0
    assert all(r.objectives["latency_ms"] <= 1.0 for r in loop.records if r.status == "complete")


def test_limits_that_leave_nothing_end_the_search_with_that_reason(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, budget=2, limits={"latency_ms": 0.001})
    assert "the limits leave too little" in loop.run()
    assert 40 < counts(loop.records).rejected < 50


def test_five_failures_at_the_beginning_end_the_search_with_their_reason(tmp_path: Path) -> None:
    def fails(job):
        return replace(fake_evaluate(job), status="failed", objectives={}, reason="out of memory")

    loop = make_loop(tmp_path, evaluate=fails)
    assert loop.run() == "the first 5 trials failed, the last because: out of memory"


def test_single_failures_do_not_end_the_search(tmp_path: Path) -> None:
    def fails_sometimes(job):
        good = fake_evaluate(job)
        return replace(good, status="failed", objectives={}, reason="nan") if job.trial % 3 == 1 and job.rung == 1 else good

    loop = make_loop(tmp_path, budget=10, evaluate=fails_sometimes)
    assert loop.run() == "budget"
    assert counts(loop.records).evaluated == 10 and counts(loop.records).failed >= 3


def test_a_dead_worker_is_tried_again_and_then_written_down(tmp_path: Path) -> None:
    tries = Counter()

    def dies(job):
        tries[job.trial] += 1
        if job.trial == 2 or (job.trial == 4 and tries[4] == 1):
            raise OSError("worker died")
        return fake_evaluate(job)

    loop = make_loop(tmp_path, budget=8, evaluate=dies)
    loop.run()
    assert tries[2] == 2 and counts(loop.records).evaluated == 8
    failed = [r for r in loop.records if r.status == "failed"]
    assert [r.trial for r in failed] == [2] and "worker died" in failed[0].reason


def test_a_job_past_its_limits_is_written_down_and_not_tried_again(tmp_path: Path) -> None:
    tried: list[int] = []

    def evaluate(job: Job) -> TrialRecord:
        tried.append(job.trial)
        if job.trial == 1:
            raise OverLimitError("evaluate was ended, because it ran for more than 1 s")
        return fake_evaluate(job)

    loop = make_loop(tmp_path, evaluate=evaluate)
    loop.run()
    failed = [r for r in loop.records if r.status == "failed"]
    assert [r.trial for r in failed] == [1] and "more than 1 s" in str(failed[0].reason) and tried.count(1) == 1


def test_a_failed_promotion_leaves_its_trial_at_the_rung_below_and_is_not_tried_again(tmp_path: Path) -> None:
    def no_second_rung(job):
        good = fake_evaluate(job)
        return good if job.rung == 1 else replace(good, status="failed", objectives={}, reason="nan")

    loop = make_loop(tmp_path, budget=6, evaluate=no_second_rung)
    assert loop.run() == "budget"
    assert counts(loop.records).evaluated == 6 and counts(loop.records).failed == 0
    front = pareto(loop.records, ["accuracy", "latency_ms"])
    assert front and {r.rung for r in front} == {1}
    failed = [r.trial for r in loop.records if r.status == "failed"]
    assert len(failed) == len(set(failed)) and set(failed) >= {r.trial for r in front}


def test_what_the_machine_failed_is_tried_again_when_the_search_is_resumed(tmp_path: Path) -> None:
    def without_nodes(job: Job) -> TrialRecord:
        good = fake_evaluate(job)
        lost = job.rung > 1 or job.trial == 2
        return replace(good, status="failed", objectives={}, reason="no room", details=dict(BLAMELESS)) if lost else good

    loop = make_loop(tmp_path, budget=4, evaluate=without_nodes)
    loop.run()
    lost = next(r for r in loop.records if r.trial == 2)
    assert {r.rung for r in pareto(loop.records, ["accuracy", "latency_ms"])} == {1}

    resumed = make_loop(tmp_path, budget=5, records=loop.records)
    assert lost.arch_id not in resumed.proposer.seen
    assert resumed.run() == "budget"
    assert {r.rung for r in pareto(resumed.records, ["accuracy", "latency_ms"])} == {3}


def test_a_machine_at_its_end_ends_the_search_before_it_uses_up_the_space(tmp_path: Path) -> None:
    def fills_up(job: Job) -> TrialRecord:
        good = fake_evaluate(job)
        return good if job.trial < 3 else replace(good, status="failed", objectives={}, reason="disk full", details=dict(BLAMELESS))

    loop = make_loop(tmp_path, budget=40, evaluate=fills_up)
    assert loop.run() == "the last 5 trials failed for want of a machine: disk full"
    assert loop.records[-1].trial < 12


def noisy(job: Job) -> TrialRecord:
    return replace(fake_evaluate(job), status="failed", objectives={}, reason="no stable latency", details=dict(UNSETTLED))


def test_a_network_that_could_not_be_measured_waits_until_another_could_be(tmp_path: Path) -> None:
    asked: list[int] = []

    def burst(job: Job) -> TrialRecord:
        asked.append(job.trial)
        return noisy(job) if job.trial in (2, 3) and asked.count(job.trial) == 1 else fake_evaluate(job)

    loop = make_loop(tmp_path, budget=8, rungs=(60,), evaluate=burst)
    assert loop.run() == "budget"
    assert asked == [0, 1, 2, 3, 4, 2, 3, 5, 6, 7]
    assert [r.status for r in loop.records] == ["complete"] * 8 and read(tmp_path / "records.jsonl") == loop.records
    assert {r.trial: r.seconds["measure"] for r in loop.records}[2] == pytest.approx(0.02)  # the time of both attempts


def test_a_network_that_never_can_be_measured_is_on_record_once_and_tried_again_by_a_resumed_search(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, budget=6, rungs=(60,), evaluate=lambda job: noisy(job) if job.trial == 1 else fake_evaluate(job))
    assert loop.run() == "budget"
    assert counts(loop.records).evaluated == 6
    assert [(r.trial, r.reason) for r in loop.records if r.status == "failed"] == [(1, "no stable latency")]
    lost = next(r for r in loop.records if r.trial == 1)
    assert lost.arch_id not in make_loop(tmp_path, budget=7, records=loop.records).proposer.seen


def test_a_small_space_is_searched_whole_though_some_of_it_had_to_wait(tmp_path: Path) -> None:
    asked: list[int] = []

    def burst(job: Job) -> TrialRecord:
        asked.append(job.trial)
        return noisy(job) if job.trial >= 4 and asked.count(job.trial) == 1 else fake_evaluate(job)

    loop = make_loop(tmp_path, budget=50, rungs=(60,), space=SmallSpace(widths=3, depths=2, mlps=1), evaluate=burst)
    assert loop.run() == "space exhausted"
    assert counts(loop.records).evaluated == 6


def test_a_machine_that_is_never_calm_ends_the_search_with_that_reason(tmp_path: Path) -> None:
    asked: list[int] = []
    loop = make_loop(tmp_path, budget=40, evaluate=lambda job: (asked.append(job.trial), noisy(job))[1])
    assert loop.run() == "the first 5 trials failed, the last because: no stable latency"
    assert len(asked) < 15 and {r.trial for r in loop.records} == set(asked)  # those that waited are on record, too


def test_noise_for_a_while_does_not_end_a_search(tmp_path: Path) -> None:
    asked: list[int] = []

    def spell(job: Job) -> TrialRecord:
        asked.append(job.trial)
        return noisy(job) if 10 <= len(asked) < 30 else fake_evaluate(job)

    loop = make_loop(tmp_path, budget=20, rungs=(60,), evaluate=spell)
    assert loop.run() == "budget"
    assert counts(loop.records).evaluated == 20


@pytest.mark.parametrize("ending", ["minutes", "interrupted"])
def test_what_waits_for_a_calm_machine_when_a_search_ends_is_on_record(tmp_path: Path, ending: str) -> None:
    def ends(job: Job) -> TrialRecord:
        if job.trial == 3 and ending == "interrupted":
            raise KeyboardInterrupt
        if job.trial == 3:
            loop.started -= 3600
        return noisy(job) if job.trial >= 2 else fake_evaluate(job)

    loop = make_loop(tmp_path, budget=20, minutes=30, rungs=(60,), evaluate=ends)
    assert loop.run() == ending
    assert 2 in {r.trial for r in loop.records if r.status == "failed"} and read(tmp_path / "records.jsonl") == loop.records


def test_minutes_stop_the_search(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, budget=30, minutes=0.5)
    loop.started -= 31
    assert loop.run() == "minutes" and not loop.records


@pytest.mark.parametrize("kept", [True, False])
def test_of_the_minutes_some_are_kept_to_bring_the_front_to_the_top_rung(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    def slow(job: Job) -> TrialRecord:
        seconds = {1: 1.0, 2: 1.0, 3: 2.0}[job.rung]  # as the steps
        loop.started -= seconds
        return replace(fake_evaluate(job), seconds={"train": seconds})

    if not kept:
        monkeypatch.setattr("nasvit.search.loop.FINISHING", 0.0)
    loop = make_loop(tmp_path, space=SmallSpace(widths=16, depths=8, mlps=8), budget=900, minutes=3, evaluate=slow, rungs=(100, 200, 400))
    assert loop.run() == "minutes" and loop.elapsed_s < 3 * 60 + 3
    rungs = {r.rung for r in pareto(loop.records, ["accuracy", "latency_ms"])}
    assert (rungs == {3}) == kept
    assert not kept or loop.elapsed_s > 0.8 * 3 * 60


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    class Interrupted(Inline):
        def submit(self, fn, /, *args):
            if args[0].trial == 4:
                raise KeyboardInterrupt
            return super().submit(fn, *args)

    loop = make_loop(tmp_path, engine=Interrupted())
    assert loop.run() == "interrupted"
    assert len({r.trial for r in read(tmp_path / "records.jsonl")}) == 4


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_resumed_search_goes_on_to_exactly_the_budget_without_repeating(tmp_path: Path, sampler: str) -> None:
    make_loop(tmp_path, budget=9, sampler=sampler).run()
    before = read(tmp_path / "records.jsonl")
    loop = make_loop(tmp_path, budget=20, sampler=sampler, records=before)
    loop.run()
    assert loop.records[: len(before)] == before
    assert counts(loop.records).evaluated == 20
    assert len({r.arch_id for r in loop.records}) == 20 == len({r.trial for r in loop.records})


def test_snapshots_count_what_the_records_say(tmp_path: Path) -> None:
    seen: list[Snapshot] = []
    loop = make_loop(tmp_path, budget=12, progress=seen.append, limits={"latency_ms": 2.0})
    loop.run()
    last = seen[-1]
    assert (last.evaluated, last.budget, last.stopped_because) == (12, 12, "budget")
    assert last.rejected == counts(loop.records).rejected and last.hypervolume > 0 and sum(last.per_rung) >= 12
    assert all(s.stopped_because is None for s in seen[:-1])
    assert [name for name, _ in last.best] == sorted((name for name, _ in last.best), key=lambda n: float(n.split()[1]))


def test_a_full_disk_in_a_worker_ends_the_search_and_blames_no_trial(tmp_path: Path) -> None:
    def full(job: Job) -> TrialRecord:
        if job.trial == 3:
            raise StorageError("cannot write: No space left on device")
        return fake_evaluate(job)

    loop = make_loop(tmp_path, budget=10, evaluate=full)
    with pytest.raises(StorageError, match="No space left"):
        loop.run()
    assert {r.trial for r in read(tmp_path / "records.jsonl")} == {0, 1, 2}
    again = make_loop(tmp_path, budget=10, records=read(tmp_path / "records.jsonl"))
    assert again.run() == "budget" and counts(again.records).evaluated == 10


@pytest.mark.parametrize("workers", [1, 2, 6])
def test_what_is_due_is_asked_with_the_proposals_still_to_come_however_many_workers_there_are(workers: int, tmp_path: Path) -> None:
    asked: list[int] = []
    engine = Inline()
    engine.workers = workers
    make_loop(tmp_path, engine=engine, due=lambda left: asked.append(left) or ()).run()
    assert asked == list(range(12, 0, -1))


@pytest.mark.parametrize("seconds", [20, 30, 31, 32, 33, 34, 35, 36, 40])
def test_a_trial_that_was_promoted_when_the_minutes_ended_is_settled_at_the_rung_that_it_has(tmp_path: Path, seconds: int) -> None:
    def slow(job: Job) -> TrialRecord:
        loop.started -= 1.0
        return fake_evaluate(job)

    loop = make_loop(tmp_path, space=SmallSpace(widths=16, depths=8, mlps=8), budget=900, minutes=seconds / 60, evaluate=slow)
    settled: list[TrialRecord] = []
    loop.settled = settled.append
    assert loop.run() == "minutes"
    highest = {r.trial: r.rung for r in loop.records}
    assert {r.trial: r.rung for r in settled} == highest
