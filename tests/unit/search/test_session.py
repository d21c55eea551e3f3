"""What a session makes of an experiment before its loop begins."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nasvit.engines import make_engine
from nasvit.errors import ConfigError
from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord, append
from nasvit.search import directory, session, workers
from nasvit.search.progress import Snapshot, snapshot
from nasvit.search.workers import job_limits


def test_where_a_process_memory_is_not_told_the_default_search_has_no_limit_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = job_limits(Experiment(space="hybrid_tiny", workers=2))
    assert usual.memory_mb is not None and usual.memory_mb > 0
    for module in ("nasvit.search.workers", "nasvit.engines.processes"):
        monkeypatch.setattr(f"{module}.resident_mb", lambda pid: 0.0)
    limits = job_limits(Experiment(space="hybrid_tiny", workers=2))
    assert limits.memory_mb is None and limits.seconds == usual.seconds
    make_engine("processes", workers=2, limits=limits).shutdown(cancel=True)
    with pytest.raises(ConfigError, match="does not tell the memory"):  # asked for, and cannot be had
        make_engine("processes", workers=2, limits=job_limits(Experiment(space="hybrid_tiny", job_memory_gb=2)))


@pytest.mark.parametrize(("settings", "storage", "said"), [
    ({"engine": "ray", "gpus_per_worker": 1}, None, "there is none"),
    ({"engine": "ray", "ray_address": "127.0.0.1:1"}, None, "no Ray cluster answers"),
    ({"engine": "inline"}, "no url", "--storage takes"),
    ({"engine": "inline"}, "sqlite:////no/such/folder/watch.db", "cannot be opened"),
])
def test_workers_and_a_storage_that_are_refused_are_so_before_the_device_is_calibrated(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], storage: str | None, said: str) -> None:
    monkeypatch.setattr(session, "bind", lambda *_, **__: pytest.fail("the device is calibrated here"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=said):
        session.run(Experiment(space="hybrid_tiny", data="digits", **settings), out=tmp_path / "run", storage=storage)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("raised", [None, ConfigError("other data")])
def test_a_clusters_workers_are_there_before_the_calibration_and_gone_with_the_session(
        monkeypatch: pytest.MonkeyPatch, raised: Exception | None) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(workers, "open_workers", lambda _: SimpleNamespace(shutdown=lambda *, cancel: ended.append(cancel)))
    experiment = Experiment(space="hybrid_tiny", engine="ray", ray_address="10.0.0.1:6379")
    with suppress(ConfigError), workers.joined(experiment) as begun:
        assert begun is not None and not ended
        if raised is not None:
            raise raised
    assert ended == [True]
    for other in (Experiment(space="hybrid_tiny"), Experiment(space="hybrid_tiny", engine="ray", ray_address="local")):
        with workers.joined(other) as begun:
            assert begun is None, "these start on this machine, which is calibrated first"


def test_a_random_baseline_has_the_minutes_of_its_search_and_says_that_the_figures_are_its_own(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes: list[Any] = []

    def searched(experiment: Experiment, bound: Any, *, progress: Any, **_: Any) -> dict[str, Any]:
        minutes.append(session._without_truth(experiment).minutes)
        progress(snapshot([], budget=1, rungs=1, names=("accuracy",), running=0, elapsed_s=0, before=0))
        return {"stopped_because": "budget", "evaluated": 1}

    monkeypatch.setattr(session, "search_bound", searched)
    experiment = Experiment(space="hybrid_tiny", data="digits", minutes=60, truth=0.2, baselines=("random",), engine="inline")
    told: list[Snapshot] = []
    session.run(experiment, out=tmp_path / "run", reference_ms=1.0, progress=told.append)
    assert minutes == [pytest.approx(50.0), pytest.approx(50.0)]
    of = [now.of for now in told if not now.notes]
    assert of == ["", "random baseline"], "whose figures they are"


def test_workers_are_warmed_only_for_a_run_that_nobody_searches_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(workers, "open_workers", lambda experiment, *, warm: opened.append(experiment) or SimpleNamespace(warm=warm))
    experiment = Experiment(space="hybrid_tiny", engine="inline")
    assert workers.warmed(experiment, tmp_path / "none") is None
    assert workers.warmed(experiment, tmp_path) is None and not list(tmp_path.iterdir())  # no run, and nothing is written there
    (tmp_path / "env.json").write_text("{}")
    with directory.claimed(tmp_path):
        assert workers.warmed(experiment, tmp_path) is None
    assert not opened and workers.warmed(experiment, tmp_path).warm and opened == [experiment]
    with directory.claimed(tmp_path):
        pass  # the look at the lock has let go of it


@pytest.mark.parametrize("first", [False, True], ids=["a further device", "the first device"])
def test_a_resumed_search_does_not_reach_for_a_device_that_is_gone(tmp_path: Path, first: bool) -> None:
    away = "ssh://pi@nowhere.invalid/onnxruntime"
    shared: dict[str, Any] = {"space": "hybrid_tiny", "data": "digits", "rungs": (1, 2), "engine": "inline"}
    here = session.bind(Experiment(**shared, device="cpu"), out=tmp_path, resume=False, allow_drift=False, reference_ms=1.0)
    experiment = Experiment(**shared, devices={"a": away, "b": "cpu"} if first else {"a": "cpu", "b": away})
    there = {"fingerprint": "abc", "reference_ms": 2.0, "device": {"settings": {}}}
    known = {**here.env, **(there if first else {}), "devices": {"b": here.env if first else there}}
    directory.write_json(tmp_path / "env.json", known)
    directory.write(tmp_path / "experiment.yaml", experiment.to_yaml())
    directory.write(tmp_path / "space.yaml", here.space.to_yaml())
    name = "latency_ms" if first else "latency_ms@b"
    append(tmp_path / "records.jsonl", TrialRecord(trial=0, status="failed", rung=1, arch=None, arch_id="x", details={"device_of": name},
                                                   reason="DeviceLostError: it is in quarantine"))
    bound = session.bind(experiment, out=tmp_path, resume=True, allow_drift=False)
    assert bound.env["devices"]["b"]["fingerprint"] == (here.settings.fingerprint if first else "abc")
    assert (bound.settings.fingerprint == "abc", bound.settings.reference_ms == 2.0) == (first, first)
