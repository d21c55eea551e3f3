"""Several devices in one search: what a worker measures, and what the records hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from nasvit.errors import DeviceLostError, MeasurementError
from nasvit.experiment import Experiment
from nasvit.models.build import build
from nasvit.results.record import TrialRecord
from nasvit.search import evaluate as module
from nasvit.search.evaluate import failure, gate
from tests.unit.search.fakes import arch, settings


@dataclass(frozen=True)
class Stats:
    median_ms: float

    def to_dict(self) -> dict[str, Any]:
        return {"median_ms": self.median_ms, "ci_low_ms": 0.9 * self.median_ms, "ci_high_ms": 1.1 * self.median_ms}


class Place:
    """A device that always says the same."""

    torch_device = "cpu"

    def __init__(self, name: str, ms: float) -> None:
        self.fingerprint, self.ms, self.measured = name, ms, 0

    def measure(self, network: nn.Module, *, input_shape: tuple[int, ...]) -> Stats:
        self.measured += 1
        return Stats(self.ms)

    @contextmanager
    def prepared(self, network: nn.Module, *, input_shape: tuple[int, ...]) -> Iterator[Any]:
        yield SimpleNamespace(measure=lambda: self.measure(network, input_shape=input_shape))

    @contextmanager
    def alone(self) -> Iterator[None]:
        yield


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> dict[str, Place]:
    found = {"cpu": Place("first", 2.0), "slow": Place("second", 5.0), "fast": Place("third", 1.0)}
    monkeypatch.setattr(module, "_device", lambda spec, reference_ms: found[spec])
    return found


def gated(tmp_path: Path, *, limits: dict[str, float], second: str = "second", gone: tuple[str, ...] = ()) -> TrialRecord:
    experiment = Experiment(space="x", devices={"a": "cpu", "b": "slow", "c": "fast"}, limits=limits)
    made = replace(settings(tmp_path, experiment), fingerprint="first", gone=gone,
                   others={"b": ("slow", 1.0, second), "c": ("fast", 1.0, "third")})
    blank = TrialRecord(trial=0, status="failed", rung=1, arch=arch().to_dict(), arch_id=arch().id)
    return gate(build(arch(), seed=0), shape=(1, 1, 16, 16), settings=made, record=blank)


def test_every_network_is_measured_on_every_device_and_the_record_holds_all(tmp_path: Path, places: dict[str, Place]) -> None:
    record = gated(tmp_path, limits={"latency_ms@b": 6.0})
    assert record.status == "complete"
    assert [record.objectives[n] for n in ("latency_ms", "latency_ms@b", "latency_ms@c")] == [2.0, 5.0, 1.0]
    assert record.latency is not None and record.latency["median_ms"] == 2.0
    assert {name: one["median_ms"] for name, one in record.details["latencies"].items()} == {"b": 5.0, "c": 1.0}


def test_a_limit_on_one_device_rejects_by_the_upper_end_of_its_interval_and_ends_the_measuring(tmp_path: Path,
                                                                                             places: dict[str, Place]) -> None:
    record = gated(tmp_path, limits={"latency_ms@b": 5.2})
    assert record.status == "rejected" and record.rung == 0
    assert record.reason == "latency_ms@b, by the upper end of its interval, 5.5 is over the limit 5.2"
    assert places["fast"].measured == 0


def test_a_worker_without_the_runs_further_device_refuses_to_measure(tmp_path: Path, places: dict[str, Place]) -> None:
    with pytest.raises(MeasurementError, match="cannot be compared"):
        gated(tmp_path, limits={}, second="another")


@pytest.mark.parametrize(("gone", "left"), [("latency_ms", ["latency_ms@b", "latency_ms@c"]),
                                            ("latency_ms@b", ["latency_ms", "latency_ms@c"])])
def test_a_device_that_is_gone_is_not_asked(tmp_path: Path, places: dict[str, Place], gone: str, left: list[str]) -> None:
    record = gated(tmp_path, limits={}, gone=(gone,))
    assert record.status == "complete" and [name for name in record.objectives if name.startswith("latency")] == left
    assert places["cpu" if gone == "latency_ms" else "slow"].measured == 0
    assert record.fingerprint == ("" if gone == "latency_ms" else "first")  # of the device that latency_ms is of


@pytest.mark.parametrize(("spec", "latency"), [("cpu", "latency_ms"), ("slow", "latency_ms@b")])
def test_a_lost_device_is_named_by_its_latency_in_the_record(tmp_path: Path, places: dict[str, Place], spec: str, latency: str,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(network: nn.Module, *, input_shape: tuple[int, ...]) -> Stats:
        raise DeviceLostError("it is in quarantine")

    monkeypatch.setattr(places[spec], "measure", fails)
    with pytest.raises(DeviceLostError) as caught:
        gated(tmp_path, limits={})
    assert failure(caught.value)["details"] == {"device_of": latency}
