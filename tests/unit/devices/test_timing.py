"""THE timing loop, on an invented clock; and that it travels: Python 3.8, standard library only."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

import nasvit
from nasvit.devices import timing
from nasvit.devices.bundle import MODULES
from nasvit.devices.timing import LEAST_PAIRS, LONGEST_S, PAIRS, REPEATS, attempt, attempt_of, plan, processor_time, sample

ROOT = Path(nasvit.__file__).parents[1]
RUNTIMES = {"onnxruntime", "openvino", "tensorrt", "executorch", "ai_edge_litert", "torch"}
TRAVELS = [name for name in MODULES if (ROOT / name).exists()]


def test_candidate_and_reference_alternate_call_by_call() -> None:
    calls: list[str] = []

    def clock(call):  # type: ignore[no-untyped-def]
        call()
        return 1.0, 1.0

    repeat = sample(lambda: calls.append("c"), lambda: calls.append("r"), clock=clock, pairs=3, beside=2)
    assert "".join(calls) == "crrcrrcrr" + timing.ALONE * "r"  # and a few of the reference alone
    assert len(repeat.alone_ms) == timing.ALONE - timing.ALONE_WARM
    assert (len(repeat.candidate_ms), len(repeat.reference_ms)) == (3, 6)


@pytest.mark.parametrize("candidate_ms", [0.05, 1.0, 3.0, 30.0, 300.0])
def test_a_measurement_is_long_enough_and_bounded(candidate_ms: float) -> None:
    pairs, beside = plan(candidate_ms, 1.0)
    seconds = REPEATS * pairs * (candidate_ms + beside) / 1e3
    assert pairs >= (PAIRS if candidate_ms <= 5 else LEAST_PAIRS)
    assert seconds <= REPEATS * max(LONGEST_S, LEAST_PAIRS * 1.2 * candidate_ms / 1e3)


def test_warming_up_goes_on_until_two_medians_agree() -> None:
    times = iter([98, 98, 98, 54, 54, 54, 34, 34, 34, 33.9, 33.9, 33.9, 1, 1, 1])
    assert timing.warm_up(lambda: None, clock=lambda call: (next(times), 0.0)) == 33.9


def test_an_attempt_tells_its_samples_and_what_happened_meanwhile() -> None:
    one = attempt(lambda: sum(range(2000)), lambda: sum(range(1000)), clock=lambda call: timing.cpu_clock(call, threads=1))
    assert len(one.repeats) == REPEATS and all(r.ratio > 1 for r in one.repeats)
    assert one.usage.wall_s > 0 and one.usage.cpu_s > 0 and (one.usage.waited_s is None or one.usage.waited_s >= 0)
    assert attempt_of(json.loads(json.dumps(one.to_dict()))) == one


def test_a_clock_that_stands_still_ends_too() -> None:
    one = attempt(lambda: None, lambda: None, clock=lambda call: (0.0, 0.0))
    assert {t for r in one.repeats for t in r.candidate_ms} == {0.0}


def test_time_waited_for_the_processor_is_taken_off_and_clock_noise_is_not() -> None:
    assert processor_time(27.0, 16.0) == 16.0
    assert processor_time(1.0, 0.99) == 1.0
    assert processor_time(1.0, 1.01) == 1.0


@pytest.mark.parametrize("name", TRAVELS)
def test_what_travels_in_the_agent_is_python_3_8_and_needs_the_standard_library_alone(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(), feature_version=(3, 8))
    other = {"numpy", *RUNTIMES} if "sessions" in name else {"numpy"}
    found = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    found += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for module in found:
        if module.split(".")[0] == "nasvit":
            assert f"{module.replace('.', '/')}.py" in MODULES or module == "nasvit.devices", f"{name} imports {module}: it stays at home"
        else:
            assert module.split(".")[0] in {*sys.stdlib_module_names, *other}, f"{name} imports {module}"
