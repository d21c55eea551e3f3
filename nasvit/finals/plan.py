"""FinalPlan: how long and how a network is trained in full, as frozen data, from a YAML file and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nasvit.errors import ConfigError
from nasvit.experiment import Experiment
from nasvit.registry import unknown
from nasvit.training import Recipe
from nasvit.yaml_file import read_yaml

EPOCHS = 100.0
"""Of a full training, unless the plan says otherwise."""

Setting = bool | int | float | str | None


class FinalPlan(BaseModel):
    """How to train in full. Frozen; an unknown key is refused.

    epochs or minutes: one of them; minutes fixes the number of steps from the speed of the first ones. recipe: over the recipe of the
    run. drop_path: rate of stochastic depth of the last block. teacher: timm:NAME, timm:NAME@CHECKPOINT, or the folder of an
    earlier full training. checkpoint_s: seconds between states on disk. validate_epochs: between looks at the validation part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**31)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    teacher: str | None = None
    checkpoint_s: float = Field(default=60.0, ge=0)
    validate_epochs: float = Field(default=5.0, gt=0)
    recipe: dict[str, Setting] = Field(default_factory=dict)

    @field_validator("recipe", mode="before")
    @classmethod
    def _recipe(cls, recipe: Any) -> Any:
        return Experiment.numbers(recipe)

    @model_validator(mode="after")
    def _length(self) -> FinalPlan:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("epochs and minutes are both given; accepted: one of them")
        return self

    @classmethod
    def load(cls, path: Path | None = None, *, overrides: Mapping[str, Any] | None = None) -> FinalPlan:
        """From a YAML file, overridden key by key (None stands for "not given"); minutes given there replace the file's epochs.

        Raises ConfigError that lists every fault.
        """
        given: dict[str, Any] = {}
        if path is not None:
            data, _ = read_yaml(Path(path))
            if not isinstance(data, dict):
                raise ConfigError(f"{path}: a training must be a mapping with keys such as epochs, drop_path, recipe")
            given = dict(data)
        flags = {key: value for key, value in (overrides or {}).items() if value is not None}
        if {"epochs", "minutes"} & set(flags):
            given = {key: value for key, value in given.items() if key not in ("epochs", "minutes")}
        try:
            plan = cls.model_validate({**given, **flags})
        except ValidationError as error:
            where = str(path) if path is not None else "command line"
            raise ConfigError("\n".join(_fault(e, where) for e in error.errors())) from None
        Recipe.of(plan.recipe)
        return plan

    def full_recipe(self, base: Mapping[str, Any]) -> Recipe:
        """The recipe of a run with this plan's settings over it: a proxy's recipe is the final one, shortened."""
        return Recipe.of({**base, **self.recipe})


def _fault(error: Any, where: str) -> str:
    key = ".".join(map(str, error["loc"])) or "training"
    if error["type"] == "extra_forbidden":
        return f"{where}: " + unknown("key", key, sorted(FinalPlan.model_fields))
    return f"{where}: {key}: {str(error['msg']).removeprefix('Value error, ')} (given: {error['input']!r})"
