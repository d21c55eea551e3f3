"""The arithmetic from samples to LatencyStats, on invented samples."""

from __future__ import annotations

import json
import random
from statistics import median

import pytest

from nasvit.devices.stats import LatencyStats, Repeat, quantile, relative_half_width, summarise, verdict_of
from nasvit.errors import MeasurementError


def repeats(*ratios: float, reference: float = 2.0, count: int = 20) -> list[Repeat]:
    return [Repeat(candidate_ms=(r * reference,) * count, reference_ms=(reference,) * count, cpu_ms=(1.0,) * count) for r in ratios]


def stats(*ratios: float, reference_ms: float = 1.0, reference: float = 2.0) -> LatencyStats:
    return summarise(repeats(*ratios, reference=reference), reference_ms=reference_ms, batch_size=1, fingerprint="f", threads=1)


def test_milliseconds_are_the_ratio_times_the_calibrated_reference() -> None:
    assert stats(3, 3, 3, 3, 3, reference_ms=1.5).median_ms == pytest.approx(4.5)


def test_a_machine_that_is_slower_for_both_changes_nothing() -> None:
    assert stats(3, 3.1, 2.9, 3, 3, reference=2.0) == stats(3, 3.1, 2.9, 3, 3, reference=8.0)


def test_the_interval_holds_the_median_and_widens_with_the_spread() -> None:
    quiet, loud = stats(3, 3.01, 2.99, 3, 3), stats(3, 3.6, 2.5, 3, 3.2)
    assert quiet.ci_low_ms < quiet.median_ms < quiet.ci_high_ms
    assert loud.half_width > 2 * quiet.half_width


def test_a_remeasurement_falls_inside_the_interval_in_nine_of_ten_cases() -> None:
    rng = random.Random(0)
    inside = 0
    for _ in range(1000):
        first, second = ([rng.gauss(1.0, 0.08) for _ in range(5)] for _ in range(2))
        inside += abs(median(second) - median(first)) <= relative_half_width(first) * median(first)
    assert inside >= 880


@pytest.mark.parametrize(("ratios", "verdict"), [
    ((1, 1.01, 0.99, 1, 1), "stable"), ((1, 1.4, 0.7, 1.2, 0.8), "noisy"), ((1, 1.04, 1.08, 1.12, 1.16), "drifting"),
    ((1, 1.001, 1.002, 1.003, 1.004), "stable"),
])
def test_the_verdict_tells_noise_from_drift(ratios: tuple[float, ...], verdict: str) -> None:
    assert verdict_of(ratios, half_width=relative_half_width(ratios), scatter=0.05) == verdict


def test_calls_that_scatter_are_noisy_even_where_their_medians_agree() -> None:
    calls = (3.0, 4.0, 4.0, 4.0, 6.0)
    scattered = [Repeat(candidate_ms=calls, reference_ms=(2.0,), cpu_ms=(1.0,))] * 5
    one = summarise(scattered, reference_ms=1.0, batch_size=1, fingerprint="f", threads=1)
    assert (one.median_ms, one.verdict) == (2.0, "noisy")


@pytest.mark.parametrize("absurd", [0.0, -1.0, float("nan"), float("inf")])
def test_absurd_times_are_refused(absurd: float) -> None:
    with pytest.raises(MeasurementError, match="zero, negative or not finite"):
        summarise([*repeats(1, 1), Repeat(candidate_ms=(absurd,), reference_ms=(1.0,), cpu_ms=(1.0,))],
                  reference_ms=1, batch_size=1, fingerprint="f", threads=1)


def test_the_dict_round_trips_through_json_and_refuses_other_fields() -> None:
    one = stats(1, 1.1, 0.9)
    assert LatencyStats.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    with pytest.raises(MeasurementError, match="unknown latency field 'median'"):
        LatencyStats.from_dict({**one.to_dict(), "median": 1})
    with pytest.raises(MeasurementError, match="lacks median_ms"):
        LatencyStats.from_dict({k: v for k, v in one.to_dict().items() if k != "median_ms"})


def test_quantiles_interpolate() -> None:
    assert [quantile([4, 1, 3, 2], q) for q in (0, 0.5, 1)] == [1, 2.5, 4]
