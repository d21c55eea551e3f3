from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nasvit.data import DataSet, Images
from nasvit.errors import ConfigError
from nasvit.experiment import Experiment
from nasvit.results.record import read
from nasvit.search import baselines
from tests.unit.search.fakes import Inline, record, settings


def data() -> DataSet:
    images = Images(images=torch.zeros(4, 1, 32, 32, dtype=torch.uint8), labels=torch.arange(4) % 2)
    return DataSet(name="none", train=images, val=images, class_names=("a", "b"),
                   mean=(0.5,), std=(0.2,), fingerprint="f", skipped=0, notes=())


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_model_is_made_for_the_datas_size_channels_and_classes(name: str) -> None:
    model = baselines.make(name, data=data(), seed=0).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 2)
    twin = baselines.make(name, data=data(), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_an_unknown_model_is_refused_with_near_names() -> None:
    baselines.check(["random", "timm:test_vit"])
    with pytest.raises(ConfigError, match="test_vit"):
        baselines.check(["timm:test_vitt"])


def test_each_model_is_evaluated_once_and_a_failure_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def evaluate(settings, label, number):
        calls.append(label)
        return record(number, label=label, status="failed" if label == "timm:b" else "complete", reason="why")

    monkeypatch.setattr(baselines, "evaluate_timm", evaluate)
    common = settings(tmp_path, Experiment(space="small"))
    for _ in range(2):  # the second time is a resumed run: only what failed is tried again
        baselines.run_timm(["random", "timm:a", "timm:b"], settings=common, engine=Inline(), path=tmp_path / "baselines.jsonl")
    assert calls == ["timm:a", "timm:b", "timm:b"]
    assert [r.label for r in read(tmp_path / "baselines.jsonl")] == ["timm:a", "timm:b", "timm:b"]


def test_what_is_done_is_on_disk_before_the_next_one_begins_and_it_is_said_which(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said, there = tmp_path / "baselines.jsonl", list[str](), list[int]()

    def evaluate(settings, label, number):
        there.append(len(read(path)))
        return record(number, label=label)

    monkeypatch.setattr(baselines, "evaluate_timm", evaluate)
    found = baselines.run_timm(["timm:a", "timm:b"], settings=settings(tmp_path, Experiment(space="small")), engine=Inline(), path=path,
                               told=said.append)
    assert there == [0, 1] and [r.trial for r in found] == [0, 1]
    assert said == ["baselines: timm:a, 1 of 2", "baselines: timm:b, 2 of 2"]


def test_a_model_that_does_not_fit_becomes_a_failed_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "dataset", lambda settings: data())

    def fails(*args, **more):
        raise RuntimeError("kernel larger than the map")

    monkeypatch.setattr(baselines, "gate", fails)
    found = baselines.evaluate_timm(settings(tmp_path, Experiment(space="small")), "timm:test_vit", 0)
    assert (found.status, found.label, found.arch) == ("failed", "timm:test_vit", None)
    assert "kernel larger" in str(found.reason)
