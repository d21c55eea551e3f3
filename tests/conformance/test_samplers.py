"""What every sampler must do: propose in the space, learn from all kinds of results, follow its seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from nasvit.errors import ConfigError
from nasvit.search.progress import counts
from nasvit.search.samplers import SAMPLERS, make_sampler
from tests.unit.search.fakes import make_loop

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_search_with_limits_and_a_resume_reaches_its_budget(name: str, tmp_path: Path) -> None:
    budget = 14 if name == "gp" else 40
    first = make_loop(tmp_path, budget=budget // 2, sampler=name, limits={"latency_ms": 3.0})
    first.run()
    loop = make_loop(tmp_path, budget=budget, sampler=name, limits={"latency_ms": 3.0}, records=first.records)
    assert loop.run() == "budget"
    assert counts(loop.records).evaluated == budget


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_the_seed_decides(name: str, tmp_path: Path) -> None:
    runs = []
    for n, seed in enumerate((0, 0, 1)):
        (tmp_path / str(n)).mkdir()
        loop = make_loop(tmp_path / str(n), budget=8, sampler=name, seed=seed)
        loop.run()
        runs.append([r.arch_id for r in loop.records if r.rung == 1])
    assert runs[0] == runs[1] != runs[2]


def test_an_unknown_sampler_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'nsga[23]'.*gp, nsga2, nsga3, random, surrogate, tpe"):
        make_sampler("nsga", seed=0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasvit.search.samplers.find_spec", lambda name: None if name == "scipy" else object())
    with pytest.raises(ConfigError, match="gp needs scipy"):
        make_sampler("gp", seed=0)
