"""What a model-based sampler can know of a search space beyond names and values: drawing, completing, features, known objectives.

`LearnedDomain` knows only what a study's own trials show, so it serves any study of categorical, ordinal and numeric parameters;
`ArchDomain` knows a SearchSpace, its encoding, and what an architecture costs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from nasvit.arch import Arch
from nasvit.errors import ArchError
from nasvit.models.estimate import estimate
from nasvit.search.distributions import at_share, next_to, ordered, share_of, thinned, values_of, widened
from nasvit.search.gaussian import LITTLE_NOISE, MUCH_NOISE
from nasvit.space import SearchSpace
from nasvit.space.memory import Configuration, StageMemory

Params = Mapping[str, Any]
Known = Callable[[Params], Mapping[int, float]]
Costs = Callable[[Arch], Mapping[str, float]]

INITIAL, INITIAL_TRAINED = 10, 20
"""Trials spread over the space before a model is asked; where trainings are short and tell little of a single network."""
RUNG, LOWER = "rung", "lower"
"""A trial's user attributes: the rung its values are from (1, 2, ..), 0 where it was rejected before it had any, None for the highest; and
its values at the rungs below, a list for each, the lowest first."""

RANK: Any = object()
"""In place of a value: the column holds a parameter's rank, not whether it has this value (which may be None)."""


class Domain(Protocol):
    """What the surrogate sampler asks of a space. Parameters are Optuna's external values, by name.

    all_useful: whether every configuration is a network that computes something. Where some are not (a table's cells without a path), cheap
    configurations of no quality would take the trials; where all are, the cheap end of the front is as good as the other.
    noise: what is believed beforehand of the noise in what training decides: LITTLE_NOISE or MUCH_NOISE.
    initial: trials spread over the space before a model is asked.
    moot: names that trials have and configurations have not: their values follow from the others.
    unsure: names that configurations always have and trials do not.
    """

    all_useful: bool
    noise: tuple[float, float]
    initial: int
    moot: frozenset[str]
    unsure: frozenset[str]

    @property
    def learned(self) -> int:
        """Another number where features, known objectives or guesses are no longer what they were."""

    def sample(self, rng: random.Random) -> Params | None:
        """A configuration drawn at random; None while too little is known."""

    def complete(self, params: Params, rng: random.Random) -> Params | None:
        """The nearest whole configuration: names without a meaning dropped, missing ones drawn. None where there is none."""

    def neighbours(self, name: str, value: Any) -> Sequence[Any]:
        """Other values of a parameter: the next ones where values are ordered, all others where they are not."""

    def everything(self, most: int) -> Sequence[Params] | None:
        """Every configuration, if they are known and no more than `most`."""

    def features(self, params: Params) -> Sequence[float]:
        """Numbers of about unit range, always as many."""

    def groups(self) -> Sequence[int]:
        """For each feature the number (0, 1, ..) of what it describes together with others: a parameter, a tally."""

    def known(self, params: Params) -> Mapping[int, float]:
        """Objectives known without a trial, by index, in the study's units."""

    def guess(self, params: Params) -> Mapping[int, float]:
        """Objectives known about, as by a predictor: positive, by index, in the study's units, the same ones for every configuration."""

    def size(self, params: Params) -> float | None:
        """What most costs grow with, to begin with small and large configurations; None for all where there is no such thing."""

    def scores(self, params: Params) -> Mapping[str, float]:
        """Scores that cost something to compute, by name: asked for trials and for short lists alone."""


class Guesses(Protocol):
    """What is known about an Arch's costs, such as a latency predictor that a search teaches."""

    def learned(self) -> int:
        """How much `medians` rests on; only here may it become another function. 0 while it gives nothing."""

    def medians(self, arch: Arch) -> Mapping[str, float]:
        """Costs by name, of an Arch that was measured what the others say of it: always the same names."""


