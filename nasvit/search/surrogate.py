"""nasvit's own sampler: a Gaussian process on what training alone can tell, everything else computed, candidates bred from the front.

An Optuna sampler for any number of objectives. Objectives that the domain knows (MACs, parameters, a table's latency) are
computed for every candidate; the others are modelled, each by its own Gaussian process. Candidates are the front's and its
neighbours' children (stage-wise crossover, mutations of one step) and fresh draws; the one with the largest expected hypervolume
improvement is proposed. Trials that still run count as done with what is predicted of them.

Conditional spaces are whole configurations here: a proposal is planned before the trial asks its first parameter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr, ndtri

from nasvit.results.front import non_dominated, ranks
from nasvit.search.domain import Domain, LearnedDomain
from nasvit.search.gaussian import GaussianProcess
from nasvit.search.improvement import expected_improvement, free_boxes

Array = NDArray[np.float64]
Params = Mapping[str, Any]

RUNG = "rung"
"""A trial's user attribute: the rung its values are from (1, 2, ..), 0 where it was rejected before it had any. None: the highest."""
INITIAL = 16
"""Trials drawn to cover the space before the model is asked."""
FEW = 4
"""With fewer trials within the limits, the next is the one most likely to keep them."""
EXPLORE = 0.15
"""Share of the later proposals that are drawn at random."""
BOLD = 3.0
"""Half of the proposals are chosen with deviations this many times the model's: a model is surest where it has never been."""
BRED, FRESH = 100, 50
"""Candidates of a proposal."""
CLIMBERS, CLIMBS = 6, 3
"""So many of the best candidates have all their neighbours looked at, so often in a row."""
AROUND = 24
"""Neighbours of one candidate that are looked at."""
PARENTS = 24
DRAWS = 16
"""Quantiles or draws that stand for the prediction of a modelled objective."""
REFIT = 0.06
"""The lengths of a model are fitted anew when its data have grown by this share."""
MARGIN = 0.1
"""The reference point lies this share of the front's range behind its worst values."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the finished trials say. x: (n, d) features; y: (n, m) minimised, by `signs` (m,); rung: (n,) share of the highest;
    params: of each; tried: (t, d) features of these and of the rejected; excess: (t,) constraint, above 0 where a limit is passed."""

    x: Array
    y: Array
    signs: Array
    rung: Array
    params: list[Params]
    tried: Array
    excess: Array


