"""The arithmetic from samples to LatencyStats, on invented samples."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from nasvit.devices.stats import LatencyStats, disturbance, overuse, quantile, relative_half_width, summarise, typical_ratio, verdict_of
from nasvit.devices.timing import Repeat, Usage
from nasvit.errors import MeasurementError

QUIET = Usage(wall_s=1.0, cpu_s=1.0, waited_s=0.0, switches=0)


def repeats(*ratios: float, reference: float = 2.0, count: int = 20) -> list[Repeat]:
    return [Repeat(candidate_ms=(r * reference,) * count, reference_ms=(reference,) * count, cpu_ms=(1.0,) * count) for r in ratios]


def summed(groups: list[Repeat], *, usage: Usage = QUIET, reference_ms: float = 1.0, threads: int = 1) -> LatencyStats:
    return summarise(groups, usage=usage, reference_ms=reference_ms, batch_size=1, fingerprint="f", threads=threads)


def stats(*ratios: float, reference_ms: float = 1.0, reference: float = 2.0) -> LatencyStats:
    return summed(repeats(*ratios, reference=reference), reference_ms=reference_ms)


def test_milliseconds_are_the_ratio_times_the_calibrated_reference() -> None:
    assert stats(3, 3, 3, 3, 3, reference_ms=1.5).median_ms == pytest.approx(4.5)


def test_a_machine_that_is_slower_for_both_changes_no_latency() -> None:
    one, other = stats(3, 3.1, 2.9, 3, 3, reference=2.0).to_dict(), stats(3, 3.1, 2.9, 3, 3, reference=8.0).to_dict()
    assert (one.pop("reference_now_ms"), other.pop("reference_now_ms")) == (2.0, 8.0)
    assert one == other


def test_throttling_cancels_and_is_reported() -> None:
    slower = [Repeat(candidate_ms=(3 * r,) * 4, reference_ms=(r,) * 4, cpu_ms=(1.0,) * 4) for r in (1.0, 1.1, 1.2, 1.4, 1.5)]
    one = summed(slower)
    assert one.median_ms == pytest.approx(3.0) and one.verdict == "stable"
    assert one.reference_trend == pytest.approx(0.5)


def test_the_interval_holds_the_median_and_widens_with_the_spread() -> None:
    quiet, loud = stats(3, 3.01, 2.99, 3, 3), stats(3, 3.6, 2.5, 3, 3.2)
    assert quiet.ci_low_ms < quiet.median_ms < quiet.ci_high_ms
    assert loud.half_width > 2 * quiet.half_width


def test_what_slows_some_calls_of_the_candidate_alone_changes_no_figure() -> None:
    slowed = [Repeat(candidate_ms=(6.0,) * 11 + (9.0,) * 9, reference_ms=(2.0,) * 20, cpu_ms=(1.0,) * 20)] * 5
    assert summed(slowed).median_ms == pytest.approx(stats(3, 3, 3, 3, 3).median_ms)


def test_more_repeats_narrow_the_interval() -> None:
    rng = random.Random(0)
    groups = repeats(*(rng.gauss(1.0, 0.05) for _ in range(20)))
    assert relative_half_width(groups) < relative_half_width(groups[:5])


def test_a_remeasurement_falls_inside_the_interval_in_nine_of_ten_cases() -> None:
    rng = random.Random(0)

    def measured() -> list[Repeat]:
        """Calls that are delayed by what others do, each repeat by its own share."""
        found = []
        for _ in range(10):
            mood = rng.gauss(1.0, 0.03)
            sides = [tuple(ms * mood_of * (1 + rng.expovariate(12)) for _ in range(20)) for ms, mood_of in ((3.0, mood), (2.0, 1.0))]
            found.append(Repeat(candidate_ms=sides[0], reference_ms=sides[1], cpu_ms=(1.0,) * 20))
        return found

    inside = 0
    for _ in range(60):
        first, second = measured(), measured()
        inside += abs(typical_ratio(second) / typical_ratio(first) - 1) <= relative_half_width(first)
    assert inside >= 52


@pytest.mark.parametrize(("ratios", "verdict"), [
    ((1, 1.01, 0.99, 1, 1), "stable"), ((1, 1.4, 0.7, 1.2, 0.8), "noisy"), ((1, 1.04, 1.08, 1.12, 1.16), "drifting"),
    ((1, 1.001, 1.002, 1.003, 1.004), "stable"),
])
def test_the_verdict_tells_noise_from_drift_and_why(ratios: tuple[float, ...], verdict: str) -> None:
    found, note = verdict_of(ratios, half_width=relative_half_width(repeats(*ratios)), scatter=0.05)
    assert found == verdict and (note == "") == (verdict == "stable")


def test_calls_that_scatter_are_noisy_even_where_their_medians_agree() -> None:
    calls = (4.0, 4.0, 4.0, 8.0, 9.0)
    one = summed([Repeat(candidate_ms=calls, reference_ms=(2.0,), cpu_ms=(1.0,))] * 5)
    assert (one.median_ms, one.verdict) == (2.0, "noisy")


@pytest.mark.parametrize(("usage", "threads", "disturbed"), [
    (Usage(2.0, 1.0, 1.0, 250), 1, True), (Usage(1.0, 1.0, 0.001, 2), 1, False), (Usage(1.0, 2.0, 1.9, 500), 4, True),
    (Usage(1.0, 3.9, 0.1, 20), 4, False), (Usage(2.0, 1.0, None, 250), 1, True), (Usage(1.0, 1.0, None, 5), 1, False),
])
def test_a_process_that_is_kept_from_its_processor_is_noticed(usage: Usage, threads: int, disturbed: bool) -> None:
    assert (disturbance(usage, threads=threads) is not None) == disturbed


def test_a_disturbed_measurement_is_noisy_however_well_its_samples_agree() -> None:
    one = summed(repeats(3, 3, 3, 3, 3), usage=Usage(1.0, 0.5, 0.5, 100))
    assert (one.verdict, one.waited) == ("noisy", 0.5) and "50%" in one.note


@pytest.mark.parametrize(("cpu_s", "threads", "over"), [(1.0, 1, False), (1.9, 1, True), (3.9, 4, False), (1.0, 4, False), (6.0, 4, True)])
def test_more_processors_than_declared_are_noticed(cpu_s: float, threads: int, over: bool) -> None:
    assert (overuse(Usage(1.0, cpu_s, 0.0, 0), threads=threads) is not None) == over


@pytest.mark.parametrize("absurd", [0.0, -1.0, float("nan"), float("inf")])
def test_absurd_times_are_refused(absurd: float) -> None:
    with pytest.raises(MeasurementError, match="zero, negative or not finite"):
        summed([*repeats(1, 1), Repeat(candidate_ms=(absurd,), reference_ms=(1.0,), cpu_ms=(1.0,))])


def test_the_dict_round_trips_through_json_and_refuses_other_fields() -> None:
    one = stats(1, 1.1, 0.9)
    assert LatencyStats.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    with pytest.raises(MeasurementError, match="unknown latency field 'median'"):
        LatencyStats.from_dict({**one.to_dict(), "median": 1})
    with pytest.raises(MeasurementError, match="lacks median_ms"):
        LatencyStats.from_dict({k: v for k, v in one.to_dict().items() if k != "median_ms"})


def test_a_latency_of_an_earlier_version_is_still_read() -> None:
    newer = ("note", "reference_trend", "reference_now_ms", "waited", "attempts")
    earlier: dict[str, Any] = {k: v for k, v in stats(1, 1.1, 0.9).to_dict().items() if k not in newer}
    assert LatencyStats.from_dict(earlier).median_ms == stats(1, 1.1, 0.9).median_ms


def test_quantiles_interpolate() -> None:
    assert [quantile([4, 1, 3, 2], q) for q in (0, 0.5, 1)] == [1, 2.5, 4]
