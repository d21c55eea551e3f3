"""`nasvit devices`: names for devices, in a file of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nasvit import cli


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
