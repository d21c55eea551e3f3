"""What the report says of a pruned model, from a prune.json that nobody measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nasvit.errors import RunError
from nasvit.report.pruned import pruned_section

LATENCY = {"median_ms": 4.0, "ci_low_ms": 3.8, "ci_high_ms": 4.2}
FACTS: dict[str, Any] = {
    "model": "timm:deit_tiny", "target_ms": 2.1, "identity": 0.0,
    "dense": {"latency": LATENCY, "accuracy": 0.9, "macs_g": 1.0, "params_m": 5.0},
    "pruned": {"latency": {"median_ms": 2.0, "ci_low_ms": 1.9, "ci_high_ms": 2.1}, "accuracy": 0.88, "macs_g": 0.5, "params_m": 3.0,
               "of_target": 0.95, "test_accuracy": 0.87, "test_images": 299},
    "recovery": [{"steps": 0, "accuracy": 0.8}], "dense_training": "how long it was trained is not known",
    "siblings": [{"name": "vit_small", "latency_ms": None, "ci_low_ms": None, "ci_high_ms": None, "accuracy": None,
                  "why": "too slow to time"}],
    "verdict": {"dominated": None, "by": None, "text": "unknown"},
}


def section(tmp_path: Path, **changes: Any) -> Any:
    (tmp_path / "prune.json").write_text(json.dumps({**FACTS, **changes}))
    return pruned_section(SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]


def test_the_words_hold_target_accuracy_and_what_the_test_images_say(tmp_path: Path) -> None:
    words = section(tmp_path)["words"]
    assert "2.00 times as fast" in words and "95 % of the target of 2.10 ms" in words and "-2.0 points" in words
    assert "299 test images" in words and "87.0 %" in words
    without = section(tmp_path, pruned={**FACTS["pruned"], "test_accuracy": None})
    assert "test images" not in without["words"]


def test_a_sibling_that_was_not_measured_stands_there_with_the_reason(tmp_path: Path) -> None:
    row = section(tmp_path)["rows"][-1]
    assert row["what"] == "vit_small" and row["interval"] == "not measured: too slow to time"


def test_the_recovery_stands_beside_what_is_known_of_the_dense_training(tmp_path: Path) -> None:
    found = section(tmp_path)
    assert found["training"] == "how long it was trained is not known" and found["curve"][0]["steps"] == 0
    known = section(tmp_path, recovery=[{"steps": 10, "share_of_dense": 0.01, "accuracy": 0.8}])
    assert known["curve"] == [{"steps": 10, "share": "1.0 %", "accuracy": "80.00 %"}]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert pruned_section(SimpleNamespace(path=tmp_path / "none")) is None  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"prune\.json is damaged"):
        section(tmp_path, dense=None)
