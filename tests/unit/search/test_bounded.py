from __future__ import annotations

import random

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from nasvit.results.front import ranks
from nasvit.search.bounded import SLACK, BoundedStorage

DIRECTIONS = ["maximize", "minimize"]


def grown(most: int, trials: int, *, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=DIRECTIONS, storage=BoundedStorage(most=most),
                                sampler=sampler or optuna.samplers.RandomSampler(seed=0))
    for number in range(trials):
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        if number % 7 == 3:
            study.tell(trial, state=TrialState.FAIL)
            continue
        if number % 5 == 1:
            trial.set_constraint("limits", 1.0)
        study.tell(trial, [x, y])
    return study


def test_below_the_bound_a_sampler_proposes_as_it_would_without() -> None:
    plain = optuna.create_study(directions=DIRECTIONS, sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=3))
    for _ in range(20):
        trial = plain.ask()
        plain.tell(trial, [trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)])
    bound = optuna.create_study(directions=DIRECTIONS, sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=3),
                                storage=BoundedStorage(most=20))
    for _ in range(20):
        trial = bound.ask()
        bound.tell(trial, [trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)])
    assert [t.params for t in plain.trials] == [t.params for t in bound.trials]


def test_what_is_shown_is_bounded_and_holds_the_whole_feasible_front() -> None:
    study = grown(40, 400)
    everything = [study._storage.get_trial(i) for i in range(400)]
    shown = study.get_trials(deepcopy=False)
    assert 40 <= len(shown) <= SLACK * 40 and [t.number for t in shown] == sorted(t.number for t in shown)
    good = [t for t in everything if t.state == TrialState.COMPLETE and not t.constraints]
    front = {good[i].number for i in np.flatnonzero(ranks(np.array([t.values for t in good]) * [-1, 1]) == 0)}
    assert front <= {t.number for t in shown}
    assert any(t.constraints for t in shown) and len({t.number // 100 for t in shown}) == 4  # the rest is spread over all of the time


def test_open_trials_are_shown_and_found() -> None:
    study = grown(10, 100)
    waiting, running = {"x": 0.5, "y": 0.5}, study.ask()
    study.enqueue_trial(waiting)
    assert running.number in [t.number for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    trial = study.ask()
    assert (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)) == (0.5, 0.5) and trial.number == 101


def test_trials_that_are_added_whole_count_as_finished() -> None:
    study, rng = optuna.create_study(directions=DIRECTIONS, storage=BoundedStorage(most=10)), random.Random(0)
    distribution = {"x": optuna.distributions.FloatDistribution(0, 1)}
    study.add_trials([create_trial(values=[rng.random(), rng.random()], params={"x": rng.random()}, distributions=distribution)
                      for _ in range(50)])
    assert len(study.get_trials(deepcopy=False)) <= SLACK * 10


def test_a_sampler_goes_on_working_beyond_the_bound() -> None:
    study = grown(20, 120, sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))
    assert study._storage.get_trial(119).number == 119