class LearnedDomain:
    """A domain learned from a study's trials: names, values, and on which value of which other parameter a name hangs.

    `known`: what the caller knows of objectives exactly, `guess`: about. Parameters with the same values, as the operations of
    several edges, also count together: how often each value was taken.
    """

    all_useful = False  # a stranger's space may have anything in it
    noise = LITTLE_NOISE
    initial = INITIAL

    def __init__(self, known: Known | None = None, *, guess: Known | None = None) -> None:
        self._known, self._guess = known, guess
        self.forget()

    def forget(self) -> None:
        """Nothing is known of the space, as before a study's first trial."""
        self._taken: set[int] = set()  # numbers of trials
        self._asked: dict[str, BaseDistribution] = {}  # in the order of asking, as far as trials agree; ranges as wide as they were
        self._chosen: set[str] = set()  # names that ever had more than one value to choose from
        self._order: dict[str, BaseDistribution] = {}  # those of `_asked` that are not moot
        self.moot: frozenset[str] = frozenset()  # names with one value in each trial and not the same
        self.unsure: frozenset[str] = frozenset()  # names that some trials lack, nothing explains why
        self._configurations: list[Params] = []
        self._conditions: dict[str, tuple[str, frozenset[Any]] | None] = {}
        self._values: dict[str, tuple[Any, ...]] = {}
        self._ordered: set[str] = set()
        self._columns: list[tuple[str, Any]] = []
        self._tallies: list[tuple[list[str], tuple[Any, ...]]] = []  # names of the same values, and these
        self.learned = 0  # grows with the names and with what they hang on

    def learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in what the trials since the last call asked. Those that run may be in the midst of asking, those that failed have ended
        there: only where no other is there yet, they show as much as they show (`known` and `guess` may need the rest, and wait)."""
        new = [t for t in trials if t.params and t.state == TrialState.COMPLETE and t.number not in self._taken]
        order = self._order
        if not self._taken:
            self._asked, self._chosen, self._configurations = {}, set(), []
            new = new or [t for t in trials if t.params and self._known is None and self._guess is None]
        self._taken.update(t.number for t in new if t.state == TrialState.COMPLETE)
        for trial in new:
            self._asked |= {n: widened(self._asked.get(n, d), d) for n, d in trial.distributions.items()}
            self._chosen |= {n for n, d in trial.distributions.items() if not d.single()}
            self._configurations.append(trial.params)
        self.moot = frozenset(n for n, d in self._asked.items() if n not in self._chosen and not d.single())
        self._order = {n: d for n, d in self._asked.items() if n not in self.moot}
        before = self._conditions, self.unsure
        if new:
            shown = self._configurations
            if self.moot:  # a value that is each trial's own would explain everything
                shown = [{n: v for n, v in c.items() if n not in self.moot} for c in shown]
            self._conditions = {name: _condition(name, shown) for name in self._order}
            self.unsure = frozenset(n for n, c in self._conditions.items() if c is None and any(n not in params for params in shown))
        if list(self._order.items()) != list(order.items()):
            self._values = {name: values_of(d) for name, d in self._order.items()}
            self._ordered = {name for name, d in self._order.items() if not isinstance(d, CategoricalDistribution)}
            self._columns = [column for name in sorted(self._order)
                             for column in _columns(name, self._values[name], categories=name not in self._ordered)]
            self._tallies = _tallies(self._values)
        self.learned += (self._conditions, self.unsure) != before or self._order != order

    def sample(self, rng: random.Random) -> Params | None:
        return self.complete({}, rng)

    def complete(self, params: Params, rng: random.Random) -> Params | None:
        """Every name whose condition holds, parents before children; what no condition explains is always there."""
        whole: dict[str, Any] = {}
        waiting = list(self._order)
        while waiting:
            ready = [n for n in waiting if (c := self._conditions[n]) is None or c[0] in whole or c[0] not in waiting]
            for name in ready or waiting:
                condition = self._conditions[name]
                if condition is None or whole.get(condition[0]) in condition[1]:
                    whole[name] = params[name] if name in params else self._drawn(name, rng)
            waiting = [n for n in waiting if n not in ready] if ready else []
        return whole or None

    def _drawn(self, name: str, rng: random.Random) -> Any:
        """Any value of a range, not only those that `values_of` keeps."""
        distribution = self._order[name]
        return at_share(distribution, rng.random()) if thinned(distribution) else rng.choice(self._values[name])

    def neighbours(self, name: str, value: Any) -> Sequence[Any]:
        if name in self.moot:
            return ()
        distribution = self._order[name]
        if not thinned(distribution):
            return next_to(value, self._values[name], steps=name in self._ordered)
        here = share_of(distribution, value)
        near = [at_share(distribution, min(max(here + step, 0.0), 1.0)) for step in (-1 / 15, -1 / 60, 1 / 60, 1 / 15)]
        return [v for v in dict.fromkeys(near) if v != value]

    def everything(self, most: int) -> Sequence[Params] | None:
        """Where every name is always asked and no range was thinned out."""
        if not self._order or any(c is not None for c in self._conditions.values()) or any(thinned(d) for d in self._order.values()):
            return None
        if self.unsure:
            return None
        if math.prod(len(values) for values in self._values.values()) > most:
            return None
        names = list(self._values)
        return [dict(zip(names, values, strict=True)) for values in product(*self._values.values())]

    def features(self, params: Params) -> Sequence[float]:
        cells = [share_of(self._order[name], params[name]) if name in self._ordered and name in params
                 else _cell(params, self._values[name], name, value) for name, value in self._columns]
        for names, values in self._tallies:
            taken = [params[name] for name in names if name in params]
            cells += [sum(value == v for v in taken) / len(names) for value in values]
        return cells

    def groups(self) -> Sequence[int]:
        """A parameter's categories together; their ranks, which may mean nothing, one group for all parameters; each tally."""
        of = [("" if value is RANK and name not in self._ordered else name, value is RANK) for name, value in self._columns]
        places = {group: number for number, group in enumerate(dict.fromkeys(of))}
        numbers = [places[group] for group in of]
        return numbers + [len(places) + t for t, (_, values) in enumerate(self._tallies) for _ in values]

    def known(self, params: Params) -> Mapping[int, float]:
        return self._known(params) if self._known is not None else {}

    def guess(self, params: Params) -> Mapping[int, float]:
        return self._guess(params) if self._guess is not None else {}

    def size(self, params: Params) -> float | None:
        return None

    def scores(self, params: Params) -> Mapping[str, float]:
        return {}


