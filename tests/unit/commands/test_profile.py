from __future__ import annotations

import csv
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nasvit import cli
from nasvit.arch import Arch
from nasvit.commands import profile
from nasvit.errors import MeasurementError
from nasvit.latency import LatencyModel
from nasvit.space import SearchSpace
from tests.unit.latency.test_model import device_ms


def measure(arch: Arch) -> Any:
    return SimpleNamespace(median_ms=device_ms(arch), half_width=0.03)


def learned(space: SearchSpace, measured: Any, *, about: dict[str, Any], networks: int, seconds: float) -> LatencyModel:
    model = LatencyModel(about=about)
    profile.learned(model, space, measured, networks=networks, seconds=seconds)
    return model


def carried(known: list[LatencyModel], space: SearchSpace, measured: Any, *, about: dict[str, Any]) -> LatencyModel:
    model = LatencyModel(about=about)
    profile.carried(model, known, space, measured)
    return model


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.load("hybrid_tiny")


def test_a_profile_is_learned_from_different_networks_up_to_the_number_asked_for(space: SearchSpace) -> None:
    model = learned(space, measure, about={"space": "hybrid_tiny"}, networks=60, seconds=100)
    assert len({o.arch.id for o in model.observations}) == 60
    new = profile.drawn(space, 50, seed=9)
    errors = [abs(p.median_ms / device_ms(a) - 1) for a, p in zip(new, model.predict_many(new), strict=True)]
    assert sum(errors) / len(errors) < 0.06


def test_a_profile_ends_when_its_time_is_over(space: SearchSpace) -> None:
    def slow(arch: Arch) -> Any:
        time.sleep(0.02)
        return measure(arch)

    model = learned(space, slow, about={}, networks=1000, seconds=0.1)
    assert model.ready and len(model.observations) < 40


def test_a_device_like_a_known_one_needs_ten_measurements(space: SearchSpace) -> None:
    known = learned(space, measure, about={"space": "hybrid_tiny"}, networks=60, seconds=100)
    asked: list[str] = []

    def other(arch: Arch) -> Any:
        asked.append(arch.id)
        return SimpleNamespace(median_ms=2.5 * device_ms(arch) ** 0.9, half_width=0.03)

    model = carried([known], space, other, about={})
    assert len(asked) == 10 and sum(not o.carried for o in model.observations) == 10
    new = profile.drawn(space, 50, seed=9)
    errors = [abs(p.median_ms / other(a).median_ms - 1) for a, p in zip(new, model.predict_many(new), strict=True)]
    assert sum(errors) / len(errors) < 0.08


def test_the_table_of_blocks_is_written_beside_the_profile(space: SearchSpace, tmp_path: Path) -> None:
    model = learned(space, measure, about={"space": "hybrid_tiny"}, networks=30, seconds=100)
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
    learned(small, measure, about={"space": "hybrid_tiny", "fingerprint": "known"}, networks=24, seconds=100).save(
        tmp_path / "p.json")
    assert cli.main(["profile", "--space", "hybrid_tiny", "--like", str(tmp_path / "p.json"), *asked]) == 2
    assert says in capsys.readouterr().err
    assert not (Path("profiles") / f"hybrid_tiny-{fingerprint}.json").exists()


def test_networks_that_cannot_be_measured_are_left_out(space: SearchSpace) -> None:
    asked: list[str] = []

    def sometimes(arch: Arch) -> Any:
        asked.append(arch.id)
        return None if len(asked) % 3 == 0 else measure(arch)

    model = learned(space, sometimes, about={}, networks=40, seconds=100)
    assert len(model.observations) == 40 and len(asked) == len(set(asked)) >= 59
    like = carried([model], space, sometimes, about={})
    assert like.ready and 0 < sum(not o.carried for o in like.observations) < profile.MEASURED_LIKE


def test_the_table_and_the_profile_are_two_files(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["profile", "--space", "hybrid_tiny", "--out", "profile.csv"]) == 2
    assert "give --out profile.json" in capsys.readouterr().err


class FakeDevice:
    """A device whose latencies are made up, and which fails when it is told to."""

    fingerprint, reference_ms, torch_device, runtime = "f", 1.0, "cpu", SimpleNamespace(name="eager")

    def __init__(self, fails: Callable[[int], BaseException | None]) -> None:
        self.fails, self.asked, self.closed = fails, 0, False

    def calibrate(self) -> float:
        return 1.0

    def measure(self, module: Any, *, input_shape: tuple[int, ...]) -> Any:
        self.asked += 1
        error = self.fails(self.asked)
        if error is not None:
            raise error
        return SimpleNamespace(median_ms=1.0 + self.asked / 100, half_width=0.01)

    def close(self) -> None:
        self.closed = True


def run(device: FakeDevice, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("nasvit.devices.open_device", lambda spec: device)
    monkeypatch.setattr(importlib.import_module("nasvit.models.build"), "build", lambda arch, seed: None)
    return cli.main(["profile", "--space", "hybrid_tiny", *options])


def test_what_was_measured_is_kept_where_a_profile_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.json"
    LatencyModel(about={"space": "earlier"}).save(out)
    device = FakeDevice(lambda asked: KeyboardInterrupt() if asked == 31 else None)
    assert run(device, monkeypatch, "--out", str(out)) != 0
    kept = LatencyModel.load(tmp_path / "p.partial.json")
    assert len(kept.observations) == 30 and kept.about["space"] == "hybrid_tiny" and device.closed
    assert LatencyModel.load(out).about["space"] == "earlier", "an earlier profile stays until there is a whole new one"
    assert "30 networks are kept in" in capsys.readouterr().err
    assert run(FakeDevice(lambda asked: None), monkeypatch, "--out", str(out), "--networks", "24") == 0
    assert len(LatencyModel.load(out).observations) == 24 and not (tmp_path / "p.partial.json").exists()


def test_networks_that_fail_now_and_then_do_not_end_a_profile_and_ten_in_a_row_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    def third(asked: int) -> BaseException | None:
        return MeasurementError("busy") if asked % 3 == 0 else None

    assert run(FakeDevice(third), monkeypatch, "--out", str(tmp_path / "p.json"), "--networks", "40") == 0
    assert "19 networks could not be measured and are left out" in capsys.readouterr().out

    def broken(asked: int) -> BaseException | None:
        return MeasurementError("busy") if asked > 30 else None

    device = FakeDevice(broken)
    assert run(device, monkeypatch, "--out", str(tmp_path / "q.json")) == 1 and device.asked == 40
    said = capsys.readouterr().err
    assert "10 networks in a row could not be measured" in said and "30 networks are kept in" in said


def test_where_a_profile_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                              capsys: pytest.CaptureFixture[str]) -> None:
    device = FakeDevice(lambda asked: pytest.fail("nothing may be measured"))
    (tmp_path / "file").write_text("")
    assert run(device, monkeypatch, "--out", str(tmp_path / "file" / "p.json")) == 2
    assert run(device, monkeypatch, "--out", str(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "cannot write into" in said and "is a folder, and the profile is a file" in said


def test_profiles_of_two_image_sizes_are_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for size in ("32", "64"):
        assert run(FakeDevice(lambda asked: None), monkeypatch, "--networks", "24", "--image-size", size) == 0
    assert sorted(p.name for p in Path("profiles").glob("*.json")) == ["hybrid_tiny-32px-f.json", "hybrid_tiny-64px-f.json"]
