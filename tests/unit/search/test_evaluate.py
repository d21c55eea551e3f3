from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nasvit.engines import NoRoomError, WorkerError
from nasvit.engines.base import portable
from nasvit.errors import DataError, MeasurementError, ResourceError, UnstableError
from nasvit.experiment import Experiment
from nasvit.proxies import Score
from nasvit.results.record import TrialRecord
from nasvit.search import evaluate as module
from nasvit.search.evaluate import Job, derive_seed, evaluate, failure
from nasvit.search.gone import BLAMELESS, blameless, unsettled, without_machine
from tests.unit.search.fakes import arch, settings


@dataclass(frozen=True)
class Stats:
    median_ms: float = 2.0

    def to_dict(self) -> dict[str, Any]:
        return {"median_ms": self.median_ms, "ci_high_ms": 1.1 * self.median_ms}


class Clock:
    """A device that always says 2 ms, or that fails."""

    torch_device, fingerprint = "cpu", "0123456789ab"

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.measured, self.peak_mb = fault, 0, 10.0

    @contextmanager
    def prepared(self, network: nn.Module, *, input_shape: tuple[int, ...]) -> Iterator[Clock]:
        yield self

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()

    def measure(self) -> Stats:
        self.measured += 1
        if self.fault is not None:
            raise self.fault
        return Stats()

    def peak_memory_mb(self) -> float:
        return self.peak_mb