class ArchDomain:
    """A SearchSpace: features are its encoding with the logarithms of estimated MACs and parameters.

    objectives: the study's, by name, in order. costs: those known exactly (a table's latency); guesses: those known about (a latency
    predictor's, in the objective's unit); scores: zero-cost scores by name. Any of them may name more than the study has.
    macs_g and params_m are always known about: an estimate that is one percent low, taken for exact, would make every
    candidate an improvement of one percent.
    """

    all_useful = True
    noise = MUCH_NOISE
    initial = INITIAL_TRAINED
    moot: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()

    def __init__(self, space: SearchSpace, *, objectives: Sequence[str] = (), costs: Costs | None = None, guesses: Guesses | None = None,
                 scores: Costs | None = None) -> None:
        self.space, self.objectives = space, tuple(objectives)
        self._costs, self._guesses, self._scores_of = costs, guesses, scores
        self._stages = StageMemory(space)
        self._made: dict[frozenset[tuple[str, Any]], Configuration] = {}  # lately: completing a configuration makes its Arch
        self._estimate = lru_cache(maxsize=16)(estimate)  # asked twice of each Arch, as a guess and as a feature
        self._scores = lru_cache(maxsize=5_000)(self._score)

    @property
    def learned(self) -> int:
        return 0 if self._guesses is None else self._guesses.learned()

    def _configuration(self, params: Params) -> Configuration:
        made = self._made.get(frozenset(params.items()))
        return self._stages.complete(params) if made is None else made

    def _score(self, items: frozenset[tuple[str, Any]]) -> Mapping[str, float]:
        return dict(self._scores_of(self._configuration(dict(items)).arch)) if self._scores_of is not None else {}

    def sample(self, rng: random.Random) -> Params | None:
        return self._whole(rng, {})

    def complete(self, params: Params, rng: random.Random) -> Params | None:
        return self._whole(rng, params)

    def _whole(self, rng: random.Random, params: Params) -> Params | None:
        for _ in range(10):
            try:
                made = self._stages.complete(params, rng=rng)
                if len(self._made) >= 2_000:
                    self._made.clear()
                self._made[frozenset(made.choices.items())] = made
                return made.choices
            except ArchError:  # a combination the space could not rule out
                continue
        return None

    def neighbours(self, name: str, value: Any) -> Sequence[Any]:
        values = self.space.values_of(name)
        return next_to(value, values, steps=ordered(values))

    def everything(self, most: int) -> Sequence[Params] | None:
        """Where the space is small: an Arch takes some tenths of a millisecond to complete and encode."""
        if self.space.size() > min(most, 1000):
            return None
        return [self.space.arch_parameters(arch) for arch in self.space.enumerate()]

    def features(self, params: Params) -> Sequence[float]:
        made = self._configuration(params)
        macs, count = self._estimate(made.arch)
        return (*made.code, math.log10(macs) / 3, math.log10(count) / 3)

    def groups(self) -> Sequence[int]:
        return range(len(self.space.encoding_names()) + 2)

    def known(self, params: Params) -> Mapping[int, float]:
        return self._by_index(self._costs(self._configuration(params).arch)) if self._costs is not None else {}

    def guess(self, params: Params) -> Mapping[int, float]:
        if not self.objectives:
            return {}
        exact, arch = self.known(params), self._configuration(params).arch
        macs, count = self._estimate(arch)
        about = {"macs_g": macs / 1e9, "params_m": count / 1e6, **(self._guesses.medians(arch) if self._guesses is not None else {})}
        return {j: value for j, value in self._by_index(about).items() if j not in exact}

    def size(self, params: Params) -> float | None:
        return self._estimate(self._configuration(params).arch)[0]

    def scores(self, params: Params) -> Mapping[str, float]:
        return self._scores(frozenset(params.items()))

    def _by_index(self, values: Mapping[str, float]) -> dict[int, float]:
        return {self.objectives.index(name): float(value) for name, value in values.items() if name in self.objectives}


