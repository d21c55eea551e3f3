"""Checks a search space against the mixers' signatures, which the space itself, below torch, cannot know."""

from __future__ import annotations

import inspect

from nasvit.arch import MixerSpec
from nasvit.errors import ArchError, ConfigError
from nasvit.models.estimate import mixer_cost
from nasvit.models.mixers import MIXERS, parameters_of
from nasvit.registry import unknown
from nasvit.space import SearchSpace
from nasvit.space.rules import ARCH_NAME, mixer_params, outcomes
from nasvit.space.search_space import MixerUse
from nasvit.vocabulary import VOCABULARY


def check_space(space: SearchSpace) -> None:
    """Raise ConfigError naming file, line and what is accepted: an unknown mixer, an unknown or a missing parameter, and a value that the
    mixer does not take of a parameter that is its own."""
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
        own = [where for _, arch_name, where in use.params if arch_name not in VOCABULARY]  # of the others the space knows what is possible
        if own:
            _check_values(space, use, where=own[0])


def _check_values(space: SearchSpace, use: MixerUse, *, where: str) -> None:
    rules, grid = space.file.stages[use.stage], space.grids[use.stage]
    for dim in rules.embed_dim.values:
        for _, made in outcomes(lambda pick, dim=int(dim): mixer_params(  # type: ignore[misc]
                rules.params[use.mixer], embed_dim=dim, grid=grid, pick=pick)):
            try:
                mixer_cost(MixerSpec.of(use.mixer, **made), int(dim), grid)
            except ArchError as error:
                raise ConfigError(f"{where}: stage {use.stage} (embed_dim {dim}): {error}") from None
