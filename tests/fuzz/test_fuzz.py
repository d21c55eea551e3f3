"""Everything that reads what it did not write, in a short form with a fixed seed; and every input that was ever found to break it.

The long form is `experiments/fuzz.py`, which appends what it finds to found.jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        import fuzz

        yield fuzz
    finally:
        sys.path.remove(str(ROOT / "experiments"))


FOUND = [json.loads(line) for line in (ROOT / "tests" / "fuzz" / "found.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", FOUND, ids=lambda case: f"{case['target']}: {case['fault']}"[:90])
def test_what_was_found_once_is_mended(fuzz: Any, case: dict[str, Any]) -> None:
    target = fuzz.TARGETS[case["target"]]
    fuzz.judged(target, case["input"])  # the first call imports
    assert fuzz.judged(target, case["input"]) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spaces", "experiments", "archs", "records", "runs", "replies", "devices", "profiles", "commands"])
def test_damaged_input_gives_an_error_of_ours_and_nothing_else(fuzz: Any, name: str) -> None:
    target, found = fuzz.TARGETS[name], {}
    fuzz.fuzz(target, inputs=10 * target.share, start=1, found=found)
    slow = {fault: value for fault, value in found.items() if fault.partition(": ")[2].startswith("over ")}  # a busy machine is no finding
    assert found.keys() <= slow.keys(), found


def test_every_target_is_fuzzed_in_the_short_form(fuzz: Any) -> None:
    assert set(fuzz.TARGETS) == {"spaces", "experiments", "archs", "records", "runs", "replies", "devices", "profiles", "commands"}
