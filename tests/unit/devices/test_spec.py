"""Device specs: what is read, what is refused, and that nothing else reaches a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nasvit.devices import spec as specs
from nasvit.devices.spec import parse, parse_spec
from nasvit.errors import ConfigError


@pytest.fixture(autouse=True)
def devices_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.yaml"
    monkeypatch.setenv("NASVIT_DEVICES", str(path))
    return path


@pytest.mark.parametrize("text", ["cpu/eager", "cpu/onnxruntime?threads=4", "cpu/openvino?threads=2&precision=int8", "cuda/graphs",
                                  "ssh://pi@raspberry:2222/onnxruntime?threads=4", "ssh://[fe80::1]:22/openvino", "ssh://host/onnxruntime",
                                  "adb://R58M12ABCDE/onnxruntime?python=/data/local/tmp/bin/python3", "adb://192.168.1.7:5555/onnxruntime",
                                  "cpu/eager?noise=keep"])
def test_a_spec_says_itself_again(text: str) -> None:
    assert str(parse_spec(text)) == text


def test_the_runtime_may_be_left_away() -> None:
    assert (parse_spec("cpu").runtime, parse_spec("cuda").runtime, parse_spec("ssh://pi").runtime) == ("eager", "eager", "onnxruntime")


def test_what_the_device_does_not_know_is_the_runtimes() -> None:
    made = parse_spec("cpu/openvino?threads=2&precision=int8&noise=keep")
    assert (made.threads, made.noise, dict(made.settings)) == (2, "keep", {"precision": "int8"})


@pytest.mark.parametrize("text", [
    "ssh://-oProxyCommand=id/onnxruntime", "ssh://host;id/onnxruntime", "ssh://host$(id)/onnxruntime", "ssh://a b/onnxruntime",
    "ssh://-l@host/onnxruntime", "ssh://us er@host/onnxruntime", "ssh://host:22x/onnxruntime", "ssh://host:0/onnxruntime",
    "ssh://host:70000/onnxruntime", "ssh:///onnxruntime", "ssh://@host/onnxruntime", "ssh://host\n/onnxruntime", "adb:///onnxruntime",
    "adb://-s/onnxruntime", "adb://x;reboot/onnxruntime", "adb://x y/onnxruntime", "ssh://h/onnxruntime;id", "ssh://h/onnxruntime?python=a;id",
    "ssh://h/onnxruntime?python=-c", "ssh://h/onnxruntime?python=$(id)", "ssh://h/onnxruntime?config=a b", "cpu/eager?precision=a'b",
    "cpu/eager?threads=0", "cpu/eager?threads=-1", "cpu/eager?threads=two", "cpu/eager?threads=99999", "cpu/eager?noise=maybe",
    "cpu/eager?threads", "cpu/eager?threads=1&threads=2", "cpu/eager?config=here", "cpu://x/eager", "cpuu", "", "ssh://h/" + "r" * 40,
])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_spec(text)


def test_an_unknown_place_names_the_places_and_the_users_devices(devices_file: Path) -> None:
    devices_file.write_text("kitchen: cpu/eager\n")
    with pytest.raises(ConfigError, match="did you mean 'kitchen'"):
        parse("kitchn")


def test_a_name_stands_for_its_spec(devices_file: Path) -> None:
    specs.save_names({"pi": "ssh://pi@raspberry/onnxruntime?threads=4"})
    assert parse("pi") == parse_spec("ssh://pi@raspberry/onnxruntime?threads=4")


@pytest.mark.parametrize(("text", "says"), [("- cpu", "must map names"), ("pi: 4", "must be a spec"), ("pi: ssh://a;b/eager", "line 1"),
                                            ("cpu: cpu/eager", "a device's name"), ("'a b': cpu", "a device's name"),
                                            ("pi: kitchen", "unknown device")])
def test_a_devices_file_that_is_wrong_is_told_with_its_line(devices_file: Path, text: str, says: str) -> None:
    devices_file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        parse("pi")


def test_no_file_is_no_devices(devices_file: Path) -> None:
    assert specs.names() == {}
    devices_file.write_text("")
    assert specs.names() == {}


def test_a_local_interpreter_reaches_the_runtime_that_takes_one_and_no_other() -> None:
    from nasvit.devices import open_device

    assert parse_spec("cpu/litert?python=/opt/litert/bin/python").python == "/opt/litert/bin/python"
    with pytest.raises(ConfigError, match="unknown setting 'python'"):
        open_device("cpu/eager?python=/opt/litert/bin/python")
    with pytest.raises(ConfigError, match=r"/no/python has not all of executorch.*NASVIT_EXECUTORCH_PYTHON"):
        open_device("cpu/executorch?python=/no/python")
