"""The table of published figures: complete, and strict about what it does not explain."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import zoo_table

    yield zoo_table
    sys.modules.pop("zoo_table", None)


def test_every_registered_model_has_published_figures(table: Any) -> None:
    assert table.registered() <= {published.model for published in table.PUBLISHED}


def test_a_parameter_more_than_published_is_an_error(table: Any) -> None:
    published = next(p for p in table.PUBLISHED if p.model == "boat_swin_tiny")
    exact = table.Counted(params=published.params, params_inference=published.params, macs=5_219_000_000)
    assert table.wrong(published, exact) == []
    assert "not the published" in table.wrong(published, replace(exact, params=published.params + 1))[0]


def test_multiply_adds_far_from_the_published_are_an_error(table: Any) -> None:
    published = next(p for p in table.PUBLISHED if p.model == "boat_swin_tiny")
    far = table.Counted(params=published.params, params_inference=published.params, macs=5_400_000_000)
    assert "unexplained" in table.wrong(published, far)[0]


def test_a_figure_without_training_only_classifiers_is_compared_without_them(table: Any) -> None:
    published = next(p for p in table.PUBLISHED if p.model == "evo_deit_small")
    counted = table.Counted(params=22_436_432, params_inference=22_050_664, macs=3_039_000_000)
    assert table.wrong(published, counted) == []