@dataclass(frozen=True)
class Counted:
    params: int = 3_000_000
    macs: int = 500_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A worker whose device, cost, network and training are quick stand-ins; training adds its steps to the weights."""
    clock = Clock()

    def fit(network: nn.Module, data: Any, *, budget: int, seed: int, **more: Any) -> Score:
        with torch.no_grad():
            for value in network.parameters():
                value += budget
        return Score(value=0.5, seconds=0.1, details={"steps": budget, "seed": seed})

    monkeypatch.setattr(module, "device", lambda settings: clock)
    monkeypatch.setattr(module, "dataset", lambda settings: None)
    monkeypatch.setattr(module, "build", lambda arch, *, seed: nn.Linear(1, 1, bias=False).requires_grad_(True))
    monkeypatch.setattr(module, "count", lambda network, *, input_shape: Counted())
    monkeypatch.setattr(module.short_train, "fit", fit)
    return clock


def job(path: Path, *, earlier: TrialRecord | None = None, rung: int = 1, **values: Any) -> Job:
    common = settings(path, Experiment(space="small", **values))
    return Job(settings=common, trial=7, arch=arch(), rung=rung, params={"a": 1}, earlier=earlier)


def test_a_limit_on_memory_stops_a_network_before_it_is_timed(tmp_path: Path, clock: Clock) -> None:
    wanted = job(tmp_path, limits={"peak_memory_mb": 9.0})
    record = evaluate(replace(wanted, settings=replace(wanted.settings, memory=True)))
    assert (record.status, record.rung, clock.measured) == ("rejected", 0, 0)
    assert record.objectives["peak_memory_mb"] == 10.0 and "peak_memory_mb" in str(record.reason)


def test_a_new_trial_is_counted_measured_trained_and_kept(tmp_path: Path, clock: Clock) -> None:
    record = evaluate(job(tmp_path))
    assert record.status == "complete" and record.rung == 1 and record.params == {"a": 1}
    assert record.objectives == {"params_m": 3.0, "macs_g": 0.5, "latency_ms": 2.0, "accuracy": 0.5}
    assert record.checkpoint == f"checkpoints/{record.arch_id}-r1.safetensors" and (tmp_path / record.checkpoint).exists()
    assert record.fingerprint == clock.fingerprint and set(record.seconds) == {"train", "measure", "wait", "total"}
    assert pickle.loads(pickle.dumps(record)) == record


def test_a_promotion_goes_on_from_the_checkpoint_with_the_difference_in_steps(tmp_path: Path, clock: Clock) -> None:
    first = evaluate(job(tmp_path))
    second = evaluate(job(tmp_path, earlier=first, rung=2))
    weights = [float(load_file(tmp_path / str(r.checkpoint))["weight"]) for r in (first, second)]
    assert weights[1] - weights[0] == pytest.approx(120) and second.details["steps"] == 120  # rungs 60, 180
    assert second.objectives["latency_ms"] == 2.0 and second.latency == first.latency and clock.measured == 1
    assert second.details["seed"] != first.details["seed"]


def test_a_network_over_a_counted_limit_is_neither_measured_nor_trained(tmp_path: Path, clock: Clock) -> None:
    record = evaluate(job(tmp_path, limits={"macs_g": "400M", "latency_ms": "1ms"}))
    assert (record.status, record.rung, clock.measured) == ("rejected", 0, 0)
    assert record.reason == "macs_g 0.5 is over the limit 0.4" and record.checkpoint is None


def test_a_network_over_the_measured_limit_is_not_trained(tmp_path: Path, clock: Clock) -> None:
    record = evaluate(job(tmp_path, limits={"latency_ms": "1ms"}))
    assert (record.status, record.rung, clock.measured) == ("rejected", 0, 1)
    assert "accuracy" not in record.objectives and record.latency == {"median_ms": 2.0, "ci_high_ms": 2.2}


@pytest.mark.parametrize(("fault", "reason"), [(MeasurementError("too noisy"), "MeasurementError: too noisy"),
                                               (RuntimeError("out of memory"), "RuntimeError: out of memory"),
                                               (TypeError("a bug"), "TypeError: a bug")])
def test_whatever_happens_to_a_network_becomes_a_failed_record(fault: Exception, reason: str, tmp_path: Path, clock: Clock) -> None:
    clock.fault = fault
    record = evaluate(job(tmp_path))
    assert (record.status, record.reason) == ("failed", reason)
    assert ("traceback" in record.details) == (not isinstance(fault, MeasurementError))


@pytest.mark.parametrize(("error", "own"), [(ResourceError("disk full"), True), (NoRoomError("no nodes"), True),
                                            (WorkerError("died"), False), (MeasurementError("too noisy"), False)])
def test_a_network_is_not_blamed_for_its_machine(error: Exception, own: bool) -> None:
    assert (failure(error).get("details") == BLAMELESS) == own


def test_a_latency_that_was_not_stable_says_nothing_of_the_network() -> None:
    record = TrialRecord(trial=0, rung=1, arch={}, arch_id="a", **failure(UnstableError("noisy")))
    assert unsettled(record) and blameless(record) and not without_machine([record])


def test_waiting_for_the_machine_is_no_training(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.short_train, "fit", lambda *given, **more: Score(value=0.5, seconds=3.0, waited=2.0))
    record = evaluate(job(tmp_path))
    assert record.seconds["train"] == 3.0 and 2.0 <= record.seconds["wait"] < 2.5


def test_data_that_changed_since_the_run_began_are_not_trained_on(tmp_path: Path) -> None:
    common = replace(settings(tmp_path, Experiment(space="small")), data="digits", image_size=(8, 8))
    known = module.dataset(common).fingerprint
    assert module.dataset(replace(common, data_fingerprint=known)).fingerprint == known
    with pytest.raises(DataError, match=f"digits has changed since the run began .fingerprint {known}, was other."):
        module.dataset(replace(common, data_fingerprint="other"))


def test_a_lost_checkpoint_is_named(tmp_path: Path, clock: Clock) -> None:
    first = evaluate(job(tmp_path))
    lost = replace(first, checkpoint="checkpoints/lost.safetensors")
    record = evaluate(job(tmp_path, earlier=lost, rung=2))
    assert record.status == "failed" and "lost.safetensors is gone" in str(record.reason)


def test_seeds_follow_from_run_and_architecture_alone() -> None:
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert len({derive_seed(0, "a"), derive_seed(1, "a"), derive_seed(0, "b"), derive_seed(0, "a", 2)}) == 4
    assert all(0 <= derive_seed(n, "x") < 2**31 for n in range(100))


def test_the_reason_of_a_failure_is_its_message_whatever_notes_it_carries() -> None:
    found = module.failure(portable(KeyError("no such thing")))
    assert found["reason"] == "KeyError: 'no such thing'"
    assert "in the worker:" in found["details"]["traceback"]
