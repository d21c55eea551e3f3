from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nasvit.errors import ConfigError
from nasvit.models.mixers import MIXERS
from nasvit.search.restriction import restricted, told
from nasvit.space import SearchSpace
from tests.unit.runtimes.fakes import Faulty
from tests.unit.runtimes.test_support import SPACE


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASVIT_CACHE", str(tmp_path))


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.from_yaml(SPACE, in_channels=1)


def device(*refused: str) -> Any:
    kinds = tuple(MIXERS[name] for name in refused)
    return SimpleNamespace(runtime=Faulty(refuses=lambda mixer: isinstance(mixer, kinds)), torch_device="cpu")


def test_what_the_runtime_refuses_is_left_out_and_told_with_its_reason(space: SearchSpace) -> None:
    left, excluded = restricted(space, device=device("slide"))
    assert left.file.stages[0].mixer_names() == ["catm", "fsla", "window"]
    assert told(excluded) == ("left out of the space: slide (no SlideMixer here)",)


def test_a_runtime_that_takes_all_leaves_the_space_as_it_is(space: SearchSpace) -> None:
    assert restricted(space, device=device()) == (space, {})


def test_a_resumed_run_leaves_out_what_it_left_out_before_without_asking(space: SearchSpace) -> None:
    asked = device()
    left, excluded = restricted(space, device=asked, found={"window": "then"})
    assert excluded == {"window": "then"} and asked.runtime.prepared == 0
    assert "window" not in left.file.stages[0].mixer_names()


def test_a_runtime_that_takes_nothing_is_an_error_with_the_reasons(space: SearchSpace) -> None:
    with pytest.raises(ConfigError, match=r"faulty cannot take this space.*no mixer left.*no CATMMixer here"):
        restricted(space, device=device("catm", "slide", "window", "fsla"))
