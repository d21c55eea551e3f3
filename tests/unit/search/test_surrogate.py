"""The surrogate sampler as a plain Optuna sampler, and on a search space."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler

from nasvit.arch import Arch
from nasvit.results.front import hypervolume
from nasvit.search.candidates import key
from nasvit.search.distributions import at_share, share_of, values_of
from nasvit.search.domain import INITIAL, INITIAL_TRAINED, LOWER, RUNG, ArchDomain, LearnedDomain
from nasvit.search.evidence import evidence_of
from nasvit.search.gaussian import LITTLE_NOISE, MUCH_NOISE
from nasvit.search.surrogate import EXPLORE, SurrogateSampler, expected_gain
from nasvit.search.telling import telling
from nasvit.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)
KINDS = ("wide", "deep", "none")
OBJECTIVES = ("accuracy", "latency_ms")


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


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_may_ask_it_side_by_side_and_still_nothing_is_tried_twice(threads: int) -> None:
    def tried(trial: optuna.Trial) -> tuple[float, float]:
        mixer, width = trial.suggest_categorical("mixer", ["conv", "attention"]), trial.suggest_int("width", 8, 64, step=8)
        inner = trial.suggest_int("kernel", 3, 9, step=2) if mixer == "conv" else trial.suggest_categorical("heads", [2, 4, 8])
        time.sleep(0.002)  # the others ask while this one runs
        return width + inner, width * inner

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SurrogateSampler(seed=0))
    study.optimize(tried, n_trials=40, n_jobs=threads)
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials)
    assert len({frozenset(t.params.items()) for t in study.trials[threads:]}) == 40 - threads  # the first are drawn blindly


def test_none_is_a_value_like_others() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SurrogateSampler(seed=0))
    study.optimize(lambda t: (t.suggest_int("b", 0, 9), float(t.suggest_categorical("a", [None, "x", "y"]) is not None)), n_trials=30)
    assert len({frozenset(t.params.items()) for t in study.trials}) == 30


def test_a_sampler_can_be_pickled_and_goes_on() -> None:
    study = search(SurrogateSampler(seed=3), trials=15)
    again = pickle.loads(pickle.dumps(study.sampler))
    assert key(again.propose(study)) not in {key(t.params) for t in study.trials}


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


def test_what_trials_had_at_lower_rungs_tells_what_those_that_stopped_there_are_worth() -> None:
    """Half of them stop where accuracies lie lower and a third as far apart."""
    def early(params: Mapping[str, Any]) -> float:
        return 0.2 + 0.3 * accuracy(params)

    errors = []
    for tells in (False, True):
        sampler = SurrogateSampler(seed=0)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        for number in range(40):
            trial = study.ask()
            params = ask(trial)
            rises = early(params) > (np.median([t.user_attrs["early"] for t in study.trials[:-1]]) if number else 0)
            trial.set_user_attr("early", early(params))
            trial.set_user_attr(RUNG, 2 if rises else 1)
            if tells and rises:
                trial.set_user_attr(LOWER, [[early(params), cost(params)]])
            study.tell(trial, [accuracy(params) if rises else early(params), cost(params)])
        inputs = sampler._understand(study, study.trials)
        judge = sampler.judge(evidence_of(study.trials, [key(t.params) for t in study.trials], inputs), inputs.batch([]))
        stopped = [i for i, t in enumerate(study.trials) if t.user_attrs[RUNG] == 1]
        errors.append(np.sqrt(np.mean([(judge.points[i, 0] + accuracy(study.trials[i].params)) ** 2 for i in stopped])))
    assert errors[1] < 0.5 * errors[0]


def test_running_trials_are_not_proposed_again() -> None:
    study = search(SurrogateSampler(seed=1), trials=30)
    asked = [frozenset(ask(study.ask()).items()) for _ in range(8)]
    assert len(set(asked)) == 8


def test_with_many_running_several_are_planned_with_one_look_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr("nasvit.search.surrogate.STOCK", 4)
    monkeypatch.setattr(SurrogateSampler, "_best", lambda self, *given, count, whole=SurrogateSampler._best: (
        looks.append(count), whole(self, *given, count=count))[1])
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SurrogateSampler(seed=0))
    running, asked = [study.ask() for _ in range(16)], []
    plans = [ask(trial) for trial in running]
    for _ in range(60):  # the first in is the first out
        study.tell(running.pop(0), [accuracy(plans[0]), cost(plans[0])])
        asked.append(key(plans.pop(0)))
        running.append(study.ask())
        plans.append(ask(running[-1]))
    assert len(set(asked)) == len(asked) and not {key(p) for p in plans} & set(asked)
    assert set(looks) <= {3, 4} and len(looks) <= 60 / 3  # of the first trials some are not its own
    study.sampler._stock = [dict(plans[0])] * 3  # as if it had been asked elsewhere since
    assert key(ask(study.ask())) not in {*asked, *(key(p) for p in plans)}


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
    domain, rng = ArchDomain(small_space, objectives=OBJECTIVES), random.Random(0)
    whole = domain.sample(rng)
    assert whole is not None
    again = domain.complete(dict(list(whole.items())[::2]), rng)
    assert again is not None and small_space.from_parameters(dict(again)) is not None
    assert len(domain.features(whole)) == len(domain.features(again)) == len(domain.groups())
    for name, value in whole.items():
        assert value not in domain.neighbours(name, value)


@pytest.fixture
def small_space() -> SearchSpace:
    return SearchSpace.load("hybrid_tiny", image_size=(16, 16), in_channels=1)


def flat(trial: optuna.Trial) -> list[float]:
    """Six choices of three, listed whole: the first ones count most, and their costs are known."""
    taken = [trial.suggest_categorical(f"edge{i}", ("none", "thin", "thick")) for i in range(6)]
    weight = [("none", "thin", "thick").index(t) for t in taken]
    return [sum(w * (6 - i) for i, w in enumerate(weight)) / 42, float(sum(w**2 for w in weight))]


def flat_cost(params: Mapping[str, Any]) -> dict[int, float]:
    return {1: float(sum(("none", "thin", "thick").index(v) ** 2 for v in params.values()))}


def test_a_small_space_is_listed_whole_and_searched_to_its_end() -> None:
    sampler = SurrogateSampler(seed=0, domain=LearnedDomain(flat_cost), initial=8)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(flat, n_trials=60)
    assert sampler._whole is not None and len(sampler._whole) == 3**6
    best = {sum(w) for w in ((6, 5, 4, 3, 2, 1),)}
    assert max(t.values[0] for t in study.trials) == best.pop() * 2 / 42  # the dearest of all is on the front too
    front = {tuple(t.values) for t in study.best_trials}
    assert len(front) >= 9


def test_the_last_configurations_of_a_space_are_found_and_none_twice() -> None:
    study = optuna.create_study(directions=["maximize"], sampler=SurrogateSampler(seed=0, initial=4))

    def score(trial: optuna.Trial) -> float:
        return float(trial.suggest_categorical("a", (1, 2, 3)) * trial.suggest_int("b", 1, 4))

    study.optimize(score, n_trials=12)
    assert len({frozenset(t.params.items()) for t in study.trials}) == 12
    study.optimize(score, n_trials=1)  # nothing is left: it repeats rather than fails
    assert study.best_value == 12


def test_what_is_expected_of_the_next_proposals_falls_as_the_front_fills() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SurrogateSampler(seed=0, domain=LearnedDomain(flat_cost)))
    assert expected_gain(study, proposals=5) is None
    study.optimize(flat, n_trials=18)
    early = expected_gain(study, proposals=5)
    study.optimize(flat, n_trials=60)
    late = expected_gain(study, proposals=5)
    assert early is not None and late is not None and 0 <= late < 0.3 * early and late < 0.005
    assert expected_gain(optuna.create_study(directions=["minimize"]), proposals=5) is None


def test_a_guess_is_modelled_as_a_ratio_and_helps() -> None:
    def about(params: Mapping[str, Any]) -> dict[int, float]:
        return {1: 1.5 * cost(params)}

    guessing = SurrogateSampler(seed=2, domain=LearnedDomain(guess=about))
    study = search(guessing, trials=30)
    assert volume(study) > 0.8 * volume(search(SurrogateSampler(seed=2), trials=30))
    done = [t.params for t in study.trials]
    mean, deviation = guessing._models[1][0].predict(guessing._inputs.batch(done).x)
    assert mean == pytest.approx(np.full(len(done), -np.log(1.5)), abs=0.05) and deviation.max() < 0.1


def test_categories_of_one_kind_are_counted_together() -> None:
    domain = LearnedDomain()
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=RandomSampler(seed=0))
    study.optimize(flat, n_trials=3)
    domain.learn(study.trials)
    params = {f"edge{i}": "thick" if i < 2 else "none" for i in range(6)}
    assert list(domain.features(params))[-3:] == pytest.approx([4 / 6, 0, 2 / 6])
    assert len(domain.features(params)) == len(domain.groups()) == 21 and len(set(domain.groups())) == 7


@pytest.mark.parametrize(("distribution", "share", "value"), [
    (FloatDistribution(1e-4, 1.0, log=True), 0.5, 1e-2), (FloatDistribution(0.0, 0.9, step=0.3), 1.0, 0.9),
    (IntDistribution(10, 1000), 0.5, 505), (IntDistribution(2, 10, step=4), 0.4, 6), (IntDistribution(1, 1024, log=True), 0.5, 32)])
def test_a_share_of_a_range_and_back(distribution: Any, share: float, value: float) -> None:
    assert at_share(distribution, share) == pytest.approx(value) and distribution._contains(at_share(distribution, share))
    assert at_share(distribution, share_of(distribution, value)) == pytest.approx(value)


def test_a_continuous_range_is_searched_between_its_sixteen_values() -> None:
    def distance(trial: optuna.Trial) -> float:
        return (trial.suggest_float("x", -1, 1) - 0.217) ** 2 + (trial.suggest_float("lr", 1e-4, 1, log=True) - 0.01) ** 2

    study = optuna.create_study(direction="minimize", sampler=SurrogateSampler(seed=0))
    study.optimize(distance, n_trials=40)
    assert abs(study.best_params["x"] - 0.217) < 0.03


@pytest.mark.parametrize("all_useful", [True, False])
def test_a_poor_quality_is_held_useless_only_where_configurations_may_compute_nothing(all_useful: bool,
                                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LearnedDomain, "all_useful", all_useful)
    sampler = SurrogateSampler(seed=0)
    trials = search(sampler, trials=14).get_trials()
    inputs = sampler._inputs
    assert inputs is not None
    evidence = evidence_of(trials, [key(t.params) for t in trials], inputs)
    lines = [sampler.judge(evidence, inputs.batch([])).useful for _ in range(20)]
    assert np.isinf(lines).all() == all_useful
    assert ArchDomain.all_useful


def test_noise_is_expected_of_trainings_and_of_nothing_else(small_space: SearchSpace) -> None:
    sampler = SurrogateSampler(seed=0, domain=ArchDomain(small_space, objectives=("accuracy", "latency_ms")))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(INITIAL_TRAINED + 6):
        trial = study.ask()
        study.tell(trial, [random.Random(trial.number).random(), small_space.suggest(trial).stages[0].embed_dim])
    assert {j: process.noise_prior for j, (process, _) in sampler._models.items()} == {0: MUCH_NOISE, 1: LITTLE_NOISE}
    assert LearnedDomain.noise == LITTLE_NOISE and LearnedDomain.initial == INITIAL, "a table repeats exactly"


def test_a_share_of_the_proposals_explores() -> None:
    assert EXPLORE >= 0.05


class Told:
    """Twice as much with every measurement that it takes in."""

    count = 1

    def learned(self) -> int:
        return self.count

    def medians(self, arch: Arch) -> dict[str, float]:
        return {"latency_ms": 2.0**self.count, "other": 1.0} if self.count else {}


def test_what_is_told_of_a_latency_is_asked_anew_when_more_is_known_of_it(small_space: SearchSpace) -> None:
    told = Told()
    told.count = 0
    sampler = SurrogateSampler(seed=0, domain=ArchDomain(small_space, objectives=("accuracy", "latency_ms"), guesses=told))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    whole = small_space.arch_parameters(small_space.sample(random.Random(0)))
    for count in (0, 1, 1, 2):
        told.count = count
        assert sampler.propose(study) is not None and sampler._inputs is not None
        guess = sampler._inputs.batch([whole]).guess[0]
        assert np.isnan(guess[0]) and (guess[1] == 2.0**count if count else np.isnan(guess[1]))
        assert len(sampler._inputs.groups) == len(small_space.encoding_names()) + 2 + bool(count) + 1  # MACs and parameters; the rung


def test_networks_begin_small_and_large_where_no_cost_is_known(small_space: SearchSpace) -> None:
    domain = ArchDomain(small_space, objectives=("accuracy", "latency_ms"))
    sizes = [domain.size(p) for p in (domain.sample(random.Random(n)) for n in range(200)) if p is not None]
    quartiles = np.quantile(np.array(sizes, dtype=float), [0.25, 0.5, 0.75])
    for seed in range(3):
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=SurrogateSampler(seed=seed, domain=domain))
        begun = []
        for _ in range(10):
            trial = study.ask()
            begun.append(domain.size(small_space.arch_parameters(small_space.suggest(trial))))
            study.tell(trial, (0.5, 1.0))
        places = np.bincount(np.searchsorted(quartiles, np.array(begun, dtype=float)), minlength=4)
        assert places.min() >= 1 and places.max() <= 5, places


def test_an_unknown_objective_of_an_architecture_is_guessed_where_it_can_be(small_space: SearchSpace) -> None:
    domain = ArchDomain(small_space, objectives=("accuracy", "macs_g", "latency_ms"), costs=lambda arch: {"macs_g": 0.25},
                        guesses=Told())
    whole = domain.sample(random.Random(0))
    assert whole is not None and domain.known(whole) == {1: 0.25} and domain.guess(whole) == {2: 2.0}
    assert ArchDomain(small_space, objectives=("accuracy", "params_m")).guess(whole)[1] > 0


def test_zero_cost_scores_are_asked_once_for_an_architecture(small_space: SearchSpace) -> None:
    asked: list[str] = []
    domain = ArchDomain(small_space, objectives=OBJECTIVES, scores=lambda arch: asked.append(arch.id) or {"synflow": 1.0})
    whole = domain.sample(random.Random(0))
    assert whole is not None and domain.scores(whole) == domain.scores(whole) == {"synflow": 1.0} and len(asked) == 1


class Scored(LearnedDomain):
    """A score that is the truth with its sign turned, and one that says nothing."""

    def scores(self, params: Mapping[str, Any]) -> Mapping[str, float]:
        return {"told": -accuracy(params), "noise": float(hash(frozenset(params.items())) % 1000)}


def test_scores_that_say_something_are_learned_from_whatever_their_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[list[int]] = []

    def spy(*args: Any) -> list[int]:
        chosen.append(telling(*args))
        return chosen[-1]

    monkeypatch.setattr("nasvit.search.surrogate.telling", spy)
    found = volume(search(SurrogateSampler(seed=0, domain=Scored(lambda params: {1: cost(params)})), trials=40))
    assert sum(1 in c for c in chosen) > 0.8 * len(chosen) > 10  # "told" comes second by name
    plain = SurrogateSampler(seed=0, domain=LearnedDomain(lambda params: {1: cost(params)}))
    assert found > 0.95 * volume(search(plain, trials=40))
