"""A space's memory of stages gives what the space gives."""

from __future__ import annotations

import random

import pytest

from nasvit.arch import Stage
from nasvit.errors import ConfigError
from nasvit.space import SearchSpace, shipped
from nasvit.space.memory import REMEMBERED, StageMemory
from nasvit.space.rules import Ask


@pytest.mark.parametrize("name", sorted(shipped()))
def test_archs_choices_codes_and_draws_are_those_of_the_space(name: str) -> None:
    space = SearchSpace.load(name)
    memory = StageMemory(space)
    plain, remembering, kept = random.Random(1), random.Random(1), random.Random(2)
    choices: dict[str, int | float | bool | str] = {}
    for number in range(40):  # drawn whole, given whole, and with some choices missing or of a branch that is gone
        share = (0.0, 1.0, 0.9, 0.7)[number % 4]
        given = {path: value for path, value in choices.items() if kept.random() < share}
        arch = space.from_parameters(given, rng=plain)
        found = memory.complete(given, rng=remembering)
        choices = space.arch_parameters(arch)
        assert found.arch == arch and list(found.code) == space.encode(arch)
        assert [(path, type(value), value) for path, value in found.choices.items()] == [(p, type(v), v) for p, v in choices.items()]
        assert plain.getstate() == remembering.getstate()


def test_a_stage_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace.load("hybrid_tiny")
    memory, plain, built = StageMemory(space), SearchSpace.build_stage, list[int]()

    def build_stage(self: SearchSpace, s: int, ask: Ask) -> Stage:
        built.append(s)
        return plain(self, s, ask)

    monkeypatch.setattr(SearchSpace, "build_stage", build_stage)
    first = memory.complete({"num_stages": 3}, rng=random.Random(0))
    assert built == [0, 1, 2]
    assert memory.complete(first.choices) == first and built == [0, 1, 2]
    other = next(v for v in space.values_of("s1.embed_dim") if v != first.choices["s1.embed_dim"])
    assert memory.complete({**first.choices, "s1.embed_dim": other}).arch.stages[1].embed_dim == other and built == [0, 1, 2, 1]


def test_what_is_drawn_is_drawn_again() -> None:
    memory, rng = StageMemory(SearchSpace.load("hybrid_tiny")), random.Random(0)
    assert len({memory.complete({"num_stages": 1}, rng=rng).arch.id for _ in range(20)}) > 5


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert REMEMBERED > 100
    monkeypatch.setattr("nasvit.space.memory.REMEMBERED", 4)
    space, rng = SearchSpace.load("hybrid_tiny"), random.Random(0)
    memory = StageMemory(space)
    for _ in range(30):
        found = memory.complete({}, rng=rng)
        assert memory.complete(found.choices) == found and len(memory._parts) <= 5


def test_a_foreign_or_missing_choice_is_refused() -> None:
    memory = StageMemory(SearchSpace.load("hybrid_tiny"))
    with pytest.raises(ConfigError, match="is missing"):
        memory.complete({})
    whole = memory.complete({}, rng=random.Random(0)).choices
    with pytest.raises(ConfigError, match=r"s0\.embed_dim 9 is not in the space"):
        memory.complete({**whole, "s0.embed_dim": 9})
