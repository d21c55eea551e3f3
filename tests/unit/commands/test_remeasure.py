from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nasvit.arch import Arch
from nasvit.commands import remeasure
from nasvit.devices import LatencyStats
from nasvit.errors import ConfigError, RunError
from nasvit.results.record import TrialRecord

STATS = LatencyStats(median_ms=2.0, p10_ms=1.9, p90_ms=2.1, ci_low_ms=1.8, ci_high_ms=2.2, runs=10, repeats=5, verdict="stable",
                     reference_ms=1.0, batch_size=1, fingerprint="abc", cpu_ms=2.0, threads=1)


@dataclass
class Given:
    """What `front_of` reads of a loaded run."""

    records: tuple[TrialRecord, ...]
    path: Path = Path("run")
    env: dict[str, Any] = field(default_factory=lambda: {"reference_ms": 3.5})
    experiment: dict[str, Any] = field(default_factory=lambda: {"device": "cpu", "limits": {"latency_ms": 2.05}})
    summary: dict[str, Any] = field(default_factory=dict)
    objectives: tuple[str, ...] = ("accuracy", "latency_ms")
    fingerprint: str = "abc"


class FakeDevice:
    fingerprint: str = "abc"

    def __init__(self, median_ms: float) -> None:
        self.median_ms = median_ms

    def measure(self, module: object, *, input_shape: tuple[int, ...], patient: bool) -> LatencyStats:
        assert input_shape == (1, 1, 16, 16) and patient
        return replace(STATS, median_ms=self.median_ms)

    def close(self) -> None:
        """Nothing is open."""


def given(arch: Arch) -> Given:
    record = TrialRecord(trial=0, status="complete", rung=1, arch=arch.to_dict(), arch_id=arch.id, latency=STATS.to_dict(),
                         objectives={"accuracy": 0.5, "latency_ms": 2.0})
    return Given(records=(record,))


@pytest.mark.parametrize(("now", "inside", "within"), [(2.0, True, True), (2.1, True, False), (2.3, False, False), (1.7, False, True)])
def test_inside_and_within_are_judged_by_the_new_median(
        tiny_arch: Arch, monkeypatch: pytest.MonkeyPatch, now: float, inside: bool, within: bool) -> None:
    opened: dict[str, Any] = {}
    monkeypatch.setattr(remeasure, "open_device", lambda spec, **settings: opened.update(settings) or FakeDevice(now))
    (row,) = remeasure.front_of(given(tiny_arch))  # type: ignore[arg-type]
    assert (row.inside, row.within_limit) == (inside, within)
    assert opened["reference_ms"] == 3.5  # the run's own scale


def test_each_device_of_a_run_is_measured_with_its_own_scale_and_held_to_its_own_limit(
        tiny_arch: Arch, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, float]] = []

    def opening(spec: str, *, threads: int, reference_ms: float) -> FakeDevice:
        opened.append((spec, reference_ms))
        device = FakeDevice(2.0 if spec == "cpu" else 5.2)
        device.fingerprint = "abc" if spec == "cpu" else "def"
        return device

    monkeypatch.setattr(remeasure, "open_device", opening)
    run = given(tiny_arch)
    slow = replace(STATS, median_ms=5.0, ci_low_ms=4.5, ci_high_ms=5.1)
    run.records = (replace(run.records[0], details={"latencies": {"b": slow.to_dict()}},
                           objectives={**run.records[0].objectives, "latency_ms@b": 5.0}),)
    run.experiment = {"device": "cpu", "devices": {"a": "cpu", "b": "cpu/onnxruntime"}, "limits": {"latency_ms@b": 5.1}}
    run.env["devices"] = {"b": {"spec": "cpu/onnxruntime", "reference_ms": 7.0, "fingerprint": "def"}}
    first, second = remeasure.front_of(run)  # type: ignore[arg-type]
    assert opened == [("cpu", 3.5), ("cpu/onnxruntime", 7.0)]
    assert (first.device, first.inside, first.limit_ms, first.within_limit) == ("a", True, None, True)
    assert (second.device, second.inside, second.limit_ms, second.within_limit) == ("b", False, 5.1, False)
    for name in ("b", "cpu/onnxruntime"):
        (alone,) = remeasure.front_of(run, device=name)  # type: ignore[arg-type]
        assert alone == second
    run.summary = {"gone": {"latency_ms@b": {"trial": 0, "reason": "it hung"}}}
    assert remeasure.front_of(run) == [first] and remeasure.absent(run) == ["b"]  # type: ignore[arg-type]
    assert remeasure.front_of(run, device="b") == [second]  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"own devices \(a, b\)"):
        remeasure.front_of(run, device="cpu?threads=2")  # type: ignore[arg-type]


def test_another_device_is_refused(tiny_arch: Arch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remeasure, "open_device", lambda *_, **__: FakeDevice(1.0))
    run = given(tiny_arch)
    run.fingerprint = "other"
    with pytest.raises(RunError, match="cannot be compared"):
        remeasure.front_of(run)  # type: ignore[arg-type]


def test_an_empty_front_or_a_foreign_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remeasure, "open_device", lambda *_, **__: FakeDevice(1.0))
    with pytest.raises(RunError, match="front is empty"):
        remeasure.front_of(Given(records=()))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="reference_ms"):
        remeasure.front_of(Given(records=(), env={}))  # type: ignore[arg-type]


def test_a_model_that_timm_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="levit_128s"):
        remeasure.named_model("timm:levit_12")
    assert remeasure.named_model("boat_swin_tiny")[1] == (1, 3, 224, 224)  # the zoo's, without timm:
