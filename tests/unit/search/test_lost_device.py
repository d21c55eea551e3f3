"""A search whose only device is gone ends clearly, and brings what it has measured to the top."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nasvit.devices import DeviceFault
from nasvit.errors import DeviceLostError, MeasurementError
from nasvit.results.record import TrialRecord
from nasvit.search.evaluate import Job, failure
from tests.unit.search.fakes import fake_evaluate, make_loop


def failing(job: Job, error: Exception) -> TrialRecord:
    return replace(fake_evaluate(job), objectives={}, **failure(error))


def test_the_search_goes_on_after_a_fault_and_ends_when_the_device_is_gone(tmp_path: Path) -> None:
    def evaluate(job: Job) -> TrialRecord:
        if job.rung > 1 or job.trial < 6:
            return fake_evaluate(job)
        return failing(job, DeviceLostError("pi is in quarantine") if job.trial >= 8 else MeasurementError("no answer in 120 s"))

    loop = make_loop(tmp_path, evaluate=evaluate, budget=20)
    stopped = loop.run()
    assert stopped == "the device is gone: DeviceLostError: pi is in quarantine"
    failed = [r for r in loop.records if r.status == "failed"]
    assert [r.trial for r in failed] == [6, 7, 8] and all("Error: " in str(r.reason) for r in failed)
    assert max(r.rung for r in loop.records if r.status == "complete") == 3  # promotions need no device


def test_a_lost_device_of_an_earlier_session_does_not_end_a_resumed_one(tmp_path: Path) -> None:
    def evaluate(job: Job) -> TrialRecord:
        return fake_evaluate(job) if job.trial < 3 else failing(job, DeviceLostError("pi is in quarantine"))

    earlier = make_loop(tmp_path, evaluate=evaluate, budget=8)
    assert earlier.run().startswith("the device is gone")
    assert make_loop(tmp_path, records=earlier.records, budget=8).run() == "budget"

SEVERAL: dict[str, Any] = {"devices": {"a": "cpu", "b": "ssh://pi@raspberry", "c": "cpu/onnxruntime"},
                           "limits": {"latency_ms@b": 100.0, "latency_ms@c": 90.0}}


def measured(job: Job) -> TrialRecord:
    """As `fake_evaluate`, on all devices that the job's settings still ask for."""
    record = fake_evaluate(job)
    base = record.objectives["latency_ms"]
    values = {"latency_ms": base, "latency_ms@b": 3 * base, "latency_ms@c": 2 / base}
    kept = {name: value for name, value in record.objectives.items() if name != "latency_ms"}
    return replace(record, objectives={**kept, **{name: ms for name, ms in values.items() if name not in job.settings.gone}})


def losing(job: Job, name: str) -> TrialRecord:
    error = DeviceLostError("it is in quarantine")
    error.latency = name
    return failing(job, error)


def loses(**at: str) -> Callable[[Job], TrialRecord]:
    """The trial at which each latency's device is lost; it is asked for by later trials in vain."""
    when = {int(trial[1:]): name for trial, name in at.items()}

    def evaluate(job: Job) -> TrialRecord:
        away = [name for trial, name in when.items() if job.rung == 1 and job.trial >= trial and name not in job.settings.gone]
        return losing(job, away[0]) if away else measured(job)

    return evaluate


@pytest.mark.parametrize("sampler", ["random", "tpe", "surrogate"])
def test_a_further_device_that_is_gone_is_dropped_and_the_search_goes_on_to_its_budget(tmp_path: Path, sampler: str) -> None:
    told: list[str] = []
    loop = make_loop(tmp_path, evaluate=loses(t6="latency_ms@b"), budget=20, told=told.append, sampler=sampler, **SEVERAL)
    assert loop.run() == "budget"
    assert loop.experiment.objectives == ("accuracy", "latency_ms", "latency_ms@c") and "latency_ms@b" not in loop.experiment.limits
    assert [r.trial for r in loop.records if r.status == "failed"] == [6]  # one failure, then nobody asks for it
    assert all(("latency_ms@b" in r.objectives) == (r.trial < 6) for r in loop.records if r.status == "complete" and r.rung == 1)
    assert len({r.trial for r in loop.records if r.status == "complete"}) == 20
    (words,) = told
    assert "b is gone since trial 6" in words and "its limit of 100 ms is held no more" in words
    assert len(loop.proposer.study.directions) == 3


