from __future__ import annotations

from pathlib import Path

import pytest

from nasvit.errors import ConfigError
from nasvit.experiment import Experiment, each_once, named_device, parse_limit, places
from nasvit.results.objectives import fault, objective


def made(**values: object) -> Experiment:
    return Experiment.load(None, overrides={"space": "hybrid_tiny", **values})


def test_the_first_of_several_devices_is_the_device_and_the_others_are_objectives() -> None:
    several = made(devices={"laptop": "cpu", "ort": "cpu/onnxruntime"}, limits={"latency_ms@laptop": "8ms", "latency_ms@ort": 4})
    assert several.device == "cpu" and several.others == {"ort": "cpu/onnxruntime"}
    assert several.objectives == ("accuracy", "latency_ms", "latency_ms@ort")
    assert several.limits == {"latency_ms": 8.0, "latency_ms@ort": 4.0}
    assert Experiment(**several.model_dump()) == several


@pytest.mark.parametrize("values", [
    {"limits": {"latency_ms@pi": "8ms"}}, {"objectives": ("accuracy", "latency_ms@pi")},
    {"devices": {"a": "cpu", "b": "cuda"}, "limits": {"latency_ms@c": 3}}])
def test_a_latency_that_nothing_measures_is_an_error_before_the_first_trial(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="not measured in this search; measured: "):
        made(**values)


def test_a_limit_may_name_the_one_device_of_the_search() -> None:
    assert made(device="pi", limits={"latency_ms@pi": "8ms"}).limits == {"latency_ms": 8.0}


def test_two_limits_on_one_latency_are_refused_and_the_command_line_still_wins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two limits on latency_ms, 8ms and 5ms; leave one of them away"):
        made(limits={"latency_ms": "8ms", "latency_ms@cpu": "5ms"})
    file = tmp_path / "e.yaml"
    file.write_text("space: hybrid_tiny\nlimits: {latency_ms: 8ms}\n")
    assert Experiment.load(file, overrides={"limits": {"latency_ms@cpu": 5.0}}).limits == {"latency_ms": 5.0}
    with pytest.raises(ConfigError, match="two limits on latency_ms"):
        Experiment.load(file, overrides={"limits": {"latency_ms": 4.0, "latency_ms@cpu": 5.0}})
    with pytest.raises(ConfigError, match=r"two limits on latency_ms, 8.0 and 5.0"):
        each_once([parse_limit("8ms"), parse_limit("5ms")])


def test_a_limit_is_on_the_further_device_of_its_name_though_the_first_one_is_made_so() -> None:
    several = made(devices={"slow": "cpu", "cpu": "cpu/onnxruntime"}, limits={"latency_ms@slow": 8.0, "latency_ms@cpu": 4.0})
    assert several.limits == {"latency_ms": 8.0, "latency_ms@cpu": 4.0}


def test_limits_name_devices() -> None:
    assert parse_limit("8ms@pi") == ("latency_ms@pi", 8.0) and parse_limit("0.5s") == ("latency_ms", 500.0)
    for text, name in (("8ms@", "latency_ms"), ("3M@pi", "params_m")):
        with pytest.raises(ConfigError):
            parse_limit(text, name=name)


def test_devices_of_the_command_line_have_names() -> None:
    assert places(["cpu?threads=2"]) == {"device": "cpu?threads=2", "devices": {}} and places([]) == {}
    assert places(["a=cpu", "b=cpu/onnxruntime?threads=2"]) == {"devices": {"a": "cpu", "b": "cpu/onnxruntime?threads=2"}}
    assert named_device("cpu/onnxruntime") == ("cpu_onnxruntime", "cpu/onnxruntime")
    with pytest.raises(ConfigError, match="one name"):
        places(["cpu", "cpu"])


def test_a_latency_on_a_device_is_an_objective_with_its_own_label_and_bounds() -> None:
    known = objective("latency_ms@pi")
    assert known.direction == "minimize" and "pi" in known.label and fault("latency_ms@pi", -1.0) is not None
    for name in ("accuracy@pi", "latency_ms@"):
        with pytest.raises(ConfigError):
            objective(name)
