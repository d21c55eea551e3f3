"""Many configurations of one space, fast: a stage that was built once is not built again.

A sampler completes thousands of configurations that differ from each other in one stage. Results, draws and errors are those of
`SearchSpace.from_parameters`, `arch_parameters` and `encode`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from nasvit.arch import Arch, Scalar, Stage
from nasvit.space.rules import Parameter
from nasvit.space.search_space import SearchSpace

REMEMBERED = 5_000
"""Stages that are kept, some kilobytes each."""

Items = frozenset[tuple[str, Scalar]]


@dataclass(frozen=True, slots=True)
class Part:
    """A stage with its choices, in the order of asking, and its part of the encoding."""

    stage: Stage
    choices: Mapping[str, Scalar]
    code: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Configuration:
    """An Arch with its `arch_parameters` and its `encode`."""

    arch: Arch
    choices: dict[str, Scalar]
    code: tuple[float, ...]


class StageMemory:
    """Completes configurations of a space; see the file's top."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._parts: dict[tuple[int, Items], Part] = {}
        self._absent = [tuple(space.encode_stage(s, None, choices={})) for s in range(len(space.grids))]

    def complete(self, params: Mapping[str, Scalar], *, rng: random.Random | None = None) -> Configuration:
        """What `from_parameters` makes of these choices, with the same draws and errors."""
        given: dict[str, list[tuple[str, Scalar]]] = {}
        for item in params.items():
            given.setdefault(item[0].partition(".")[0], []).append(item)
        choices: dict[str, Scalar] = {}

        def ask(parameter: Parameter) -> Scalar:
            choices[parameter.path] = self.space.answer(parameter, params, rng=rng)
            return choices[parameter.path]

        count = self.space.ask_count(ask)
        parts = [self._part(s, given.get(f"s{s}", []), rng) for s in range(count)]
        arch = self.space.joined(part.stage for part in parts)
        code = self.space.encode_count(count)
        for part in parts:
            choices.update(part.choices)
            code += part.code
        return Configuration(arch=arch, choices=choices, code=(*code, *(value for absent in self._absent[count:] for value in absent)))

    def _part(self, s: int, given: list[tuple[str, Scalar]], rng: random.Random | None) -> Part:
        """Remembered by what is given only where nothing has to be drawn, so that a generator moves on as it would without memory."""
        found = self._parts.get((s, frozenset(given)))
        if found is not None:
            return found
        params, choices = dict(given), dict[str, Scalar]()

        def ask(parameter: Parameter) -> Scalar:
            choices[parameter.path] = self.space.answer(parameter, params, rng=rng)
            return choices[parameter.path]

        stage = self.space.build_stage(s, ask)
        whole = (s, frozenset(choices.items()))
        made = self._parts.get(whole)
        if made is None:
            made = Part(stage=stage, choices=choices, code=tuple(self.space.encode_stage(s, stage, choices=choices)))
            if len(self._parts) >= REMEMBERED:
                self._parts.clear()
            self._parts[whole] = made
        if choices.keys() <= params.keys():
            self._parts[s, frozenset(given)] = made
        return made
