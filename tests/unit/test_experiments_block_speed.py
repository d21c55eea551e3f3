"""The parts of the benchmark drivers: the reference forms compute what ours compute, and the table says what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver, imported as it is when it is run: with its folder on the path."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import block_speed

    yield block_speed
    for name in ("block_speed", "interleaved", "speed_table", "zoo_table"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("shift_only", [False, True])
def test_the_published_slide_attention_computes_what_ours_does(drivers: Any, kernel_size: int, shift_only: bool) -> None:
    torch.manual_seed(0)
    ours, reference = drivers.slide_pair(6, 64, kernel_size, shift_only=shift_only)
    x = torch.randn(2, 6, 6, 64)
    with torch.no_grad():
        torch.testing.assert_close(reference(x), ours(x), rtol=1e-5, atol=1e-5)


def test_the_published_fsla_computes_what_ours_does(drivers: Any) -> None:
    torch.manual_seed(0)
    ours, reference = (m.double() for m in drivers.fsla_pair(16, 64, 2))
    x = torch.randn(2, 16, 16, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(reference(x), ours(x), rtol=1e-9, atol=1e-9)


def test_the_published_casvit_computes_what_ours_does(drivers: Any) -> None:
    torch.manual_seed(0)
    ours, reference = drivers.casvit_pair("xs")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(reference(x), ours(x), rtol=1e-4, atol=1e-4)


def test_a_reference_that_computes_something_else_stops_the_benchmark(drivers: Any) -> None:
    import speed_table

    row = next(row for row in drivers.all_rows() if row.group == "slide")
    ours, reference = drivers.slide_pair(6, 64, 3)
    with torch.no_grad():
        reference.position.add_(1.0)
        reference.learned.bias.add_(1.0)
    with pytest.raises(SystemExit, match="means nothing"):
        speed_table.must_agree(row, ours, reference, torch.randn(2, 6, 6, 64))


def test_every_goal_of_the_zoo_has_a_row_and_rows_are_told_apart(drivers: Any) -> None:
    rows = drivers.all_rows()
    named = [(row.what, row.against, row.batch) for row in rows]
    assert len(set(named)) == len(named)
    assert {row.group for row in rows if row.goal is not None} == {row.group for row in rows}


def test_a_missed_goal_is_said_in_the_table(drivers: Any) -> None:
    import speed_table

    row = next(row for row in drivers.all_rows() if row.goal == 0.15)
    missed = speed_table.Result(row=row, ours=2.0, reference=10.0, ratio=0.2, least_ratio=0.2, apart=1e-7)
    reached = speed_table.Result(row=row, ours=1.0, reference=10.0, ratio=0.1, least_ratio=0.1, apart=1e-7)
    assert "**no**" in speed_table.line(missed)
    assert "| yes |" in speed_table.line(reached)
    assert "2.00 ms | 10.00 ms" in speed_table.line(missed)