class SurrogateSampler(BaseSampler):
    """See the file's top. domain: what is known of the space; without one it is learned from the study's trials.

    Trials may carry the user attribute RUNG: values of lower rungs are then learned from as such, and predictions are made for the
    highest. All trials teach where limits are passed, those of rung 0 nothing else.
    """

    def __init__(self, *, seed: int, domain: Domain | None = None, initial: int = INITIAL) -> None:
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.domain = domain or LearnedDomain()
        self.initial = initial
        self._plans: dict[int, dict[str, Any]] = {}
        self._models: dict[int, tuple[GaussianProcess, int]] = {}  # objective -> model, and how many points its lengths were fitted on

    # ---- Optuna's side ----------------------------------------------------------------------------------------------------

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: names are known when they are asked."""
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Nothing: see `sample_independent`."""
        return {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Plan the whole configuration."""
        if not trial.system_attrs.get("fixed_params"):  # an enqueued trial has its plan
            plan = self.propose(study)
            if plan is not None:
                self._plans[trial.number] = dict(plan)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """The planned value, or a random one where the plan says nothing that fits."""
        value = self._plans.get(trial.number, {}).get(param_name)
        if value is not None and param_distribution._contains(param_distribution.to_internal_repr(value)):
            return value
        return optuna.samplers.RandomSampler(seed=self.rng.randrange(2**31)).sample_independent(
            study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """The plan is done with."""
        self._plans.pop(trial.number, None)

    # ---- choosing ---------------------------------------------------------------------------------------------------------

    def propose(self, study: Study) -> Params | None:
        """The next configuration, never one that the study has; None while nothing is known of the space."""
        trials = study.get_trials(deepcopy=False)
        if isinstance(self.domain, LearnedDomain):
            self.domain.learn(trials)
        seen = {_key(t.params) for t in trials if t.params} | {_key(plan) for plan in self._plans.values()}
        evidence = self._evidence(study, trials)
        early = len(evidence.tried) < self.initial
        if early or self.rng.random() < EXPLORE:
            return self._spread(evidence, seen, early=early)
        if len(evidence.x) < FEW:
            return self._allowed(evidence, seen)
        running = [t.params for t in trials if t.state == TrialState.RUNNING and t.params]
        return self._best(evidence, running, seen) or self._spread(evidence, seen, early=False)

    def _evidence(self, study: Study, trials: Sequence[FrozenTrial]) -> Evidence:
        signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in study.directions])
        tried = [t for t in trials if t.state == TrialState.COMPLETE and t.params and np.all(np.isfinite(t.values))]
        done = [t for t in tried if t.user_attrs.get(RUNG) != 0 and max(t.constraints.values(), default=0.0) <= 0]
        top = max((int(t.user_attrs.get(RUNG, 1)) for t in done), default=1)
        return Evidence(
            x=self.inputs([t.params for t in done]), signs=signs,
            y=np.array([t.values for t in done], dtype=float).reshape(len(done), len(signs)) * signs,
            rung=np.array([int(t.user_attrs.get(RUNG, top)) / top for t in done]), params=[t.params for t in done],
            tried=self.inputs([t.params for t in tried]), excess=np.array([max(t.constraints.values(), default=-1.0) for t in tried]))

    def _spread(self, evidence: Evidence, seen: set[Any], *, early: bool) -> Params | None:
        """A fresh configuration: at random; early on every second time the one of several draws that lies farthest from all others (the
        farthest are rarely small, so not every time)."""
        far = early and len(evidence.tried) % 2 == 1
        drawn = self._fresh(32 if far else 1, seen)
        if not drawn or not far:
            return drawn[0] if drawn else None
        x = self.inputs(drawn)
        gaps = ((x[:, None, :] - evidence.tried[None, :, :]) ** 2).sum(-1).min(axis=1)
        return drawn[int(gaps.argmax())]

    def _allowed(self, evidence: Evidence, seen: set[Any]) -> Params | None:
        """The fresh configuration that passes the limits least: hardly any has kept them so far."""
        drawn = self._fresh(FRESH, seen)
        if not drawn:
            return None
        passing = self.model(-1, evidence.tried, np.arcsinh(4 * evidence.excess)).predict(self.inputs(drawn))[0]
        return drawn[int(passing.argmin())]

    def _fresh(self, count: int, seen: set[Any]) -> list[Params]:
        found: dict[Any, Params] = {}
        for _ in range(4 * count + 20):
            params = self.domain.sample(self.rng)
            if params is None or len(found) >= count:
                break
            if _key(params) not in seen:
                found[_key(params)] = params
        return list(found.values())

    def _best(self, evidence: Evidence, running: Sequence[Params], seen: set[Any]) -> Params | None:
        judge = _Judge(self, evidence, running)
        pool = {_key(p): p for p in (*self._bred(evidence, seen), *self._fresh(FRESH, seen))}
        if not pool:
            return None
        candidates = list(pool.values())
        scores = judge(candidates)
        for _ in range(CLIMBS):  # uphill from the best ones, by single changes
            order = np.argsort(-scores)[:CLIMBERS]
            near = {}
            for i in order:
                for params in self._around(candidates[i]):
                    key = _key(params)
                    if key not in pool and key not in seen:
                        near[key] = params
            if not near:
                break
            pool |= near
            more = judge(list(near.values()))
            best_before = scores.max()
            candidates, scores = candidates + list(near.values()), np.concatenate([scores, more])
            if more.max() <= best_before:
                break
        return candidates[int(scores.argmax())]

    def _around(self, params: Params) -> list[Params]:
        """Every configuration one change away; of very many a sample."""
        changes = [(name, value) for name, old in params.items() for value in self.domain.neighbours(name, old)]
        changes = changes if len(changes) <= AROUND else self.rng.sample(changes, AROUND)
        made = (self.domain.complete({**params, name: value}, self.rng) for name, value in changes)
        return [p for p in made if p is not None]

    def _bred(self, evidence: Evidence, seen: set[Any]) -> list[Params]:
        """Children of the best: stage-wise crossover, then a few mutations by one step."""
        parents = [evidence.params[i] for i in np.argsort(ranks(evidence.y), kind="stable")[:PARENTS]]
        children: dict[Any, Params] = {}
        for _ in range(2 * BRED):
            if len(children) >= BRED:
                break
            child = dict(self.rng.choice(parents))
            if self.rng.random() < 0.5:
                other = self.rng.choice(parents)
                groups = sorted({_stage(n) for n in (*child, *other)})
                taken = {g for g in groups if self.rng.random() < 0.5}
                child = {n: v for n, v in child.items() if _stage(n) not in taken} | {n: v for n, v in other.items() if _stage(n) in taken}
            for _ in range(self.rng.choice((0, 1, 1, 2, 3))):
                name = self.rng.choice(sorted(child))
                options = self.domain.neighbours(name, child[name])
                if options:
                    child[name] = self.rng.choice(list(options))
            whole = self.domain.complete(child, self.rng)
            if whole is not None and _key(whole) not in seen:
                children[_key(whole)] = whole
        return list(children.values())

    def inputs(self, configurations: Sequence[Params]) -> Array:
        """(n, d): the domain's features, and the logarithms of the objectives it knows."""
        rows = []
        for params in configurations:
            known = self.domain.known(params)
            rows.append([*self.domain.features(params), *(math.asinh(100 * known[j]) / 4 for j in sorted(known))])
        return np.array(rows, dtype=float)

    def model(self, objective: int, x: Array, y: Array) -> GaussianProcess:
        """The process of an objective (-1: of the constraints), conditioned on the data; lengths fitted anew only now and then."""
        process, fitted = self._models.get(objective, (GaussianProcess(), 0))
        again = len(y) >= fitted * (1 + REFIT) or process.theta is None or len(process.theta) != x.shape[1] + 2
        process.fit(x, y, steps=12 if again else 0)
        self._models[objective] = (process, len(y) if again else fitted)
        return process


class _Scale:
    """From a minimised objective to what is modelled: its logarithm where values are positive and span a factor of 4. A `score`
    (an objective to maximise) has its bad end cut at as far behind the middle as the good end lies before it, because how bad the
    worst are says nothing about the front; of a cost nothing is cut, or the dearest would seem cheaper than they are."""

    def __init__(self, y: Array, *, score: bool) -> None:
        self.log = bool(y.min() > 0 and y.max() > 4 * y.min())
        low, middle = np.quantile(np.log(y) if self.log else y, [0.05, 0.5])
        self.worst = middle + max(middle - low, 1e-12) if score else np.inf

    def forward(self, y: Array) -> Array:
        return np.asarray(np.minimum(np.log(y) if self.log else y, self.worst))

    def back(self, z: Array) -> Array:
        return np.exp(z) if self.log else z


class _Judge:
    """Expected hypervolume improvement of configurations, given the evidence and what still runs."""

    def __init__(self, sampler: SurrogateSampler, evidence: Evidence, running: Sequence[Params]) -> None:
        self.domain, self.inputs, self.signs = sampler.domain, sampler.inputs, evidence.signs
        self.rungs = len(set(evidence.rung)) > 1
        objectives = range(len(self.signs))
        known = self.domain.known(evidence.params[0])
        self.scales = {j: _Scale(evidence.y[:, j], score=self.signs[j] < 0) for j in objectives if j not in known}
        inputs = np.column_stack([evidence.x, evidence.rung]) if self.rungs else evidence.x
        self.models = {j: sampler.model(j, inputs, scale.forward(evidence.y[:, j])) for j, scale in self.scales.items()}
        self.limits = sampler.model(-1, evidence.tried, np.arcsinh(4 * evidence.excess)) if (evidence.excess > 0).any() else None
        spread = ndtri((np.arange(DRAWS) + 0.5) / DRAWS)
        bold = sampler.rng.choice((1.0, BOLD))
        self.draws = {j: bold * sampler.numbers.permutation(spread) for j in self.scales}

        points = self._believed(evidence)
        if running:
            points = np.vstack([points, self._predict(running).mean(axis=1)])
        # networks that are cheap and know nothing would take the whole budget: what is worse than three quarters of the first, spread
        # trials is no part of the front for one half of the proposals, what is worse than half way to their worst for the other
        useful = np.full(len(self.signs), np.inf)
        for j in (j for j in self.scales if self.signs[j] < 0):
            first = evidence.y[: max(FEW, sampler.initial), j]
            useful[j] = sampler.rng.choice((np.quantile(first, 0.75), (np.median(first) + first.max()) / 2))
        front = points[non_dominated(points)]
        within = front[np.all(front <= useful, axis=1)]
        front = within if len(within) else front
        self.low = front.min(axis=0)
        self.span = np.where(np.ptp(front, axis=0) > 0, np.ptp(front, axis=0), np.maximum(np.abs(self.low), 1e-9) * 0.1)
        reference, ideal = np.full(len(self.signs), 1 + MARGIN), np.full(len(self.signs), -1.0)
        self.boxes = free_boxes((front - self.low) / self.span, reference, ideal)

    def _believed(self, evidence: Evidence) -> Array:
        """The finished trials' objectives; of those stopped at a lower rung, what the model makes of them at the top."""
        points, low = evidence.y.copy(), evidence.rung < 1
        for j, model in self.models.items() if low.any() else ():
            points[low, j] = self.scales[j].back(model.predict(self._at_top(evidence.x[low]))[0])
        return points

    def _at_top(self, x: Array) -> Array:
        return np.column_stack([x, np.ones(len(x))]) if self.rungs else x

    def _predict(self, candidates: Sequence[Params]) -> Array:
        """(c, s, m) draws of the minimised objectives; known ones are the same in all."""
        x = self.inputs(candidates)
        draws = np.zeros((len(x), DRAWS, len(self.signs)))
        for i, params in enumerate(candidates):
            for j, value in self.domain.known(params).items():
                draws[i, :, j] = value * self.signs[j]
        for j, model in self.models.items():
            mean, deviation = model.predict(self._at_top(x))
            draws[:, :, j] = self.scales[j].back(mean[:, None] + deviation[:, None] * self.draws[j])
        return draws

    def __call__(self, candidates: Sequence[Params]) -> Array:
        """(c,) the expected improvement, times the probability of keeping the limits."""
        gain = expected_improvement((self._predict(candidates) - self.low) / self.span, *self.boxes)
        if self.limits is not None:
            mean, deviation = self.limits.predict(self.inputs(candidates))
            gain = gain * ndtr(-mean / deviation)
        return gain


def _key(params: Params) -> frozenset[tuple[str, Any]]:
    return frozenset(params.items())


def _stage(name: str) -> str:
    """The group of a parameter that crossover takes whole: what stands before the first dot of its path."""
    return name.split(".", 1)[0]
