"""The surrogate sampler in studies that are not nasvit's own: ranges that change, studies that follow each other, trials half asked."""

from __future__ import annotations

import math
import warnings

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study

from nasvit.search.acquisition import Goal
from nasvit.search.distributions import widened
from nasvit.search.domain import LearnedDomain
from nasvit.search.improvement import spread
from nasvit.search.surrogate import SurrogateSampler, expected_gain
from nasvit.search.warp import Cost, Ratio


def study(*directions: str, seed: int = 0, sampler: SurrogateSampler | None = None) -> Study:
    return optuna.create_study(directions=directions, sampler=sampler or SurrogateSampler(seed=seed))


def test_a_range_that_depends_on_another_parameter_is_searched_to_its_end() -> None:
    def upto(trial: optuna.Trial) -> float:
        return float(trial.suggest_int("k", 1, trial.suggest_int("n", 1, 8)))

    for seed in range(3):
        made = study("maximize", seed=seed)
        made.optimize(upto, n_trials=40)
        assert made.best_value == 8


def test_a_parameter_that_has_one_value_in_each_trial_is_in_no_plan_and_hides_no_configuration_that_was_tried() -> None:
    made = study("minimize")

    def objective(trial: optuna.Trial) -> float:
        shape = trial.suggest_int("shape", 1, 12)
        strength = 100 * shape + 7
        return abs(shape - 5) + trial.suggest_int("strength", strength, strength) / 1e4

    made.optimize(objective, n_trials=8)
    resumed = optuna.create_study(sampler=SurrogateSampler(seed=1))
    resumed.add_trials(made.trials)
    resumed.optimize(objective, n_trials=4)
    assert len({t.params["shape"] for t in resumed.trials}) == 12


def test_a_sampler_of_one_study_serves_another_as_a_new_one_does() -> None:
    sampler = SurrogateSampler(seed=0)
    study("minimize", sampler=sampler).optimize(lambda t: t.suggest_float("x", 0, 3), n_trials=15)
    up = study("maximize", sampler=sampler)
    up.optimize(lambda t: t.suggest_float("x", 0, 3), n_trials=25)
    assert np.mean([t.value for t in up.trials[12:]]) > 2
    two = study("maximize", "minimize", sampler=sampler)
    two.optimize(lambda t: (t.suggest_float("zz", 0, 3), t.suggest_int("k", 1, 5)), n_trials=14)
    assert len(two.trials) == 14


def test_a_trial_that_has_asked_half_of_its_parameters_disturbs_no_other() -> None:
    table = {(width, depth): width * depth for width in range(1, 7) for depth in range(1, 7)}
    domain = LearnedDomain(known=lambda params: {1: float(table[params["width"], params["depth"]])})
    made = study("maximize", "minimize", sampler=SurrogateSampler(seed=0, domain=domain))
    for _ in range(14):
        trial = made.ask()
        width, depth = trial.suggest_int("width", 1, 6), trial.suggest_int("depth", 1, 6)
        made.tell(trial, [math.sqrt(width) + depth, table[width, depth]])
    half = made.ask()
    half.suggest_int("width", 1, 6)
    made.enqueue_trial({"width": 3, "depth": 3})
    enqueued = made.ask()  # has no plan
    enqueued.suggest_int("width", 1, 6)
    for _ in range(3):
        trial = made.ask()
        assert (trial.suggest_int("width", 1, 6), trial.suggest_int("depth", 1, 6)) in table


def test_an_infinite_constraint_is_far_from_its_limit_and_no_error() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.set_constraint("valid", math.inf if x > 0.5 else -math.inf)
        return -x

    made = study("minimize")
    made.optimize(objective, n_trials=25)
    assert max(t.params["x"] for t in made.trials if t.params["x"] <= 0.5) > 0.4


@pytest.mark.parametrize("warp", [Ratio(), Cost(log=True)])
def test_the_foot_of_a_grid_below_nothing_is_less_than_all_others(warp: Ratio | Cost) -> None:
    with np.errstate(all="raise"):
        z = warp.forward(np.array([-1.0, 0.0, 0.5, 2.0]), np.ones(4))
    assert z[0] == z[1] == -math.inf and np.all(np.diff(z[1:]) > 0) and np.isfinite(z[2:]).all()


def test_a_minimised_quality_with_a_guess_is_led_by_the_model() -> None:
    domain = LearnedDomain(guess=lambda params: {0: 1.0 + params["a"]})
    made = study("minimize", "minimize", sampler=SurrogateSampler(seed=0, domain=domain))
    with np.errstate(invalid="raise"):
        made.optimize(lambda t: ((1 + (a := t.suggest_int("a", 0, 40))) * (1 + t.suggest_int("b", 0, 40)), 50 - a), n_trials=25)
    assert min(t.values[0] for t in made.trials) < 4


def test_four_objectives_take_a_spread_of_a_long_front() -> None:
    points = np.random.default_rng(0).random((200, 4))
    found = spread(points, 24)
    assert len(found) == 24 == len(np.unique(found, axis=0))
    assert np.array_equal(found.min(axis=0), points.min(axis=0))
    assert spread(points[:20], 24) is not None and len(spread(points[:20], 24)) == 20

    front = points / points.sum(axis=1, keepdims=True)  # nothing dominates anything
    assert len(Goal.of(front, reference=np.full(4, 1.1)).lows) < 20_000, "of all 200 members there are over a million"


