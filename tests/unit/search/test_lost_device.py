"""A search whose only device is gone ends clearly, and brings what it has measured to the top."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
