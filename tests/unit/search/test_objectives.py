from __future__ import annotations

import pytest

from nasvit.search.objectives import excess, judged, passed, told
from tests.unit.search.fakes import record


def test_the_cheapest_passed_limit_is_named() -> None:
    assert passed({"params_m": 3, "latency_ms": 9}, {"latency_ms": 8, "params_m": 2}) == "params_m 3 is over the limit 2"
    assert passed({"params_m": 2}, {"latency_ms": 8, "params_m": 2}) is None


def test_a_latency_is_held_against_its_limit_by_the_upper_end_of_its_interval() -> None:
    values = judged({"latency_ms": 7.9, "params_m": 1}, {"ci_high_ms": 8.3})
    assert "upper end of its interval, 8.3 is over the limit 8" in str(passed(values, {"latency_ms": 8}))
    assert passed(judged({"latency_ms": 7.9}, None), {"latency_ms": 8}) is None


def test_excess_is_above_zero_only_where_a_limit_is_passed() -> None:
    assert excess({"latency_ms": 12, "params_m": 1}, {"latency_ms": 8, "params_m": 2}) == pytest.approx(0.5)
    assert excess({"latency_ms": 8, "params_m": 1}, {"latency_ms": 8, "params_m": 2}) == 0
    assert excess({"params_m": 1}, {}) == 0


def test_what_a_rejected_trial_lacks_is_told_as_the_worst_known() -> None:
    rejected = record(0, status="rejected", rung=0, objectives={"params_m": 4.0})
    names = ("accuracy", "latency_ms", "params_m")
    assert told(rejected, names, limits={"latency_ms": 8.0}, seen=[record(1, latency=9.5)]) == [0.0, 9.5, 4.0]
    assert told(rejected, names, limits={"latency_ms": 8.0}, seen=[record(1, latency=3.0)]) == [0.0, 8.0, 4.0]
