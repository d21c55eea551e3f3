from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "experiments" / "product_table.py"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("product_table", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(label: str, origin: str, accuracy: float, ms: float) -> dict[str, Any]:
    return {"label": label, "origin": origin, "accuracy": accuracy, "tested": True, "latency_ms": {"cpu": ms}, "params_m": 1.0,
            "epochs": 10.0, "verdict": {"cpu": "stable"}}


ROWS = [row("a", "search", 0.9, 1.0), row("b", "search", 0.95, 3.0), row("x", "baseline", 0.9, 1.0), row("y", "baseline", 0.96, 4.0),
        row("r", "random", 0.99, 0.1)]


def test_a_baseline_is_answered_by_a_pick_as_accurate_at_no_more_latency_and_by_nothing_else(table: ModuleType) -> None:
    assert table.answers(ROWS, device="cpu") == [{"baseline": "x", "pick": "a"}, {"baseline": "y", "pick": None}]


def test_the_volume_ratio_follows_from_one_reference_point(table: ModuleType) -> None:
    # worst accuracy 0.9, worst latency 4: the reference is 0.9 - 0.006 and 4 + 0.3
    search = (4.3 - 1.0) * 0.006 + (4.3 - 3.0) * 0.05
    named = (4.3 - 1.0) * 0.006 + (4.3 - 4.0) * 0.06
    assert table.volume_ratio(ROWS, device="cpu") == pytest.approx(search / named)


def test_the_text_names_every_network_and_both_answers(table: ModuleType) -> None:
    said = table.text(ROWS, devices=["cpu"])
    assert all(f"| {name} " in said for name in "abxyr") and "1 of 2 baselines" in said and "y: none" in said


def test_the_head_says_whose_accuracy_it_is(table: ModuleType) -> None:
    assert "| test accuracy " in table.text(ROWS, devices=["cpu"])
    said = table.text([*ROWS, {**ROWS[0], "tested": False}], devices=["cpu"])
    assert "test accuracy" not in said and "accuracy (validation" in said