def test_the_first_device_may_go_too_and_the_last_one_ends_the_search(tmp_path: Path) -> None:
    evaluate = loses(t4="latency_ms", t8="latency_ms@b", t12="latency_ms@c")
    loop = make_loop(tmp_path, evaluate=evaluate, budget=20, **SEVERAL)
    assert loop.run().startswith("the device is gone")
    assert list(loop.gone) == ["latency_ms", "latency_ms@b"] and loop.experiment.objectives == ("accuracy", "latency_ms@c")
    done = [r for r in loop.records if r.status == "complete"]
    assert max(r.trial for r in done) == 11 and max(r.rung for r in done) == 3  # what is measured still rises
    assert all("latency_ms" not in r.objectives for r in done if r.trial > 4 and r.rung == 1)


def test_a_resumed_search_knows_from_the_records_which_device_is_gone(tmp_path: Path) -> None:
    earlier = make_loop(tmp_path, evaluate=loses(t6="latency_ms@b"), budget=10, **SEVERAL)
    earlier.run()
    again = make_loop(tmp_path, evaluate=loses(t6="latency_ms@b"), records=earlier.records, budget=20, **SEVERAL)
    assert list(again.gone) == ["latency_ms@b"] and again.run() == "budget"
    assert sum(r.status == "failed" for r in again.records) == 1


@pytest.mark.parametrize("more", [{"limits": {"peak_memory_mb": 1e6}}, {"objectives": ("accuracy", "latency_ms"), "devices": {"a": "cpu"}}],
                         ids=["nothing else measures the peak memory", "no other device"])
def test_a_device_that_the_search_cannot_do_without_ends_it(tmp_path: Path, more: dict[str, Any]) -> None:
    loop = make_loop(tmp_path, evaluate=loses(t4="latency_ms"), budget=20, **{**SEVERAL, "limits": {}, **more})
    assert loop.run().startswith("the device is gone") and not loop.gone


def test_faults_of_a_device_that_hangs_from_the_start_do_not_end_the_search_before_it_is_dropped(tmp_path: Path) -> None:
    def evaluate(job: Job) -> TrialRecord:
        if "latency_ms@b" in job.settings.gone or job.rung > 1:
            return measured(job)
        fault = DeviceFault("b: no answer in 120 s")
        fault.latency = "latency_ms@b"
        return failing(job, fault) if job.trial < 8 else losing(job, "latency_ms@b")  # as with several workers, three faults in each

    loop = make_loop(tmp_path, evaluate=evaluate, budget=12, **SEVERAL)
    assert loop.run() == "budget" and list(loop.gone) == ["latency_ms@b"]


def test_several_workers_land_what_they_have_before_the_study_is_made_anew(tmp_path: Path) -> None:
    class Threads:
        workers = 3

        def __init__(self) -> None:
            self.pool = ThreadPoolExecutor(3)

        def submit(self, fn: Any, /, *args: Any) -> Any:
            return self.pool.submit(fn, *args)

    engine = Threads()
    loop = make_loop(tmp_path, evaluate=loses(t6="latency_ms@b"), engine=engine, budget=24, **SEVERAL)
    assert loop.run() == "budget"
    engine.pool.shutdown()
    done = {r.trial for r in loop.records if r.status == "complete"}
    assert len(done) == 24 and len({r.arch_id for r in loop.records}) == len({r.trial for r in loop.records})
    assert 1 <= sum(r.status == "failed" for r in loop.records) <= 4 and list(loop.gone) == ["latency_ms@b"]
