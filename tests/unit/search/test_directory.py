from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nasvit.errors import RunError
from nasvit.experiment import Experiment, PruneExperiment
from nasvit.search.directory import check_objectives, claimed, drift, earlier, summary, versions, write, write_json
from nasvit.whole_file import read_json
from tests.unit.search.fakes import record

ENV = {"fingerprint": "d0", "data": {"fingerprint": "x0", "image_size": [16, 16]}, "space": {"name": "small"}}


def test_a_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "one")
    write_json(tmp_path / "b.json", {"x": 1})
    assert (tmp_path / "a.yaml").read_text() == "one" and read_json(tmp_path / "b.json") == {"x": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.yaml", "b.json"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "env.json").write_text("{")
    with pytest.raises(RunError, match=r"env\.json is damaged"):
        read_json(tmp_path / "env.json")


def test_what_is_resumed_says_what_its_sessions_are_held_against(tmp_path: Path) -> None:
    whole = ENV | {"reference_ms": 4.0, "device": {}}
    assert earlier(tmp_path, resume=True) == {}
    for changes, missing in (({}, ""), ({"fingerprint": None}, "fingerprint"), ({"data": []}, "data"), ({"space": {}}, r"space\.name"),
                             ({"data": {"image_size": [1, 1]}, "reference_ms": "4"}, r"reference_ms, data\.fingerprint")):
        write_json(tmp_path / "env.json", whole | changes)
        assert earlier(tmp_path, resume=False) == {}
        if not missing:
            assert earlier(tmp_path, resume=True) == whole
            continue
        with pytest.raises(RunError, match=rf"env\.json is damaged: it does not say {missing}, without"):
            earlier(tmp_path, resume=True)


def test_two_searches_cannot_work_in_one_directory(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"), pytest.raises(RunError, match="another search is working"), claimed(tmp_path / "run"):
        pass
    with claimed(tmp_path / "run"):
        pass


def test_overhead_is_what_training_and_measuring_leave_of_the_workers_time() -> None:
    records = [record(n, seconds={"train": 6.0, "measure": 2.0, "wait": 1.0, "total": 10.0}) for n in range(4)]
    figures = summary(records, Experiment(space="small", workers=2, budget=4), stopped_because="budget", seconds=20.0, before={},
                      sessions=1)
    assert (figures["train_seconds"], figures["measure_seconds"], figures["wait_seconds"]) == (24.0, 8.0, 4.0)
    assert figures["overhead_share"] == pytest.approx(0.1)
    more = summary(records * 2, Experiment(space="small", workers=20, budget=8), stopped_because="budget", seconds=2.0, before=figures,
                   sessions=2)  # ten times the workers for a tenth of the time
    assert (more["wall_seconds"], more["worker_seconds"]) == (22.0, 80.0) and more["overhead_share"] == pytest.approx(0.1)


def test_a_file_system_without_locks_is_not_taken_for_another_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(RunError, match=r"cannot be locked \(No locks available\)"), claimed(tmp_path / "run"):
        pass


def test_drift_names_what_differs_and_only_that() -> None:
    same = Experiment(space="small")
    assert drift(ENV, ENV, old=same, new=same.model_copy(update={"budget": 99, "workers": 1}), spaces=("a", "a")) == []
    other = {**ENV, "fingerprint": "d1", "data": {"fingerprint": "x1", "image_size": [16, 16]}}
    found = drift(ENV, other, old=same, new=same.model_copy(update={"seed": 3}), spaces=("a", "b"))
    assert [text.split()[0] for text in found] == ["space", "data", "device", "seed"]


def test_drift_says_settings_in_words_and_never_as_the_code_writes_them() -> None:
    old = Experiment(space="small", limits={"latency_ms": 8.0, "macs_g": 0.3}, rungs=(30, 60))
    new = Experiment(space="small", limits={}, rungs=(30, 90), recipe={"lr": 1e-3, "mixup": None}, objectives=("accuracy", "params_m"))
    assert drift(ENV, ENV, old=old, new=new, spaces=("a", "a")) == [
        "objectives (was accuracy, latency_ms, is accuracy, params_m)", "limits (was latency_ms ≤ 8, macs_g ≤ 0.3, is none)",
        "rungs (was 30, 60, is 30, 90)", "recipe (was none, is lr 0.001, mixup none)"]
    shown, other = ({**ENV, "data": {**ENV["data"], "mean": [mean, 0.5], "std": [0.25, 0.25]}} for mean in (0.3, 0.4))
    assert drift(shown, other, old=old, new=old, spaces=("a", "b")) == [
        "space (was small at 16x16 px, is small at 16x16 px, or its text has changed)",
        "normalisation of the images (was mean 0.3, 0.5, std 0.25, 0.25, is mean 0.4, 0.5, std 0.25, 0.25)"]


def test_of_a_pruning_what_may_go_how_it_is_ranked_and_how_images_are_normalised_is_drift_too() -> None:
    same = PruneExperiment(model="timm:it")
    shown = {**ENV, "data": {**ENV["data"], "mean": [0.3], "std": [0.2]}}
    other = {**shown, "data": {**shown["data"], "mean": [0.5]}}
    found = drift(shown, other, old=same, new=same.model_copy(update={"choices": ("mlp",), "criterion": "magnitude", "budget": 9}))
    assert [text.split()[0] for text in found] == ["normalisation", "choices", "criterion"]
    assert drift(shown, shown, old=same, new=same.model_copy(update={"minutes": 9.0, "workers": 1, "siblings": {"a": "b"}})) == []


def test_another_version_of_a_library_is_drift_and_a_mended_python_is_not() -> None:
    same, now = Experiment(space="small"), versions()
    before = {**ENV, **now, "torch": "1.0.0"}
    found = drift(before, {**ENV, **now}, old=same, new=same, spaces=("a", "a"))
    assert found == [f"version of torch (was 1.0.0, is {now['torch']})"]
    mended = {**ENV, **now, "python": f"{now['python'].rpartition('.')[0]}.99"}
    assert drift(mended, {**ENV, **now}, old=same, new=same, spaces=("a", "a")) == []


def test_an_objective_that_the_records_lack_is_refused() -> None:
    with pytest.raises(RunError, match="trial 3 was recorded without peak_memory_mb"):
        check_objectives([record(3)], ["accuracy", "peak_memory_mb"])
    check_objectives([record(3)], ["accuracy", "latency_ms"])
