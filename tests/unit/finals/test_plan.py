from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nasvit.errors import ConfigError
from nasvit.finals import FinalPlan


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_command_line_overrides_the_file_and_minutes_replace_its_epochs(tmp_path: Path) -> None:
    file = write(tmp_path / "full.yaml", "epochs: 30\ndrop_path: 0.1\nrecipe: {lr: 1e-3, mixup: 0.2}\n")
    plan = FinalPlan.load(file, overrides={"minutes": 5.0, "seed": None})
    assert (plan.epochs, plan.minutes, plan.drop_path, plan.seed) == (None, 5.0, 0.1, 0)
    assert plan.recipe == {"lr": 1e-3, "mixup": 0.2}


def test_the_recipe_of_the_run_is_kept_where_the_plan_says_nothing() -> None:
    recipe = FinalPlan(recipe={"mixup": 0.2}).full_recipe({"lr": 1e-3, "mixup": 0.9})
    assert (recipe.lr, recipe.mixup) == (1e-3, 0.2)


@pytest.mark.parametrize(("text", "said"), [("epohcs: 3", "did you mean 'epochs'"), ("epochs: 3\nminutes: 2", "one of them"),
                                            ("epochs: 0", "greater than 0"), ("recipe: {mixpu: 1}", "did you mean 'mixup'"),
                                            ("drop_path: 1", "less than 1"), ("- 1", "must be a mapping")])
def test_faults_are_named_with_what_is_accepted(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        FinalPlan.load(write(tmp_path / "full.yaml", text))


@pytest.mark.parametrize("values", [{"epochs": -1}, {"checkpoint_s": -1}, {"seed": -1}])
def test_impossible_numbers_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FinalPlan.load(overrides=values)
