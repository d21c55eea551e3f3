"""The surrogate sampler as a plain Optuna sampler, and on a search space."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler

from nasvit.results.front import hypervolume
from nasvit.search.domain import ArchDomain, LearnedDomain, values_of
from nasvit.search.surrogate import RUNG, SurrogateSampler, _Scale
from nasvit.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)
KINDS = ("wide", "deep", "none")


def ask(trial: optuna.Trial) -> dict[str, Any]:
    """A conditional space: each kind has a parameter of its own."""
    params: dict[str, Any] = {"size": trial.suggest_int("size", 1, 16)}
    for s in range(4):
        kind = params[f"s{s}.kind"] = trial.suggest_categorical(f"s{s}.kind", KINDS)
        if kind != "none":
            params[f"s{s}.{kind}"] = trial.suggest_int(f"s{s}.{kind}", 1, 8)
    return params


def cost(params: Mapping[str, Any]) -> float:
    return params["size"] * (1 + sum(v for n, v in params.items() if n.endswith(("wide", "deep"))))


def accuracy(params: Mapping[str, Any]) -> float:
    early, late = (1.0, 0.3), (0.3, 1.0)
    stages = [params.get(f"s{s}.wide", 0) * wide + params.get(f"s{s}.deep", 0) * deep
              for s, (wide, deep) in enumerate((early, early, late, late))]
    return 1 - np.exp(-params["size"] ** 0.5 * (1 + sum(stages)) / 60)


def search(sampler: BaseSampler, *, trials: int = 60, limit: float = np.inf, rungs: bool = False) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for number in range(trials):
        trial = study.ask()
        params = ask(trial)
        trial.set_constraint("limits", cost(params) / limit - 1)
        low = rungs and number % 3 > 0
        if rungs:
            trial.set_user_attr(RUNG, 1 if low else 2)
        study.tell(trial, [accuracy(params) - 0.2 * low, cost(params)])
    return study


def volume(study: optuna.Study) -> float:
    points = np.array([[1 - accuracy(t.params), cost(t.params) / 500] for t in study.trials])
    return hypervolume(points[np.all(points < 1, axis=1)], np.ones(2))


def test_it_finds_more_than_random_search_and_never_the_same_twice() -> None:
    seeds = range(3)
    ours = [search(SurrogateSampler(seed=seed)) for seed in seeds]
    assert np.mean([volume(s) for s in ours]) > np.mean([volume(search(RandomSampler(seed=seed), trials=120)) for seed in seeds])
    for study in ours:
        assert len({frozenset(t.params.items()) for t in study.trials}) == len(study.trials)


def test_known_objectives_need_no_model() -> None:
    sampler = SurrogateSampler(seed=0, domain=LearnedDomain(lambda params: {1: cost(params)}))
    study = search(sampler, trials=40)
    assert set(sampler._models) == {0} and volume(study) > 0


def test_limits_are_learned_and_kept() -> None:
    study = search(SurrogateSampler(seed=0), limit=100.0, trials=60)
    late = [cost(t.params) <= 100 for t in study.trials[25:]]
    drawn = [cost(t.params) <= 100 for t in search(RandomSampler(seed=0), trials=60).trials]
    assert np.mean(late) > np.mean(drawn)


def test_lower_rungs_are_learned_from_as_such() -> None:
    sampler = SurrogateSampler(seed=0)
    study = search(sampler, rungs=True, trials=50)
    assert volume(study) > 0.9 * volume(search(SurrogateSampler(seed=0), trials=50))


def test_running_trials_are_not_proposed_again() -> None:
    study = search(SurrogateSampler(seed=1), trials=30)
    asked = [frozenset(ask(study.ask()).items()) for _ in range(8)]
    assert len(set(asked)) == 8


def test_the_seed_decides() -> None:
    one, same, other = (search(SurrogateSampler(seed=seed), trials=25) for seed in (3, 3, 4))
    assert [t.params for t in one.trials] == [t.params for t in same.trials] != [t.params for t in other.trials]


@pytest.mark.parametrize(("distribution", "values"), [
    (CategoricalDistribution(("a", "b")), ("a", "b")), (IntDistribution(2, 10, step=4), (2, 6, 10)),
    (FloatDistribution(0.5, 1.0, step=0.25), (0.5, 0.75, 1.0)), (FloatDistribution(1e-4, 1e0, log=True), None),
    (IntDistribution(0, 1000), None)])
def test_values_of_a_distribution(distribution: Any, values: Any) -> None:
    found = values_of(distribution)
    assert found == values if values else 2 <= len(found) <= 16 and list(found) == sorted(found)


def test_a_search_space_completes_what_is_cut_out_of_it(small_space: SearchSpace) -> None:
    domain, rng = ArchDomain(small_space), random.Random(0)
    whole = domain.sample(rng)
    assert whole is not None
    again = domain.complete(dict(list(whole.items())[::2]), rng)
    assert again is not None and small_space.from_parameters(dict(again)) is not None
    assert len(domain.features(whole)) == len(domain.features(again))
    for name, value in whole.items():
        assert value not in domain.neighbours(name, value)


@pytest.fixture
def small_space() -> SearchSpace:
    return SearchSpace.load("hybrid_tiny", image_size=(16, 16), in_channels=1)


def test_the_bad_end_of_a_score_is_cut_and_that_of_a_cost_is_not() -> None:
    y = np.array([-90.0, -88.0, -85.0, -10.0])
    assert _Scale(y, score=True).forward(y).max() < -80 and _Scale(y, score=False).forward(y).max() == -10
    cost = np.array([0.2, 0.3, 0.4, 50.0])
    scale = _Scale(cost, score=False)
    assert scale.back(scale.forward(cost)) == pytest.approx(cost)
