"""`nasvit devices`: names for devices, in a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nasvit import cli
from nasvit.commands.devices import _check_outputs
from nasvit.errors import MeasurementError
from tests.unit.devices.agents import toy_place


@pytest.fixture(autouse=True)
def devices_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "conf" / "devices.yaml"
    monkeypatch.setenv("NASVIT_DEVICES", str(path))
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "lock"))
    return path


def test_a_device_is_added_listed_used_and_removed(devices_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "add", "pi", "ssh://pi@raspberry/onnxruntime?threads=4"]) == 0
    assert cli.main(["devices", "add", "desk", "cpu?threads=2"]) == 0
    assert cli.main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert "ssh://pi@raspberry/onnxruntime?threads=4" in shown and "cpu/eager?threads=2" in shown
    assert cli.main(["devices", "remove", "pi"]) == 0
    assert cli.main(["devices"]) == 0
    assert "2 devices" not in capsys.readouterr().out and "raspberry" not in devices_file.read_text()

    from nasvit.devices import open_device

    assert open_device("desk").threads == 2


@pytest.mark.parametrize(("argv", "says"), [
    (["devices", "add", "pi"], "devices add NAME SPEC"), (["devices", "ad", "pi", "cpu"], "did you mean 'add'"),
    (["devices", "add", "cpu", "cpu/eager"], "a device's name"), (["devices", "add", "pi", "ssh://a;b"], "not accepted"),
    (["devices", "add", "y", "cpu/nosuchruntime"], "unknown runtime 'nosuchruntime'"),
    (["devices", "add", "y", "cpu/onnxruntime?precision=int4"], "precision must be one of fp32, int8, not 'int4'"),
    (["devices", "add", "y", "ssh://pi@raspberry/eager"], "runs inside this process only"),
    (["devices", "add", "y", "cuda/onnxruntime"], "does not run on cuda"),
    (["devices", "remove", "pi"], "unknown device 'pi'"), (["devices", "list", "pi"], "devices list"),
])
def test_wrong_words_are_refused_and_nothing_is_written(argv: list[str], says: str, devices_file: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    assert says in capsys.readouterr().err
    assert not devices_file.exists()


def test_checking_measures_the_reference_network(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["devices", "check", "cpu"])
    shown = capsys.readouterr()
    assert "reference network" in shown.out
    # on a busy machine the two measurements may lie too far apart, and the check then says so
    assert ("well: fingerprint" in shown.out) if code == 0 else ("apart" in shown.err)


def test_a_long_path_of_the_file_stays_whole_in_an_empty_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("long" * 40) / "devices.yaml"
    monkeypatch.setenv("NASVIT_DEVICES", str(path))
    assert cli.main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert f"{path}: 0 devices\n" in shown and "nasvit devices add" in shown


@pytest.mark.parametrize(("difference", "well"), [(5e-5, True), (5e-4, False)])
def test_a_remote_runtime_is_held_to_the_parity_of_every_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float,
                                                                 well: bool) -> None:
    device = toy_place(tmp_path, monkeypatch)

    def outputs(module: torch.nn.Module, *, image: torch.Tensor) -> list[Any]:
        with torch.inference_mode():
            found = module(image).numpy().copy()
        found.flat[0] += difference * abs(found).max()
        return [found]

    monkeypatch.setattr(device, "outputs", outputs)
    if well:
        _check_outputs(device)
    else:
        with pytest.raises(MeasurementError, match="accepted: 1e-04"):
            _check_outputs(device)
