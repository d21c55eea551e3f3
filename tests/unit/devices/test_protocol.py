"""Measure, judge, measure again up to a bound, then fail loudly: on invented attempts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nasvit.devices.protocol import ATTEMPTS, ATTEMPTS_KEPT, NEEDED, NEEDED_FEW, PAUSES_S, WAITS_S, patiently, settle
from nasvit.devices.stats import LatencyStats
from nasvit.devices.timing import PAIRS, Attempt, Repeat, Usage
from nasvit.errors import MeasurementError, UnstableError


def attempt(*ratios: float, waited_s: float = 0.0, cpu_s: float = 0.5, wall_s: float = 0.5, alone_ms: float = 1.0,
            pairs: int = PAIRS) -> Attempt:
    groups = tuple(Repeat(candidate_ms=(r,) * pairs, reference_ms=(1.0,) * pairs, cpu_ms=(1.0,) * pairs, alone_ms=(alone_ms,) * 4)
                   for r in ratios)
    return Attempt(groups, Usage(wall_s=wall_s, cpu_s=cpu_s, waited_s=waited_s, switches=0))


GOOD, WIDE = attempt(1, 1.01, 0.99, 1, 1), attempt(1, 1.25, 1.2, 1.3, 1.35)
SLOWER = attempt(1.1, 1.11, 1.09, 1.1, 1.1, alone_ms=1.2)  # a neighbour: the ratio suffers too
DISTURBED, DRIFTING = attempt(2, 2, 2, 2, 2, waited_s=0.25), attempt(1, 1.04, 1.08, 1.12, 1.16)


def settled(*attempts: Attempt, noise: str = "fail", pauses: list[float] | None = None, level_ms: float | None = None) -> LatencyStats:
    coming: Iterator[Attempt] = iter([*attempts, *[attempts[-1]] * ATTEMPTS])
    return settle(lambda repeats: next(coming), scale=1.0, threads=1, batch_size=1, fingerprint="f", noise=noise, level_ms=level_ms,
                  sleep=(pauses if pauses is not None else []).append)


def test_ten_calm_repeats_are_enough_and_of_a_slow_network_as_many_as_three_seconds_hold() -> None:
    pauses: list[float] = []
    few = settled(attempt(1, 1.01, 0.99, 1, 1, pairs=6))
    assert (few.attempts, few.repeats) == (5, NEEDED_FEW)
    fewer = settled(attempt(1, 1.01, 0.99, 1, 1, wall_s=1.0, cpu_s=1.0, pairs=2))
    assert (fewer.attempts, fewer.repeats) == (3, 15)
    one, long = settled(GOOD, pauses=pauses), settled(attempt(1, 1.01, 0.99, 1, 1, wall_s=3.5, cpu_s=3.5, pairs=2))
    assert (one.verdict, one.attempts, one.repeats, pauses) == ("stable", 2, NEEDED, [])
    assert (long.verdict, long.attempts, long.repeats) == ("stable", 1, 5)


def test_a_disturbed_or_drifting_attempt_is_thrown_away_and_measured_again_after_a_pause() -> None:
    for bad in (DISTURBED, DRIFTING):
        pauses: list[float] = []
        one = settled(bad, GOOD, pauses=pauses)
        assert (one.verdict, one.attempts, one.repeats, pauses) == ("stable", 3, NEEDED, [PAUSES_S[0]])
        assert one.median_ms == pytest.approx(1.0, abs=0.011)


def test_only_calm_repeats_count_while_there_are_any() -> None:
    one = settled(SLOWER, GOOD, SLOWER, GOOD)
    assert (one.attempts, one.repeats) == (4, NEEDED)
    assert one.median_ms == pytest.approx(1.0, abs=0.011) and one.slowness == 0.0


def test_a_machine_that_never_becomes_calm_has_a_wider_interval() -> None:
    one, calm = settled(SLOWER), settled(attempt(1.1, 1.11, 1.09, 1.1, 1.1))
    assert (one.attempts, one.verdict) == (ATTEMPTS, "stable") and one.slowness == pytest.approx(0.2)
    assert one.half_width > 1.05 * calm.half_width
    with pytest.raises(MeasurementError, match=r"interval.*\+60% slower than at calibration"):
        settled(attempt(1.1, 1.11, 1.09, 1.1, 1.1, alone_ms=1.6))


def test_a_machine_that_is_slower_for_good_is_calm_at_its_new_speed() -> None:
    assert settled(SLOWER, level_ms=1.2).attempts == 2
    much = attempt(1, 1.01, 0.99, 1, 1, alone_ms=1.8)
    assert settled(much, level_ms=1.8).half_width == pytest.approx(settled(GOOD).half_width)


def test_a_machine_that_is_faster_than_its_scale_is_held_to_its_own_calm() -> None:
    never_calm = attempt(1, 1.01, 0.99, 1, 1, alone_ms=1.05)
    assert settled(never_calm, level_ms=0.8).half_width > 1.1 * settled(never_calm).half_width


def test_the_calmest_repeats_stay_in_the_order_they_came() -> None:
    alone = (1.35, 1.12, 1.3, 1.15, 1.2)
    groups = tuple(Repeat(candidate_ms=(a,) * 4, reference_ms=(a,) * 4, cpu_ms=(1.0,) * 4, alone_ms=(a,) * 4) for a in alone)
    one = settled(Attempt(groups, GOOD.usage), noise="keep")
    assert abs(one.reference_trend) < 0.25 and one.reference_trend == pytest.approx(1.2 / 1.35 - 1)


def test_repeats_of_a_wide_interval_add_up_until_it_is_narrow() -> None:
    one = settled(WIDE, WIDE, GOOD)
    assert one.verdict == "stable" and one.attempts > 2 and one.repeats == 5 * one.attempts


@pytest.mark.parametrize(("bad", "says"), [(DISTURBED, "noisy, it waited for a processor in 50%"), (DRIFTING, "drifting"),
                                           (attempt(1, 2.6, 0.4, 2.4, 0.3), "interval")])
def test_what_stays_unstable_fails_with_its_figures_after_a_bound(bad: Attempt, says: str) -> None:
    pauses: list[float] = []
    with pytest.raises(MeasurementError, match=f"no stable latency in [78] attempts: .*{says}.*noise=keep"):
        settled(bad, pauses=pauses)
    assert len(pauses) <= len(PAUSES_S)


def test_a_slow_network_is_not_measured_for_ever() -> None:
    with pytest.raises(MeasurementError, match="no stable latency in 3 attempts"):
        settled(attempt(1, 2.6, 0.4, 2.4, 0.3, wall_s=3.0, cpu_s=3.0))


def test_one_good_moment_among_many_bad_ones_is_not_trusted() -> None:
    with pytest.raises(MeasurementError, match="attempts were disturbed"):
        settled(DISTURBED, DISTURBED, GOOD, DISTURBED)


def test_noise_may_be_kept_with_its_verdict_after_two_attempts() -> None:
    one = settled(DISTURBED, noise="keep")
    assert (one.verdict, one.attempts, one.waited) == ("noisy", ATTEMPTS_KEPT, 0.5)
    assert settled(DISTURBED, GOOD, noise="keep").median_ms == pytest.approx(1.0, abs=0.011)  # what nobody disturbed is preferred


@pytest.mark.parametrize("noise", ["fail", "keep"])
def test_a_runtime_that_uses_more_processors_than_declared_is_an_error_either_way(noise: str) -> None:
    with pytest.raises(MeasurementError, match=r"1.90 processors worked where 1 thread"):
        settled(attempt(1, 1, 1, 1, 1, cpu_s=0.95), noise=noise)


def test_a_dead_clock_is_an_error() -> None:
    with pytest.raises(MeasurementError, match="zero, negative or not finite"):
        settled(attempt(0, 0, 0, 0, 0))


def test_what_must_have_a_figure_is_measured_again_after_pauses_and_only_where_it_was_unstable() -> None:
    good, pauses = settled(GOOD), list[float]()

    def measured(*answers: LatencyStats | Exception) -> LatencyStats:
        coming = iter(answers)

        def measure() -> LatencyStats:
            answer = next(coming)
            if isinstance(answer, Exception):
                raise answer
            return answer

        pauses.clear()
        return patiently(measure, sleep=pauses.append)

    assert measured(good) is good and pauses == []
    assert measured(UnstableError("noisy"), good) is good and pauses == [WAITS_S[0]]
    with pytest.raises(UnstableError, match="last"):
        measured(UnstableError("noisy"), UnstableError("noisy"), UnstableError("the last"))
    assert pauses == list(WAITS_S)
    with pytest.raises(MeasurementError, match="no kernel"):
        measured(MeasurementError("no kernel"), good)
    assert pauses == []
    with pytest.raises(UnstableError):
        settled(attempt(1, 2.6, 0.4, 2.4, 0.3, wall_s=3.0, cpu_s=3.0))
