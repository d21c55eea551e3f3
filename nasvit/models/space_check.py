"""Checks a search space against the mixers' signatures, which the space itself, below torch, cannot know."""

from __future__ import annotations

import inspect

from nasvit.errors import ConfigError
from nasvit.models.mixers import MIXERS, parameters_of
from nasvit.registry import unknown
from nasvit.space import SearchSpace
from nasvit.space.rules import ARCH_NAME


def check_space(space: SearchSpace) -> None:
    """Raise ConfigError naming file, line and what is accepted: an unknown mixer, an unknown or a missing parameter."""
    for use in space.mixer_parameters():
        refusal = MIXERS.refusal(use.mixer)
        if refusal is not None:
            raise ConfigError(f"{use.where}: stage {use.stage}: {refusal}")
        schema = parameters_of(use.mixer)
        spellings = sorted({*schema, *(ours for ours, theirs in ARCH_NAME.items() if theirs in schema)})
        for name, arch_name, where in use.params:
            if arch_name not in schema:
                raise ConfigError(f"{where}: stage {use.stage}: mixer {use.mixer}: {unknown('parameter', name, spellings)}")
        given = {arch_name for _, arch_name, _ in use.params}
        missing = [name for name, parameter in schema.items() if parameter.default is inspect.Parameter.empty and name not in given]
        if missing:
            raise ConfigError(f"{use.where}: stage {use.stage}: mixer {use.mixer} needs {', '.join(missing)} "
                              f"(accepted: {', '.join(spellings)})")
