from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasvit.data import load, packed, unpacked
from nasvit.engines import NoRoomError, parcels
from nasvit.errors import StorageError
from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord
from nasvit.search import elsewhere
from nasvit.search.elsewhere import Elsewhere
from nasvit.search.evaluate import Job, dataset, evaluate, evaluated, parcel_of, twofold
from tests.unit.search.fakes import Inline, arch, record, settings


class Remote(Inline):
    """An engine elsewhere: keeps what it was sent and which functions it ran."""

    elsewhere = True

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}
        self.ran: list[str] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        self.ran.append(fn.__name__)
        return super().submit(fn, *args)

    def send(self, name: str, value: Any) -> None:
        self.sent[name] = value

    def nodes(self) -> tuple[Any, ...]:
        return ()

    def shutdown(self, *, cancel: bool) -> None:
        self.ran.append("shutdown")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    made = Remote()
    elsewhere._folder.cache_clear()
    return made


def gate_and_train(job: Job, blank: TrialRecord) -> TrialRecord:
    if job.gated is None and job.arch.stages[0].embed_dim > 32:
        return replace(blank, status="rejected", rung=0, reason="too wide")
    gated = job.gated or replace(blank, status="complete", objectives={"latency_ms": 1.0}, details={"run": job.settings.run})
    if job.only_gate:
        return gated
    name = f"checkpoints/{job.arch.id}-r1.safetensors"
    elsewhere.write_bytes(Path(job.settings.run) / name, b"weights 1")
    details = {**gated.details, "there": job.settings.run}
    return replace(gated, objectives={**gated.objectives, "accuracy": 0.5}, checkpoint=name, details=details)


def rise(job: Job, blank: TrialRecord) -> TrialRecord:
    assert job.earlier is not None and job.earlier.checkpoint is not None
    before = (Path(job.settings.run) / job.earlier.checkpoint).read_bytes()
    name = job.earlier.checkpoint.replace("r1", "r2")
    elsewhere.write_bytes(Path(job.settings.run) / name, before + b" 2")
    return replace(blank, status="complete", objectives=job.earlier.objectives, checkpoint=name)


@twofold
def both(job: Job) -> TrialRecord:
    return evaluated(job, first=gate_and_train, further=rise)


def at_once(job: Job) -> TrialRecord:
    return record(0)


def made(remote: Remote, path: Path) -> tuple[Elsewhere, Remote, Job]:
    from nasvit.experiment import Experiment

    here = Remote()
    given = settings(path, Experiment(space="small", engine="inline"))
    return Elsewhere(remote, measuring=here, settings=given), here, Job(settings=given, trial=0, arch=arch())  # type: ignore[arg-type]


def test_a_new_trial_is_measured_here_and_trained_there_and_its_weights_come_home(remote: Remote, tmp_path: Path) -> None:
    engine, here, job = made(remote, tmp_path)
    found = engine.submit(both, job).result(5)
    assert (here.ran, remote.ran) == (["both"], ["at_worker"])
    assert found.details["run"] == str(tmp_path) != found.details["there"]
    assert (tmp_path / found.checkpoint).read_bytes() == b"weights 1" and found.seconds["total"] > 0
    assert not list(Path(found.details["there"]).rglob("*.safetensors"))


def test_a_promotion_takes_its_weights_along(remote: Remote, tmp_path: Path) -> None:
    engine, here, job = made(remote, tmp_path)
    first = engine.submit(both, job).result(5)
    found = engine.submit(both, replace(job, rung=2, earlier=first)).result(5)
    assert (tmp_path / found.checkpoint).read_bytes() == b"weights 1 2" and here.ran == ["both"]


def test_what_the_gate_rejects_never_travels(remote: Remote, tmp_path: Path) -> None:
    engine, _, job = made(remote, tmp_path)
    assert engine.submit(both, replace(job, arch=arch(width=64))).result(5).status == "rejected" and remote.ran == []


def test_a_function_that_is_not_in_two_steps_runs_whole_there_and_what_is_no_job_here(remote: Remote, tmp_path: Path) -> None:
    engine, here, job = made(remote, tmp_path)
    assert engine.submit(at_once, job).result(5).trial == 0 and (here.ran, remote.ran) == ([], ["at_worker"])
    assert engine.submit(len, "abc").result(5) == 3 and here.ran == ["len"]
    engine.shutdown(cancel=True)
    assert here.ran[-1] == remote.ran[-1] == "shutdown"


def test_an_error_of_either_place_is_the_futures(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _, job = made(remote, tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(elsewhere, "write_bytes", full)
    with pytest.raises(StorageError, match="no space"):
        engine.submit(at_once_with_weights, job).result(5)


def test_a_workers_full_disk_is_the_workers_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(job: Job) -> TrialRecord:
        raise StorageError("no space left")

    monkeypatch.setattr(elsewhere, "_folder", lambda run: tmp_path)
    wanted = Job(settings=settings(tmp_path, Experiment(space="small")), trial=0, arch=arch())
    with pytest.raises(NoRoomError, match=f"on {platform.node()}: no space left"):
        elsewhere.at_worker(full, wanted, None)


def at_once_with_weights(job: Job) -> TrialRecord:
    path = Path(job.settings.run) / "w.safetensors"
    path.write_bytes(b"x")
    return record(0, checkpoint="w.safetensors")


def test_data_that_were_sent_are_the_data_that_would_be_loaded(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _, job = made(remote, tmp_path)
    assert engine.train_on == "cpu"
    sent = remote.sent[parcel_of(job.settings)]
    for array in (sent["train.images"], sent["val.labels"]):
        array.setflags(write=False)  # as in an object store
    parcels.use(remote.sent.get)
    try:
        from nasvit.search import evaluate as module

        module._sent.cache_clear()
        found = dataset(job.settings)
    finally:
        parcels.use(None)
        module._sent.cache_clear()
    true = load("digits", seed=0, image_size=(16, 16))
    assert found.fingerprint == true.fingerprint and torch.equal(found.val.images, true.val.images)
    assert found.train.images.data_ptr() == sent["train.images"].__array_interface__["data"][0]  # the node's own memory, not a copy
    assert found.train.images.is_contiguous(memory_format=torch.channels_last)


def test_packing_is_arrays_and_round_trips(tmp_path: Path) -> None:
    true = load("digits", seed=1, image_size=(8, 8))
    back = unpacked(packed(true))
    assert all(isinstance(value, np.ndarray) for name, value in packed(true).items() if "." in name)
    assert torch.equal(back.train.labels, true.train.labels) and back.class_names == true.class_names and back.mean == true.mean


def test_the_searchs_own_evaluations_are_in_two_steps() -> None:
    from nasvit.search.evaluate import in_two_steps
    from nasvit.search.prune_trial import prune_evaluate

    assert in_two_steps(evaluate) and in_two_steps(prune_evaluate) and not in_two_steps(at_once)


def test_workers_get_the_dense_model_of_a_pruning_and_what_it_is_called(remote: Remote, tmp_path: Path) -> None:
    for name in ("prune.json", "dense/arch.json", "records.jsonl"):
        elsewhere.write_bytes(tmp_path / name, b"{}")
    made(remote, tmp_path)
    assert set(remote.sent[elsewhere.FILES]) == {"prune.json", "dense/arch.json"}
