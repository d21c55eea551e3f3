"""nasvit's own sampler: a Gaussian process on what training alone can tell, everything else computed, one proposal at a time the one
that is expected to add most hypervolume.

An Optuna sampler for any number of objectives. Objectives that the domain knows (a table's latency) are computed for every
candidate; those known about (a latency predictor's) are modelled as a multiple of what is guessed; the others are modelled. Where the
space is small every configuration is a candidate, else they are bred from the front (`candidates`). Trials that still run count
as done with what is predicted of them.

Conditional spaces are whole configurations here: a proposal is planned before the trial asks its first parameter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nasvit.results.front import non_dominated, ranks
from nasvit.search.acquisition import SHORT, Judge, Modelled, believed, useful_quality, which_is_quality
from nasvit.search.candidates import Batch, Inputs, Key, around, bred, fresh, key
from nasvit.search.distributions import holds
from nasvit.search.domain import Domain, LearnedDomain, Params
from nasvit.search.evidence import Evidence, evidence_of, unknown
from nasvit.search.gaussian import LITTLE_NOISE, GaussianProcess
from nasvit.search.one_thread import OneThread, one_at_a_time
from nasvit.search.telling import Columns, telling
from nasvit.search.tried import Tried, configurations
from nasvit.search.warp import warp_for

Array = NDArray[np.float64]

FEW = 4
"""With fewer trials within the limits, the next is the one most likely to keep them."""
EXPLORE = 0.05
"""Share of the later proposals that are drawn at random."""
WHOLE = 20_000
"""A space of no more configurations is listed whole."""
BRED, FRESH = 30, 10
"""New candidates of a proposal in any other space, beside the survivors; five times as many while there are none."""
SURVIVORS = 300
"""So many of the best candidates of a proposal are candidates of the next."""
CLIMBERS, CLIMBS = 3, 2
"""So many of the best candidates have neighbours looked at, so often in a row."""
REFIT = 0.06
"""The lengths of a model are fitted anew when its data have grown by this share."""
STOCK = 32
"""While so many trials run, two proposals are planned with one look at the models, three with twice as many, ..: what a proposal does not
know for it is a thirtieth of what it does not know anyway."""
SCORED = 8
"""So many of the best candidates are given their zero-cost scores, where there are any, and are compared again."""
FAR = 24
"""Of so many drawn configurations, or a fourth of them in each class of cost, the one farthest from all trials is an initial one."""


class SurrogateSampler(BaseSampler):
    """See the file's top. domain: what is known of the space; without one it is learned from the study's trials.

    `study.optimize(n_jobs=..)` may ask it from several threads. Trials asked before a first one has told which parameters there are, are
    drawn blindly and may repeat each other; later ones repeat nothing.

    Trials may carry the user attribute RUNG: values of lower rungs are then learned from as such, best with LOWER, what each trial had at
    the rungs below, and predictions are made for the highest. All trials teach where limits are passed, those of rung 0 nothing else.
    """

    def __init__(self, *, seed: int, domain: Domain | None = None, initial: int | None = None) -> None:
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.domain = domain or LearnedDomain()
        self.initial = self.domain.initial if initial is None else initial
        self._strata = self.rng.sample(range(self.initial), self.initial)
        self._thread = OneThread()
        self._of: tuple[str, ...] = ()  # the study's name and directions
        self._begin()

    def _begin(self) -> None:
        """Know nothing of any study."""
        if isinstance(self.domain, LearnedDomain):
            self.domain.forget()
        self._plans: dict[int, Params] = {}
        self._models: dict[int, tuple[GaussianProcess, int]] = {}  # objective -> model, and how many points its lengths were fitted on
        self._inputs: Inputs | None = None
        self._whole: Batch | None = None  # every configuration, where they are few
        self._places: dict[Key, int] = {}
        self._survivors: dict[Key, Params] = {}
        self._stock: list[Params] = []  # proposals that are planned and not asked for yet
        self._seen = Tried()
        self._known_of = -1  # what the domain had learned when the inputs were made

    # ---- Optuna's side ----------------------------------------------------------------------------------------------------

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: names are known when they are asked."""
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Nothing: see `sample_independent`."""
        return {}

    @one_at_a_time
    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Plan the whole configuration."""
        self._turn_to(study, begins=trial.number == 0)
        if not trial.system_attrs.get("fixed_params"):  # an enqueued trial has its plan
            plan = self.propose(study)
            if plan is not None:
                self._plans[trial.number] = plan
                self._seen[key(plan)] = None

    @one_at_a_time
    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """The planned value, or a random one where the plan says nothing that fits."""
        plan = self._plans.get(trial.number, {})
        if param_name in plan and holds(param_distribution, plan[param_name]):
            return plan[param_name]
        return optuna.samplers.RandomSampler(seed=self.rng.randrange(2**31)).sample_independent(
            study, trial, param_name, param_distribution)

    @one_at_a_time
    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """The plan is done with."""
        self._plans.pop(trial.number, None)

    # ---- choosing ---------------------------------------------------------------------------------------------------------

    def propose(self, study: Study) -> Params | None:
        """The next configuration, never one that the study has; None while nothing is known of the space."""
        self._turn_to(study)
        if self._stock:
            plan = self._next(self._seen)
            if plan is not None:
                return plan
        trials = study.get_trials(deepcopy=False)
        inputs = self._understand(study, trials)
        if inputs is None:
            return None
        seen = self._seen
        keys = seen.take(trials, self.domain)
        evidence = evidence_of(trials, keys, inputs)
        if len(evidence.tried) < self.initial:
            begun = configurations(trials, (TrialState.COMPLETE, TrialState.RUNNING), plans=self._plans, domain=self.domain)
            return self._spread(inputs.batch(begun), seen)
        if self.rng.random() < EXPLORE:
            return self._drawn(seen)
        if len(evidence.done) < FEW:
            return self._allowed(evidence, seen)
        running = inputs.batch(configurations(trials, (TrialState.RUNNING,), plans=self._plans, domain=self.domain))
        self._stock = self._best(evidence, running, seen, count=1 + len(self._plans) // STOCK)
        return self._stock.pop(0) if self._stock else self._drawn(seen)

    def _next(self, seen: Collection[Key]) -> Params | None:
        """The next of the stock, or in its turn a random one."""
        if self.rng.random() < EXPLORE:
            return self._drawn(seen)
        while self._stock:
            plan = self._stock.pop(0)
            if key(plan) not in seen:
                return plan
        return None

    def _drawn(self, seen: Collection[Key]) -> Params | None:
        drawn = fresh(self.domain, 1, seen=seen, rng=self.rng)
        if not drawn and self._whole is not None:  # of the few that are left, which draws miss
            left = [i for k, i in self._places.items() if k not in seen]
            return self._whole.params[self.rng.choice(left)] if left else None
        return next(iter(drawn), None)

    def _turn_to(self, study: Study, *, begins: bool = False) -> None:
        """Nothing stays of another study, be it of the same name, which shows where a first trial `begins` and some were seen."""
        of = (study.study_name, *(d.name for d in study.directions))
        if of != self._of or (begins and self._seen):
            self._of = of
            self._begin()

    def _understand(self, study: Study, trials: Sequence[FrozenTrial]) -> Inputs | None:
        """What models are given, made anew when the domain has learned of further parameters or costs; None while it knows no parameter."""
        if isinstance(self.domain, LearnedDomain):
            self.domain.learn(trials)
            if not self.domain.learned:
                return None
        learned = self.domain.learned
        if self._inputs is None or learned != self._known_of:
            before = [] if self._inputs is None else self._inputs.groups
            self._inputs, self._known_of = Inputs(domain=self.domain, signs=_signs(study), rng=random.Random(self.rng.random())), learned
            if self._inputs.groups != before:  # lengths of the same columns are worth keeping
                self._models.clear()
            self._survivors.clear()
            everything = self.domain.everything(WHOLE)
            self._whole = None if everything is None else self._inputs.batch(everything).watched()
            self._places = {} if everything is None else {key(p): i for i, p in enumerate(everything)}
        return self._inputs

    def _spread(self, begun: Batch, seen: Collection[Key]) -> Params | None:
        """A fresh configuration that covers the space: from each class of cost, or of size, one, far from what was tried; where nothing is
        known of either, every second one is drawn blindly (the farthest are rarely small)."""
        assert self._inputs is not None
        if len(begun) >= 4 * self.initial:  # so many workers that they cover the space anyhow
            return self._drawn(seen)
        drawn = fresh(self.domain, FAR * max(self.initial // 4, 1), seen=seen, rng=self.rng)
        if not drawn:
            return None
        batch = self._inputs.batch(drawn)
        sizes = self._sizes(batch)
        turn = len(begun)
        if sizes is not None:
            order = np.argsort(sizes, kind="stable")
            place = self._strata[turn % self.initial]
            low, high = (len(order) * (place + k) // self.initial for k in (0, 1))
            batch = batch.part(order[low : max(high, low + 1)])
        elif turn % 2 == 0:
            return drawn[0]
        else:
            batch = batch.part(np.arange(min(FAR, len(batch))))
        if not turn:
            return batch.params[0]
        gaps = ((batch.x[:, None, :] - begun.x[None, :, :]) ** 2).sum(-1).min(axis=1)
        return batch.params[int(gaps.argmax())]

    def _sizes(self, batch: Batch) -> Array | None:
        """(n,) the first of the costs that are known or guessed, else the domain's sizes; None without either."""
        costs = np.where(np.isnan(batch.known), batch.guess, batch.known)
        there = ~np.isnan(costs).any(axis=0)
        if there.any():
            return np.asarray(costs[:, np.flatnonzero(there)[0]])
        sizes = [self.domain.size(params) for params in batch.params]
        return None if None in sizes else np.array(sizes, dtype=float)

    def _allowed(self, evidence: Evidence, seen: Collection[Key]) -> Params | None:
        """The fresh configuration that passes the limits least: hardly any has kept them so far."""
        assert self._inputs is not None
        drawn = fresh(self.domain, FRESH, seen=seen, rng=self.rng)
        if not drawn:
            return None
        passing = self._model(-1, evidence.tried.x, evidence.strain).predict(self._inputs.batch(drawn).x)[0]
        return drawn[int(passing.argmin())]

    def judge(self, evidence: Evidence, running: Batch) -> Judge:
        """Models of all that is not known, and where improvement counts."""
        assert self._inputs is not None
        m, models = evidence.y.shape[1], unknown(evidence.done)
        quality = which_is_quality(self._inputs.signs, models)
        modelled = {}
        for j in models:
            y, guess = evidence.y[:, j], evidence.done.guess[:, j]
            warp = warp_for(y, guess, quality=j == quality)
            noise, doubt = (self.domain.noise, evidence.doubt) if j == quality else (LITTLE_NOISE, None)
            modelled[j] = Modelled(process=self._model(j, evidence.done.x, warp.forward(y, guess), noise=noise, doubt=doubt), warp=warp)
        limits = self._model(-1, evidence.tried.x, evidence.strain) if (evidence.excess > 0).any() else None
        points = believed(evidence.y, evidence.rung, evidence.done, modelled, quality)
        seen = np.where(evidence.rung[:, None] < 1, points, evidence.y)  # whether a cheap trial was worth it is a matter of record
        useful = np.inf if quality is None or m == 1 or self.domain.all_useful else useful_quality(
            seen[:, quality], non_dominated(seen), first=max(FEW, self.initial), chance=self.rng.random())
        return Judge(points=points, modelled=modelled, quality=quality, limits=limits, useful=useful, running=running, rng=self.numbers)

    def _best(self, evidence: Evidence, running: Batch, seen: Collection[Key], *, count: int) -> list[Params]:
        """The `count` best candidates, each as if those before it were running; fewer where there are no more."""
        assert self._inputs is not None
        judge = self.judge(evidence, running)
        if self._whole is not None:
            judge.aim(self._whole)
            open_ = np.ones(len(self._whole), dtype=bool)
            open_[[self._places[k] for k in seen if k in self._places]] = False
            batch = self._whole.part(judge.shortlist(self._whole, open_=open_))
            gains = judge(batch)
        else:
            candidates, gains = self._climbed(judge, evidence, seen)
            batch = self._inputs.batch(candidates)
        if count > 1:
            order = np.argsort(-gains, kind="stable")[:SHORT]
            batch, gains = batch.part(order).watched(), gains[order]
        second = self._second(judge, evidence, like=batch.params[int(gains.argmax())]) if len(batch) else None
        taken: list[int] = []
        while len(taken) < min(count, len(batch)):
            if taken:
                judge.believe(batch.part(np.array(taken[-1:])))
                gains = judge(batch)
                gains[taken] = -np.inf
            best = np.argsort(-gains, kind="stable")[: min(SCORED, len(batch) - len(taken))]
            if second is not None:
                running_too = [*running.params, *(batch.params[i] for i in taken)]
                best = best[np.argsort(-second(judge, batch.part(best), running_too), kind="stable")]
            taken.append(int(best[0]))
        return [batch.params[i] for i in taken]

    def _second(self, judge: Judge, evidence: Evidence, *, like: Params) -> Callable[[Judge, Batch, Sequence[Params]], Array] | None:
        """What candidates are worth, beside running ones, by a model that is given zero-cost scores too; None where candidates `like` this
        one have none, or they say nothing."""
        q, inputs = judge.quality, self._inputs
        if q is None or not self.domain.scores(like):
            return None
        assert inputs is not None
        rows = [self.domain.scores(p) for p in evidence.done.params]
        columns = Columns.of(rows)
        chosen = telling(columns(rows), judge.points[: len(rows), q], evidence.done.x[:, inputs.costs])
        if not chosen:
            return None

        def scored(part: Batch) -> Batch:
            return part.beside(columns([self.domain.scores(p) for p in part.params])[:, chosen])

        warp, x = judge.modelled[q].warp, scored(evidence.done).x
        first = max(inputs.groups) + 1
        process = GaussianProcess(groups=[*inputs.groups, *range(first, first + len(chosen))], noise_prior=self.domain.noise)
        start = judge.modelled[q].process.theta
        assert start is not None
        process.theta = np.concatenate([start[:-2], np.full(len(chosen), start[:-2].mean()), start[-2:]])
        process.fit(x, warp.forward(evidence.y[:, q], evidence.done.guess[:, q]), steps=6, doubt=evidence.doubt)
        return lambda judge, batch, running: judge.with_quality(process, running=scored(inputs.batch(running)))(scored(batch))

    def _climbed(self, judge: Judge, evidence: Evidence, seen: Collection[Key]) -> tuple[list[Params], Array]:
        """Bred and fresh candidates and what is uphill from the best of them by single changes, with what each is worth."""
        assert self._inputs is not None
        parents = [evidence.done.params[i] for i in np.argsort(ranks(judge.points[: len(evidence.y)]), kind="stable")]
        drawn = fresh(self.domain, FRESH if self._survivors else 5 * FRESH, seen=seen, rng=self.rng)
        pool = {k: p for k, p in self._survivors.items() if k not in seen} | {key(p): p for p in (*self._bred(parents, seen), *drawn)}
        if not pool:
            return [], np.empty(0)
        candidates = list(pool.values())
        batch = self._inputs.batch(candidates, keys=list(pool))
        judge.aim(batch)
        scores = judge(batch)
        for _ in range(CLIMBS):
            near = {key(p): p for i in np.argsort(-scores)[:CLIMBERS] for p in self._around(candidates[i])}
            near = {k: p for k, p in near.items() if k not in pool and k not in seen}
            if not near:
                break
            pool |= near
            before = scores.max()
            scores = np.concatenate([scores, judge(self._inputs.batch(list(near.values()), keys=list(near)))])
            candidates += near.values()
            if scores.max() <= before:
                break
        keys = list(pool)  # in the candidates' order
        self._survivors = {keys[i]: candidates[i] for i in np.argsort(-scores, kind="stable")[:SURVIVORS]}
        return candidates, scores

    def _bred(self, parents: Sequence[Params], seen: Collection[Key]) -> list[Params]:
        return bred(self.domain, parents, BRED if self._survivors else 5 * BRED, seen=seen, rng=self.rng)

    def _around(self, params: Params) -> list[Params]:
        return around(self.domain, params, rng=self.rng)

    @one_at_a_time
    def expected_gain(self, study: Study, *, proposals: int) -> float | None:
        """The hypervolume that the next `proposals` are expected to add, as a share of the front's; None before the models are asked.

        Each is taken for evaluated, as it is predicted, before the next one is chosen.
        """
        self._turn_to(study)
        trials = study.get_trials(deepcopy=False)
        inputs = self._understand(study, trials)
        seen = self._seen
        keys = seen.take(trials, self.domain)
        evidence = None if inputs is None else evidence_of(trials, keys, inputs)
        if inputs is None or evidence is None or len(evidence.tried) < self.initial or len(evidence.done) < FEW:
            return None
        judge = self.judge(evidence, inputs.batch([]))
        if self._whole is not None:
            judge.aim(self._whole)
            open_ = np.array([k not in seen for k in self._places])
            batch = self._whole.part(judge.shortlist(self._whole, open_=open_))
        else:
            batch = inputs.batch(self._climbed(judge, evidence, seen)[0])
        if not len(batch):
            return 0.0
        assert judge.goal is not None
        before, gained = judge.goal.volume, 0.0
        for _ in range(min(proposals, len(batch))):
            scores = judge(batch)
            best = int(scores.argmax())
            gained += float(scores[best])
            judge.believe(batch.part(np.array([best])))
            batch = batch.part(np.delete(np.arange(len(batch)), best))
        return gained / before if before > 0 else None

    def _model(self, objective: int, x: Array, y: Array, *, noise: tuple[float, float] = LITTLE_NOISE,
               doubt: Array | None = None) -> GaussianProcess:
        """The process of an objective (-1: of the constraints), conditioned on the data; lengths fitted anew only now and then."""
        assert self._inputs is not None
        process, fitted = self._models.get(objective, (GaussianProcess(groups=self._inputs.groups, noise_prior=noise), 0))
        again = len(y) >= fitted * (1 + REFIT) or process.theta is None
        process.fit(x, y, steps=12 if again else 0, doubt=doubt)
        self._models[objective] = (process, len(y) if again else fitted)
        return process


def expected_gain(study: Study, *, proposals: int) -> float | None:
    """The share of its front's hypervolume that a study's next proposals are expected to add; None where its sampler cannot tell."""
    return study.sampler.expected_gain(study, proposals=proposals) if isinstance(study.sampler, SurrogateSampler) else None


def _signs(study: Study) -> Array:
    return np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in study.directions])
