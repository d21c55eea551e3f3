from __future__ import annotations

import pytest

from nasvit.errors import ConfigError, RunError
from nasvit.report import Run
from nasvit.report.picks import pick


def test_words_mean_what_the_front_says(run: Run) -> None:
    knee = run.front.loc[run.front["knee"], "arch_id"].item()
    assert [r.arch_id for r in pick(run, "knee")] == [knee]
    assert [r.arch_id for r in pick(run, "best")] == [run.best().arch_id]
    assert [r.arch_id for r in pick(run, "all")] == list(dict.fromkeys(run.front["arch_id"]))
    assert [r.arch_id for r in pick(run, "max-latency:2ms")] == [run.best(max_latency_ms=2).arch_id]
    assert [r.arch_id for r in pick(run, "max-latency:2000us")] == [run.best(max_latency_ms=2).arch_id]


def test_a_network_is_found_by_its_id_the_start_of_it_or_its_trial(run: Run) -> None:
    record = pick(run, "knee")[0]
    for word in (record.arch_id, record.arch_id[:8], f"trial:{record.trial}"):
        assert [r.arch_id for r in pick(run, word)] == [record.arch_id]


def test_several_words_give_each_network_once(run: Run) -> None:
    ids = [r.arch_id for r in pick(run, "knee,best, all")]
    assert len(ids) == len(set(ids)) and set(ids) >= set(run.front["arch_id"])


@pytest.mark.parametrize("word", ["kne", "", "zzzz", "trial:99999", "abc"])
def test_a_word_that_means_nothing_is_refused_with_what_is_accepted(word: str, run: Run) -> None:
    with pytest.raises(ConfigError, match="accepted: knee, best, all"):
        pick(run, word)


def test_a_limit_that_nothing_meets_says_what_the_fastest_takes(run: Run) -> None:
    with pytest.raises(RunError, match="the fastest takes"):
        pick(run, "max-latency:1us")


def test_a_limit_on_a_device_that_the_run_did_not_measure_on_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="device of the run 'pi'"):
        pick(run, "max-latency:2ms@pi")
    assert pick(run, "max-latency:2ms@cpu") == pick(run, "max-latency:2ms")
