from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from nasvit.errors import ConfigError
from nasvit.results.record import TrialRecord
from nasvit.search import mirror
from nasvit.search.mirror import Mirror
from nasvit.search.rebuilt import study_of
from tests.unit.search.fakes import SmallSpace, record

NAMES = ("accuracy", "latency_ms")


def trial(number: int, **more: Any) -> TrialRecord:
    space, made = SmallSpace(), record(number % 8, **more)
    return replace(made, trial=number, params=space.arch_parameters(made.network()))


def opened(path: Path, told: list[str] | None = None, records: tuple[TrialRecord, ...] = (), name: str = "run") -> Mirror:
    return Mirror(f"sqlite:///{path}", name=name, objectives=NAMES, space=SmallSpace(), records=records,
                  told=(told if told is not None else []).append)


def trials(path: Path, name: str = "run") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}").trials


def test_a_database_has_every_settled_trial_with_values_and_parameters(tmp_path: Path) -> None:
    told: list[str] = []
    with opened(tmp_path / "watch.db", told) as copy:
        copy.add(trial(0))
        copy.add(trial(1, status="rejected", reason="latency_ms 9 is over the limit 8"))
        copy.add(trial(2, status="failed", reason="TrainingError: no"))
    good, rejected, failed = trials(tmp_path / "watch.db")
    assert good.values == [0.5, 1.0] and good.params == trial(0).params and good.state.name == "COMPLETE"
    assert isinstance(good.distributions["s0.depth"], optuna.distributions.IntDistribution) and good.distributions["s0.depth"].high == 4
    assert (rejected.state.name, failed.state.name) == ("PRUNED", "FAIL") and "over the limit" in rejected.user_attrs["reason"]
    assert optuna.load_study(study_name="run", storage=f"sqlite:///{tmp_path / 'watch.db'}").metric_names == list(NAMES)
    assert told == []


def test_a_resumed_run_writes_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    with opened(tmp_path / "watch.db") as copy:
        copy.add(trial(0))
    with opened(tmp_path / "watch.db", records=(trial(0), trial(1), trial(1, rung=2))) as copy:
        copy.add(trial(1, rung=2))
    assert [(t.user_attrs["trial"], t.user_attrs["rung"]) for t in trials(tmp_path / "watch.db")] == [(0, 1), (1, 2)]


def test_a_trial_that_rises_once_more_is_complete_at_its_highest_rung_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "watch.db") as copy:
        copy.add(trial(0))
        copy.add(trial(1))
        copy.add(trial(1, rung=2))
    with opened(tmp_path / "watch.db", records=(trial(0), trial(1), trial(1, rung=2))) as copy:
        copy.add(trial(1, rung=3, accuracy=0.75))
    assert [(t.user_attrs["trial"], t.user_attrs["rung"], t.state.name) for t in trials(tmp_path / "watch.db")] == [
        (0, 1, "COMPLETE"), (1, 1, "PRUNED"), (1, 2, "PRUNED"), (1, 3, "COMPLETE")]
    with opened(tmp_path / "watch.db", name="other") as copy:  # another run's trial of this number is another trial
        copy.add(trial(0))
        copy.add(trial(0, rung=2))
    assert [t.state.name for t in trials(tmp_path / "watch.db")] == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]


def test_what_arrived_though_the_answer_was_lost_is_not_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.01)
    true, calls = optuna.Study.add_trial, []

    def add_trial(study: optuna.Study, frozen: optuna.trial.FrozenTrial) -> None:
        true(study, frozen)
        calls.append(frozen)
        if len(calls) == 1:
            raise RuntimeError("Optuna's words") from ConnectionError("closed after the commit")

    told: list[str] = []
    monkeypatch.setattr(optuna.Study, "add_trial", add_trial)
    with opened(tmp_path / "watch.db", told) as copy:
        copy.add(trial(0))
        copy.add(trial(1))
        while len(calls) < 2:
            threading.Event().wait(0.01)
    assert [t.user_attrs["trial"] for t in trials(tmp_path / "watch.db")] == [0, 1]
    assert "ConnectionError: closed after the commit" in told[0] and "Optuna" not in told[0] and told[1:] == ["the storage is back"]


@pytest.mark.parametrize(("url", "module", "package"), [("postgresql+psycopg2://user:s3cret@host/db", "psycopg2", "psycopg[binary]"),
                                                        ("mysql+pymysql://user:s3cret@host/db", "pymysql", "pymysql[rsa]")])
