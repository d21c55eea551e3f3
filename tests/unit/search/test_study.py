from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from nasvit.errors import RunError
from nasvit.experiment import Experiment
from nasvit.search.domain import LOWER, RUNG
from nasvit.search.evaluate import Job
from nasvit.search.study import Proposer, Recorded
from tests.unit.search.fakes import SmallSpace, fake_evaluate, make_loop, settings

NAMES = ("accuracy", "latency_ms")


def proposer(space: Any = None, **values: Any) -> Proposer:
    return Proposer(space or SmallSpace(), **{"sampler": "random", "seed": 0, "objectives": NAMES, "limits": {}, **values})


def evaluated(proposal: Any, *, limits: Any = None) -> Any:
    experiment = Experiment(space="small", limits=limits or {})
    return fake_evaluate(Job(settings=settings(Path(), experiment), trial=0, arch=proposal.arch, params=proposal.params))


def test_proposals_are_never_repeated_and_end_when_the_space_does() -> None:
    asked = proposer(SmallSpace(widths=2, depths=3, mlps=2))
    ids = []
    while (proposal := asked.propose()) is not None:
        ids.append(proposal.arch.id)
    assert len(ids) == len(set(ids)) == 12


def test_a_repeated_proposal_gives_way_to_a_neighbour_and_is_told_as_failed() -> None:
    asked = proposer()
    wanted = {"s0.embed_dim": 16, "s0.depth": 2, "s0.mlp": 32}
    asked.study.enqueue_trial(wanted)
    first = asked.propose()
    assert first.params == wanted
    asked.tell(first, evaluated(first))
    asked.study.enqueue_trial(wanted)
    second = asked.propose()
    assert second.arch.id != first.arch.id
    assert sum(second.params[name] != value for name, value in wanted.items()) == 1
    assert [t.state for t in asked.study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]


def test_what_is_due_goes_before_the_sampler_and_is_passed_over_once_it_is_known() -> None:
    wanted = {"s0.embed_dim": 16, "s0.depth": 2, "s0.mlp": 32}
    then = {**wanted, "s0.mlp": 64}
    told: list[int] = []
    asked = proposer(due=lambda left: told.append(left) or (wanted, then))
    first, second, third = asked.propose(left=3), asked.propose(left=2), asked.propose(left=1)
    assert first.params == wanted and second.params == then and third.params not in (wanted, then) and told == [3, 2, 1]


def test_a_rejected_trial_is_told_as_infeasible_and_a_failed_one_as_failed() -> None:
    limits = {"latency_ms": 0.01}
    asked = proposer(limits=limits)
    first, second = asked.propose(), asked.propose()
    asked.tell(first, evaluated(first, limits=limits))
    asked.tell(second, replace(evaluated(second), status="failed", objectives={}))
    rejected, failed = asked.study.trials
    assert rejected.state == TrialState.COMPLETE and rejected.constraints["limits"] > 0 and rejected.values[0] == 0
    assert failed.state == TrialState.FAIL and asked.study.best_trials == []


def test_the_study_rebuilt_from_records_equals_the_one_that_wrote_them(tmp_path: Any) -> None:
    loop = make_loop(tmp_path, budget=10, limits={"latency_ms": 2.0})
    loop.run()
    again = proposer(limits={"latency_ms": 2.0}, records=loop.records)

    def facts(study: Any) -> set[str]:
        return {str((sorted(t.params.items()), t.state.name, t.constraints)) for t in study.trials if t.state == TrialState.COMPLETE}

    assert len(facts(again.study)) >= 10
    assert facts(again.study) == facts(loop.proposer.study)
    assert all(t.distributions == u.distributions for t in again.study.trials for u in loop.proposer.study.trials)
    assert set(again.seen) == {r.arch_id for r in loop.records}


def test_a_trial_tells_what_it_had_at_the_rungs_below_when_it_ends_and_when_a_search_is_resumed(tmp_path: Any) -> None:
    loop = make_loop(tmp_path, budget=20)
    loop.run()
    had = {(r.arch_id, r.rung): [r.objectives[name] for name in NAMES] for r in loop.records}
    for study in (loop.proposer.study, proposer(records=loop.records).study):
        told = [(loop.proposer.space.suggest(Recorded(t.params)).id, t) for t in study.trials if t.state == TrialState.COMPLETE]
        assert len(told) == 20 and {t.user_attrs[RUNG] for _, t in told} == {1, 2, 3}
        for arch_id, trial in told:
            assert trial.user_attrs.get(LOWER, []) == [had[arch_id, rung] for rung in range(1, trial.user_attrs[RUNG])]


def test_records_of_another_space_are_refused(tmp_path: Any) -> None:
    loop = make_loop(tmp_path, budget=4)
    loop.run()
    with pytest.raises(RunError, match=r"the space no longer gives architecture"):
        proposer(SmallSpace(widths=1, depths=1, mlps=1), records=loop.records)


def test_records_of_a_space_that_has_changed_are_refused_with_what_to_do() -> None:
    asked = proposer(SmallSpace(widths=8))
    records = [replace(evaluated(p), trial=n) for n, p in enumerate(iter(asked.propose, None)) if n < 20]
    with pytest.raises(RunError, match="start a new run with another --out"):
        proposer(SmallSpace(widths=2), records=records)
