from __future__ import annotations

import random

import pytest

from nasvit.errors import ConfigError
from nasvit.space import SearchSpace


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.load("hybrid_tiny")


def test_what_is_left_out_is_never_sampled_and_the_rest_is_in_the_whole_space(space: SearchSpace) -> None:
    left = space.without({"slide", "window+fsla", "window.shift=true", "keep_ratio=0.5"})
    rng = random.Random(0)
    for _ in range(100):
        arch = left.sample(rng)
        assert space.contains(arch)
        for block in (block for stage in arch.stages for block in stage.blocks):
            assert block.keep_ratio != 0.5
            assert [m.name for m in block.mixers] != ["window", "fsla"]
            assert all(m.name != "slide" and m.kwargs.get("shift") is not True for m in block.mixers)


def test_a_mixer_takes_its_combinations_along(space: SearchSpace) -> None:
    assert all("window+fsla" not in rules.mixers.values for rules in space.without({"fsla"}).file.stages)


def test_nothing_left_out_is_the_same_space(space: SearchSpace) -> None:
    assert space.without(()) is space


def test_the_file_and_its_text_stay(space: SearchSpace) -> None:
    left = space.without({"slide"})
    assert left.to_yaml() == space.to_yaml() and left.size() < space.size()


def test_a_choice_that_the_space_does_not_have_is_refused(space: SearchSpace) -> None:
    with pytest.raises(ConfigError, match=r"no choice 'slide\.kernel_size=11'"):
        space.without({"slide.kernel_size=11"})


def test_a_stage_without_a_mixer_left_is_refused() -> None:
    with pytest.raises(ConfigError, match="stage 0 has no mixer left"):
        SearchSpace.load("slide_only").without({"slide"})
