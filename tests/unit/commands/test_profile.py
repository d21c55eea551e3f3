from __future__ import annotations

import csv
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nasvit import cli
from nasvit.arch import Arch
from nasvit.commands import profile
from nasvit.latency import LatencyModel
from nasvit.space import SearchSpace
from tests.unit.latency.test_model import device_ms


def measure(arch: Arch) -> Any:
    return SimpleNamespace(median_ms=device_ms(arch), half_width=0.03)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.load("hybrid_tiny")


def test_a_profile_is_learned_from_different_networks_up_to_the_number_asked_for(space: SearchSpace) -> None:
    model = profile.learned(space, measure, about={"space": "hybrid_tiny"}, networks=60, seconds=100)
    assert len({o.arch.id for o in model.observations}) == 60
    new = profile.drawn(space, 50, seed=9)
    errors = [abs(p.median_ms / device_ms(a) - 1) for a, p in zip(new, model.predict_many(new), strict=True)]
    assert sum(errors) / len(errors) < 0.06


def test_a_profile_ends_when_its_time_is_over(space: SearchSpace) -> None:
    def slow(arch: Arch) -> Any:
        time.sleep(0.02)
        return measure(arch)

    model = profile.learned(space, slow, about={}, networks=1000, seconds=0.1)
    assert model.ready and len(model.observations) < 40


def test_a_device_like_a_known_one_needs_ten_measurements(space: SearchSpace) -> None:
    known = profile.learned(space, measure, about={"space": "hybrid_tiny"}, networks=60, seconds=100)
    asked: list[str] = []

    def other(arch: Arch) -> Any:
        asked.append(arch.id)
        return SimpleNamespace(median_ms=2.5 * device_ms(arch) ** 0.9, half_width=0.03)

    model = profile.carried([known], space, other, about={})
    assert len(asked) == 10 and sum(not o.carried for o in model.observations) == 10
    new = profile.drawn(space, 50, seed=9)
    errors = [abs(p.median_ms / other(a).median_ms - 1) for a, p in zip(new, model.predict_many(new), strict=True)]
    assert sum(errors) / len(errors) < 0.08


def test_the_table_of_blocks_is_written_beside_the_profile(space: SearchSpace, tmp_path: Path) -> None:
    model = profile.learned(space, measure, about={"space": "hybrid_tiny"}, networks=30, seconds=100)
    count = profile.write_table(tmp_path / "t.csv", model, space=space)
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert len(rows) == count > 100 and all(float(r["low_ms"]) <= float(r["ms"]) <= float(r["high_ms"]) for r in rows)


def test_a_profile_of_another_space_is_no_likeness(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasvit.devices.open_device", lambda spec: SimpleNamespace(
        calibrate=lambda: 1.0, fingerprint="f", reference_ms=1.0, close=lambda: None))
    LatencyModel(about={"space": "other"}).save(tmp_path / "p.json")
    assert cli.main(["profile", "--space", "hybrid_tiny", "--like", str(tmp_path / "p.json")]) == 2
    assert "profile of the space other, not of hybrid_tiny" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "fingerprint", "says"), [
    (["--image-size", "64"], "here", "is a profile at 16x16 px and this one is to be at 64x64 px, whose latencies are not alike: give "
                                     "--image-size 16"),
    (["--image-size", "16"], "known", "is a profile of this very device (known)")])
def test_a_profile_of_another_image_size_or_of_the_device_itself_is_no_likeness(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, asked: list[str], fingerprint: str,
        says: str) -> None:
    monkeypatch.setattr("nasvit.devices.open_device", lambda spec: SimpleNamespace(
        calibrate=lambda: pytest.fail("it is refused before anything is measured"), fingerprint=fingerprint, close=lambda: None))
    small = SearchSpace.load("hybrid_tiny", image_size=(16, 16))
    profile.learned(small, measure, about={"space": "hybrid_tiny", "fingerprint": "known"}, networks=24, seconds=100).save(
        tmp_path / "p.json")
    assert cli.main(["profile", "--space", "hybrid_tiny", "--like", str(tmp_path / "p.json"), *asked]) == 2
    assert says in capsys.readouterr().err
    assert not (Path("profiles") / f"hybrid_tiny-{fingerprint}.json").exists()


def test_networks_that_cannot_be_measured_are_left_out(space: SearchSpace) -> None:
    asked: list[str] = []

    def sometimes(arch: Arch) -> Any:
        asked.append(arch.id)
        return None if len(asked) % 3 == 0 else measure(arch)

    model = profile.learned(space, sometimes, about={}, networks=40, seconds=100)
    assert len(model.observations) == 40 and len(asked) == len(set(asked)) >= 59
    like = profile.carried([model], space, sometimes, about={})
    assert like.ready and 0 < sum(not o.carried for o in like.observations) < profile.MEASURED_LIKE


def test_the_table_and_the_profile_are_two_files(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["profile", "--space", "hybrid_tiny", "--out", "profile.csv"]) == 2
    assert "give --out profile.json" in capsys.readouterr().err
