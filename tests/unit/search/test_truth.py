from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nasvit.errors import MeasurementError
from nasvit.experiment import Experiment
from nasvit.results.front import pareto
from nasvit.results.record import TrialRecord, append, read
from nasvit.search import evaluate as evaluate_module
from nasvit.search import truth
from nasvit.search.evaluate import Job, evaluate
from nasvit.search.truth import FEWEST, plan, run_truth, spread
from tests.unit.search.fakes import Inline, arch, record, settings

NAMES = ("accuracy", "latency_ms")
RUNGS = (30, 60, 120)


def searched(count: int) -> list[TrialRecord]:
    """Accuracy falls as latency grows after the first third: a front of a third, the rest behind it; every second one at rung 2."""
    found = [record(n, accuracy=0.5 + 0.001 * n if n < count // 3 else 0.4 - 0.001 * n, latency=1.0 + n) for n in range(count)]
    return found + [replace(r, rung=2) for r in found[::2]]


def trained(job: Job) -> TrialRecord:
    return record(job.trial, rung=job.rung, accuracy=0.9, arch_id=job.arch.id, arch=job.arch.to_dict(), seconds={"train": 1.0})


def test_the_share_buys_networks_and_never_more_than_the_search_allows() -> None:
    many = searched(90)
    made = plan(many, RUNGS, share=0.6)
    assert made.steps == 240 and made.networks == int(0.6 * truth.steps_trained(many, RUNGS) / 240) > FEWEST
    assert plan(searched(20), RUNGS, share=0.01).networks == 0, "six would take more than three quarters of the search"
    assert "took" in plan(searched(20), RUNGS, share=0.01).reason
    assert plan(searched(80), RUNGS, share=0.01).networks == FEWEST
    assert plan(many, RUNGS, share=0).networks == 0 and plan(searched(4), RUNGS, share=1).networks == 0
    assert plan(searched(300), RUNGS, share=9).networks == truth.MOST


def test_a_spread_has_front_and_rest_by_turns_and_so_has_its_beginning() -> None:
    records = searched(60)
    members = {r.trial for r in pareto(records, NAMES)}
    for count in (6, 12, 24):
        chosen = [r.trial for r in spread(records, NAMES, count=count)]
        assert len(set(chosen)) == count and sum(t in members for t in chosen) == count // 2
        assert {0, 19} <= set(chosen), "both ends of the front"
    assert [r.trial for r in spread(records, NAMES, count=6)] == [r.trial for r in spread(records, NAMES, count=12)][:6]
    assert len(spread(records, NAMES, count=99)) == 60


def test_what_is_on_record_is_not_trained_again_and_a_dead_worker_leaves_a_reason(tmp_path: Path) -> None:
    records, asked, path = searched(90), [], tmp_path / "truth.jsonl"
    common = settings(tmp_path, Experiment(space="small", rungs=RUNGS))
    keys: dict[str, Any] = {"settings": common, "names": NAMES, "share": 0.2, "engine": Inline(), "path": path}

    def dies_once(job: Job) -> TrialRecord:
        asked.append(job.trial)
        assert job.truth == 240 and job.rung == 4 and job.earlier is None
        if len(asked) == 2:
            raise RuntimeError("the worker died")
        if len(asked) == 4:
            raise KeyboardInterrupt
        return trained(job)

    with pytest.raises(KeyboardInterrupt):
        run_truth(records, evaluate=dies_once, **keys)
    assert [r.status for r in read(path)] == ["complete", "failed", "complete"]
    with path.open("ab") as file:
        file.write(b'{"crc":"torn')
    again = run_truth(records, evaluate=dies_once, **keys)
    made = plan(records, RUNGS, share=0.2)
    assert again["networks"] == made.networks - 1 and len(set(asked)) == made.networks and len(asked) == made.networks + 1
    assert len(read(path)) == made.networks and run_truth(records, evaluate=dies_once, **keys)["networks"] == again["networks"]
    assert len(asked) == made.networks + 1


def test_when_the_minutes_are_over_nothing_is_begun_and_that_is_said(tmp_path: Path) -> None:
    common = settings(tmp_path, Experiment(space="small", rungs=RUNGS))
    found = run_truth(searched(90), settings=common, names=NAMES, share=0.2, engine=Inline(), path=tmp_path / "t", evaluate=trained,
                      seconds=-1.0)
    assert found["networks"] == 0 and "minutes" in found["reason"]


def test_a_truth_is_trained_from_new_weights_with_every_score_and_leaves_no_checkpoint(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = replace(settings(tmp_path, Experiment(space="small", rungs=(2, 4))), image_size=(16, 16))
    job = Job(settings=common, trial=3, arch=arch(), rung=3, truth=5)
    found = evaluate(job)
    assert found.status == "complete", found.reason
    assert found.details["steps"] == 5 and found.rung == 3 and found.checkpoint is None and not (tmp_path / "checkpoints").exists()
    assert set(found.details["scores"]) == set(evaluate_module.ZERO_COST.names())
    assert found.seed not in (evaluate(replace(job, truth=0)).seed, 0)

    def overflows(*args: Any, **more: Any) -> Any:
        raise MeasurementError("snip is nan")

    monkeypatch.setattr(evaluate_module, "scored", overflows)
    found = evaluate(job)
    assert found.status == "complete" and found.details["scores"] == {} and "nan" in found.details["scores_reason"]
    append(tmp_path / "truth.jsonl", found)
