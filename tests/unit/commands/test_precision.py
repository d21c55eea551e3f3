from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from nasvit.arch import Arch
from nasvit.commands import precision
from nasvit.errors import DeviceLostError, MeasurementError
from nasvit.results.record import TrialRecord
from tests.unit.commands.test_remeasure import STATS, Given


def given(arch: Arch) -> Any:
    points = [TrialRecord(trial=trial, status="complete", rung=1, arch=arch.to_dict(), arch_id=f"a{trial}", latency=STATS.to_dict(),
                          objectives={"accuracy": 0.5 + trial / 10, "latency_ms": 2.0 + trial}) for trial in range(3)]
    return Given(records=tuple(points))


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(precision, "open_device", lambda spec: SimpleNamespace(close=lambda: told.append(spec)))
    return told


def test_a_point_that_cannot_be_measured_costs_the_others_nothing(tiny_arch: Arch, monkeypatch: pytest.MonkeyPatch,
                                                                 closed: list[str]) -> None:
    def asked(run: object, record: TrialRecord, target: object) -> Any:
        if record.trial == 1:
            raise MeasurementError("no stable latency")
        return record.trial

    monkeypatch.setattr(precision, "_requantised", asked)
    told: list[str] = []
    assert precision.front_in_precision(given(tiny_arch), device="d", told=told.append) == [0, 2]
    assert told == ["trial 1 (a1) is left out: no stable latency"] and closed == ["d"]


@pytest.mark.parametrize("error", [MeasurementError("no runtime"), DeviceLostError("gone")])
def test_where_none_can_be_measured_the_reason_is_the_error(tiny_arch: Arch, monkeypatch: pytest.MonkeyPatch, closed: list[str],
                                                           error: MeasurementError) -> None:
    def asked(run: object, record: TrialRecord, target: object) -> Any:
        raise error

    monkeypatch.setattr(precision, "_requantised", asked)
    run = given(tiny_arch)
    with pytest.raises(type(error), match=str(error)):
        precision.front_in_precision(replace(run, records=run.records[:1]), device="d")
    assert closed == ["d"]