def _condition(name: str, configurations: Sequence[Params]) -> tuple[str, frozenset[Any]] | None:
    """(parent, values): the name is asked where the parent has one of these; None where it is always asked or nothing explains it.

    Of several parents that would do, one of the same stage, then the one with the fewest values.
    """
    present = [c for c in configurations if name in c]
    absent = [c for c in configurations if name not in c]
    if not absent:
        return None
    found: dict[str, frozenset[Any]] = {}
    for parent in present[0]:
        if parent == name or not all(parent in c for c in present):
            continue
        values = frozenset(c[parent] for c in present)
        if not values & {c[parent] for c in absent if parent in c}:
            found[parent] = values
    if not found:
        return None
    best = max(found, key=lambda parent: (parent.split(".")[0] == name.split(".")[0], -len(found[parent])))
    return best, found[best]


def _tallies(values: Mapping[str, tuple[Any, ...]], *, least: int = 3) -> list[tuple[list[str], tuple[Any, ...]]]:
    """The sets of at least `least` names that have the same two or more values, at most 8."""
    same: dict[tuple[Any, ...], list[str]] = {}
    for name in sorted(values):
        same.setdefault(tuple((type(v), v) for v in values[name]), []).append(name)
    return [(names, values[names[0]]) for names in same.values() if len(names) >= least and 2 <= len(values[names[0]]) <= 8]


def _columns(name: str, values: Sequence[Any], *, categories: bool) -> list[tuple[str, Any]]:
    """A column for the rank where there is one, and one for each value where values may be names written as numbers."""
    if len(values) == 1:
        return []
    rank: list[tuple[str, Any]] = [(name, RANK)] if ordered(values) else []
    return rank + ([(name, value) for value in values] if categories and (len(values) > 2 or not rank) else [])


def _cell(params: Params, values: Sequence[Any], name: str, value: Any) -> float:
    """One feature: the rank of an ordered parameter, or whether a category is this one; apart where it was not asked."""
    if name not in params:
        return -0.5 if value is RANK else 0.0
    if value is not RANK:
        return 0.7 * float(params[name] == value)  # two categories are then as far apart as the ends of a range
    at = min(range(len(values)), key=lambda i: abs(values[i] - params[name]))
    return at / (len(values) - 1)
