"""The surrogate sampler in studies that are not nasvit's own: ranges that change, studies that follow each other, trials half asked."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.study import Study

from nasvit.search.acquisition import Goal
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
    assert expected_gain(made, proposals=5) in (0.0, None)
