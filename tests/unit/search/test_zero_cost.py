from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nasvit.arch import Arch
from nasvit.errors import ConfigError, MeasurementError
from nasvit.experiment import Experiment
from nasvit.proxies.zero_cost import FLOOR
from nasvit.search import zero_cost as module
from nasvit.search.domain import INITIAL
from nasvit.search.evaluate import scored
from nasvit.search.session import check
from nasvit.search.study import Proposer
from nasvit.search.zero_cost import Scores
from tests.unit.search.fakes import SmallSpace, arch, settings


def test_a_score_is_computed_once_and_its_seconds_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "scored", lambda a, names, *, settings: asked.append(a.id) or scored(a, names, settings=settings))
    scores = Scores(["naswot", "snip"], settings=settings(tmp_path, Experiment(space="small")))
    first, again = scores(arch()), scores(arch())
    assert first == again and set(first) == {"naswot", "snip"} and asked == [arch().id]
    assert not scores.degenerate(arch()) and asked == [arch().id]
    said = scores.summary()
    assert said["scored"] == 1 and said["degenerate"] == 0 and scores.seconds > 0
    assert torch.get_num_threads() == 1


def test_a_network_whose_scores_overflow_is_degenerate_and_has_the_lowest_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflows(*args, **more):
        raise MeasurementError("snip is nan")

    monkeypatch.setattr(module, "scored", overflows)
    scores = Scores(["snip"], settings=settings(tmp_path, Experiment(space="small")))
    assert scores.degenerate(arch()) and scores(arch()) == {"snip": FLOOR} and scores.summary()["degenerate"] == 1


def test_wrong_names_and_samplers_that_cannot_learn_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'snip'"):
        check(Experiment(space="small", sampler="surrogate", scores=("snpi",)))
    with pytest.raises(ConfigError, match="surrogate alone"):
        check(Experiment(space="small", sampler="tpe", scores=("snip",)))


def test_first_draws_that_are_dead_are_drawn_again_and_later_ones_are_not_looked_at(tmp_path: Path) -> None:
    class Half:
        """Calls every narrow network dead."""

        asked = 0

        def degenerate(self, a: Arch) -> bool:
            self.asked += 1
            return a.stages[0].embed_dim <= 32

    half: Any = Half()
    proposer = Proposer(SmallSpace(), sampler="random", seed=0, objectives=("accuracy", "latency_ms"), limits={}, scores=half)
    first = [proposer.propose() for _ in range(INITIAL)]
    turned_down = proposer._turned_down
    assert turned_down > 0 and all(p is not None for p in first)
    assert sum(p is not None and p.arch.stages[0].embed_dim <= 32 for p in first) == 0 or turned_down == INITIAL
    before = half.asked
    assert proposer.propose() is not None and half.asked == before


def test_where_every_draw_is_dead_the_search_goes_on_all_the_same() -> None:
    class All:
        def degenerate(self, a: Arch) -> bool:
            return True

    dead: Any = All()
    proposer = Proposer(SmallSpace(), sampler="random", seed=0, objectives=("accuracy", "latency_ms"), limits={}, scores=dead)
    assert all(proposer.propose() is not None for _ in range(5))
