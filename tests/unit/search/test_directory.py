from __future__ import annotations

from pathlib import Path

import pytest

from nasvit.errors import RunError
from nasvit.experiment import Experiment
from nasvit.search.directory import claimed, drift, read_json, summary, write, write_json
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


def test_two_searches_cannot_work_in_one_directory(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"), pytest.raises(RunError, match="another search is working"), claimed(tmp_path / "run"):
        pass
    with claimed(tmp_path / "run"):
        pass


def test_overhead_is_what_training_and_measuring_leave_of_the_workers_time() -> None:
    records = [record(n, seconds={"train": 6.0, "measure": 2.0, "wait": 1.0, "total": 10.0}) for n in range(4)]
    figures = summary(records, Experiment(space="small", workers=2, budget=4), stopped_because="budget", wall_seconds=20.0, sessions=1)
    assert (figures["train_seconds"], figures["measure_seconds"], figures["wait_seconds"]) == (24.0, 8.0, 4.0)
    assert figures["overhead_share"] == pytest.approx(0.1)


def test_drift_names_what_differs_and_only_that() -> None:
    same = Experiment(space="small")
    assert drift(ENV, ENV, old=same, new=same.model_copy(update={"budget": 99, "workers": 1}), spaces=("a", "a")) == []
    other = {**ENV, "fingerprint": "d1", "data": {"fingerprint": "x1", "image_size": [16, 16]}}
    found = drift(ENV, other, old=same, new=same.model_copy(update={"seed": 3}), spaces=("a", "b"))
    assert [text.split()[0] for text in found] == ["space", "data", "device", "seed"]