def test_a_missing_driver_is_named_with_what_to_install(url: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as error:
        Mirror(url, name="run", objectives=NAMES, space=SmallSpace())
    assert f"pip install '{package}'" in str(error.value) and module in str(error.value) and "s3cret" not in str(error.value)


def test_a_password_among_the_options_of_a_url_is_in_no_message() -> None:
    url = "sqlite:////no/such/watch.db?password=s3cret%2Fword&uri=x"
    assert mirror.hidden(url) == "sqlite:////no/such/watch.db"
    shown = [mirror.words(ValueError(text), url=url) for text in ("about s3cret/word", "about s3cret%2Fword")]
    assert shown == ["ValueError: about ***"] * 2


def test_another_runs_study_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    opened(tmp_path / "watch.db").close()  # ended before its first trial: the next one may have the name
    with opened(tmp_path / "watch.db") as first:
        first.add(trial(0))
    with pytest.raises(ConfigError, match="already; choose"):
        opened(tmp_path / "watch.db")
    with opened(tmp_path / "watch.db", records=(trial(0),)) as copy:
        pass
    other = replace(trial(0), arch_id="0" * 12)
    with pytest.raises(ConfigError, match="another run's"):
        opened(tmp_path / "watch.db", records=(other,))
    assert copy.lost is None
    for records, said in (((), "already; choose"), ((other,), "another run's")):
        with pytest.raises(ConfigError, match=said):
            mirror.check_storage(f"sqlite:///{tmp_path / 'watch.db'}", name="run", objectives=NAMES, records=records)
    mirror.check_storage(f"sqlite:///{tmp_path / 'watch.db'}", name="run", objectives=NAMES, records=(trial(0),))
    mirror.check_storage(f"sqlite:///{tmp_path / 'new.db'}", name="run", objectives=NAMES)
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path / 'new.db'}") == []


def test_a_lost_storage_is_told_once_and_what_is_missing_is_written_when_it_is_back(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.01)
    gone, tried, told = threading.Event(), threading.Semaphore(0), []
    gone.set()
    true = optuna.Study.add_trial

    def add_trial(study: optuna.Study, frozen: optuna.trial.FrozenTrial) -> None:
        tried.release()
        if gone.is_set():
            raise ConnectionError("server closed the connection")
        true(study, frozen)

    copy = opened(tmp_path / "watch.db", told)
    monkeypatch.setattr(optuna.Study, "add_trial", add_trial)
    for number in range(3):
        copy.add(trial(number))  # never waits
    for _ in range(4):
        assert tried.acquire(timeout=10)
    assert len(told) == 1 and "the storage is lost: ConnectionError" in told[0]
    gone.clear()
    while len(trials(tmp_path / "watch.db")) < 3:
        assert tried.acquire(timeout=10)
    copy.close()
    assert told[1:] == ["the storage is back"] and len(trials(tmp_path / "watch.db")) == 3


def test_a_storage_that_stays_away_is_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_trial(study: optuna.Study, frozen: optuna.trial.FrozenTrial) -> None:
        raise ConnectionError("gone")

    told: list[str] = []
    copy = opened(tmp_path / "watch.db", told)
    monkeypatch.setattr(optuna.Study, "add_trial", add_trial)
    copy.add(trial(0))
    copy.add(trial(1))
    copy.close()
    assert "misses about" in told[-1] and "--storage" in told[-1]


@pytest.mark.parametrize("url", ["no url", "postgresql+psycopg://user:s3cret@127.0.0.1:1/db", "mysql+pymysql://user:s3cret@127.0.0.1:1/db",
                                 "sqlite:////no/such/folder/watch.db", "oops://user:s3cret@host/db"])
def test_what_cannot_be_opened_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        Mirror(url, name="run", objectives=NAMES, space=SmallSpace())
    assert "s3cret" not in str(error.value) and "--storage takes" in str(error.value)
    with pytest.raises(ConfigError) as early:
        mirror.check_storage(url, name="run", objectives=NAMES)
    assert str(early.value) == str(error.value)


def test_a_study_in_memory_has_each_trial_once_at_its_highest_rung() -> None:
    study = study_of([trial(1), trial(0), trial(1, rung=2, accuracy=0.75), trial(2, status="rejected", reason="over")], NAMES)
    assert [(t.user_attrs["trial"], t.values) for t in study.trials] == [(0, [0.5, 1.0]), (1, [0.75, 1.0]), (2, None)]
    assert len(study.best_trials) == 1 and study.trials[0].duration is not None


def test_a_study_in_memory_needs_no_space_for_parameters_of_every_kind() -> None:
    params = [{"mixer": "slide", "ratio": 1, "depth": 0, "flag": False}, {"mixer": "catm", "ratio": 1.5, "depth": 1, "flag": True}]
    mixed = [replace(record(n), params=params[n]) for n in range(2)]
    assert [t.params for t in study_of(mixed, NAMES).trials] == [r.params for r in mixed]