def test_where_nothing_is_left_to_propose_nothing_is_gained() -> None:
    made = study("maximize")

    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["p", "q"])
        return trial.suggest_int("x" if kind == "p" else "y", 0, 4) + (kind == "q")

    made.optimize(objective, n_trials=40)
    assert expected_gain(made, proposals=5) == 0.0


def test_a_value_that_follows_from_the_others_is_not_changed_by_breeding() -> None:
    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["p", "q"])
        x = trial.suggest_int(kind, 0, 60)  # a conditional space is bred, not listed
        trial.suggest_int("strength", x + 3, x + 3)
        return abs(x - 7)

    made = study("minimize")
    made.optimize(objective, n_trials=25)
    assert made.best_value < 3


def test_a_second_study_of_the_same_name_is_another_study() -> None:
    sampler = SurrogateSampler(seed=0)
    for first, second in (("a", "b"), ("c", "d")):
        made = optuna.create_study(study_name="same", direction="minimize", sampler=sampler)
        made.optimize(lambda t, x=first, y=second: t.suggest_float(x, 0, 1) + t.suggest_float(y, 0, 1), n_trials=14)  # type: ignore[misc]
        assert len(made.trials) == 14


class Kind(LearnedDomain):
    """A caller's own."""


def test_a_callers_domain_is_forgotten_and_not_replaced() -> None:
    domain = Kind(guess=lambda params: {0: 1.0 + params["x"]})
    sampler = SurrogateSampler(seed=0, domain=domain)
    for direction in ("minimize", "maximize"):
        study(direction, sampler=sampler).optimize(lambda t: t.suggest_int("x", 0, 40) + 1.5, n_trials=12)
    assert sampler.domain is domain and domain.guess({"x": 1}) == {0: 2.0}


@pytest.mark.parametrize("fails", [False, True])
def test_a_first_trial_that_has_asked_half_of_its_parameters_teaches_no_caller_half_a_configuration(fails: bool) -> None:
    domain = LearnedDomain(known=lambda params: {1: float(params["width"] * params["depth"])})
    made = study("maximize", "minimize", sampler=SurrogateSampler(seed=0, domain=domain))
    half = made.ask()
    half.suggest_int("width", 1, 6)
    if fails:
        made.tell(half, state=optuna.trial.TrialState.FAIL)
    assert 1 <= made.ask().suggest_int("width", 1, 6) <= 6


@pytest.mark.parametrize(("both", "size"), [(True, 18), (False, 24)])
def test_nothing_is_tried_twice_where_a_parameter_hangs_on_two_others(both: bool, size: int) -> None:
    def objective(trial: optuna.Trial) -> float:
        a, b = trial.suggest_int("a", 0, 2), trial.suggest_int("b", 0, 2)
        asked = (a == 1 and b == 2) if both else (a == 1 or b == 2)
        return a + b + (trial.suggest_int("c", 0, 9 if both else 3) / 10 if asked else 0)

    made = study("maximize")
    made.optimize(objective, n_trials=size)
    assert len({frozenset(t.params.items()) for t in made.trials}) == size


@pytest.mark.parametrize(("one", "other", "both"), [
    (IntDistribution(1, 3), IntDistribution(2, 8), IntDistribution(1, 8)),
    (IntDistribution(5, 5), IntDistribution(9, 9), IntDistribution(5, 9)),
    (IntDistribution(0, 6, step=2), IntDistribution(1, 7, step=2), IntDistribution(0, 7)),
    (IntDistribution(0, 6, step=3), IntDistribution(6, 12, step=6), IntDistribution(0, 12, step=3)),
    (FloatDistribution(0.0, 0.9, step=0.3), FloatDistribution(0.3, 1.2, step=0.3), FloatDistribution(0.0, 1.2, step=0.3)),
    (FloatDistribution(0.0, 0.9, step=0.3), FloatDistribution(0.1, 1.0, step=0.3), FloatDistribution(0.0, 1.0)),
    (FloatDistribution(0.1, 1.0, log=True), FloatDistribution(0.01, 0.5, log=True), FloatDistribution(0.01, 1.0, log=True)),
    (IntDistribution(0, 3), FloatDistribution(0.0, 9.0), IntDistribution(0, 3)),
    (CategoricalDistribution(("a",)), CategoricalDistribution(("b",)), CategoricalDistribution(("a",)))])
def test_a_widened_range_holds_the_values_of_both(one: BaseDistribution, other: BaseDistribution, both: BaseDistribution) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's, of a high end that no step meets
        assert widened(one, other) == both and widened(one, one) == one


@pytest.mark.parametrize("m", [4, 5, 6])
def test_boxes_stay_few_with_any_number_of_objectives(m: int) -> None:
    front = np.random.default_rng(0).dirichlet(np.ones(m), size=150)  # nothing dominates anything
    assert len(Goal.of(front, reference=np.full(m, 1.1)).lows) < 5_000
