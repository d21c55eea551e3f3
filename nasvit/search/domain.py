"""What a model-based sampler can know of a search space beyond names and values: drawing, completing, features, known objectives.

`LearnedDomain` knows only what a study's own trials show, so it serves any study of categorical and ordinal parameters;
`ArchDomain` knows a SearchSpace, its encoding, and about what an architecture costs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from nasvit.errors import ArchError
from nasvit.models.estimate import estimate
from nasvit.space import SearchSpace

Params = Mapping[str, Any]
Known = Callable[[Params], Mapping[int, float]]


class Domain(Protocol):
    """What the surrogate sampler asks of a space. Parameters are Optuna's external values, by name."""

    def sample(self, rng: random.Random) -> Params | None:
        """A configuration drawn at random; None while too little is known."""

    def complete(self, params: Params, rng: random.Random) -> Params | None:
        """The nearest whole configuration: names without a meaning dropped, missing ones drawn. None where there is none."""

    def neighbours(self, name: str, value: Any) -> Sequence[Any]:
        """Other values of a parameter: the next ones where values are ordered, all others where they are not."""

    def features(self, params: Params) -> Sequence[float]:
        """Numbers of about unit range, always as many."""

    def known(self, params: Params) -> Mapping[int, float]:
        """Objectives known without a trial, by index, in the study's units."""


class LearnedDomain:
    """A domain learned from a study's trials: names, values, and on which value of which other parameter a name hangs.

    `known`: what the caller knows of objectives.
    """

    def __init__(self, known: Known | None = None) -> None:
        self._known = known
        self._seen = 0
        self._order: dict[str, BaseDistribution] = {}  # in the order of asking, as far as trials agree
        self._configurations: list[Params] = []
        self._conditions: dict[str, tuple[str, frozenset[Any]] | None] = {}
        self._values: dict[str, tuple[Any, ...]] = {}
        self._ordered: set[str] = set()
        self._columns: list[tuple[str, Any]] = []

    def learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in what the trials since the last call asked."""
        new = [t for t in trials[self._seen :] if t.params]
        if len(new) < len(trials) - self._seen:  # some have not asked yet: look at them again
            self._seen = min((n for n, t in enumerate(trials) if n >= self._seen and not t.params), default=len(trials))
        else:
            self._seen = len(trials)
        names = len(self._order)
        for trial in new:
            self._order |= {n: d for n, d in trial.distributions.items() if n not in self._order}
            self._configurations.append(trial.params)
        if new:
            self._conditions = {name: _condition(name, self._configurations) for name in self._order}
        if len(self._order) > names:
            self._values = {name: values_of(d) for name, d in self._order.items()}
            self._ordered = {name for name, d in self._order.items() if not isinstance(d, CategoricalDistribution)}
            self._columns = [column for name in sorted(self._order)
                             for column in _columns(name, self._values[name], categories=name not in self._ordered)]

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
                    whole[name] = params[name] if name in params else rng.choice(self._values[name])
            waiting = [n for n in waiting if n not in ready] if ready else []
        return whole or None

    def neighbours(self, name: str, value: Any) -> Sequence[Any]:
        return _next_to(value, self._values[name], steps=name in self._ordered)

    def features(self, params: Params) -> Sequence[float]:
        return [_cell(params, self._values[name], name, value) for name, value in self._columns]

    def known(self, params: Params) -> Mapping[int, float]:
        return self._known(params) if self._known is not None else {}


class ArchDomain:
    """A SearchSpace: features are its encoding with the logarithms of estimated MACs and parameters.

    Nothing is known exactly: an estimate that is one percent low would make every candidate an improvement of one percent. A model
    of MACs, parameters or latency on these features is nearly certain by itself.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._features = lru_cache(maxsize=20_000)(self._encode)

    def _encode(self, items: frozenset[tuple[str, Any]]) -> tuple[float, ...]:
        arch = self.space.from_parameters(dict(items))
        macs, params = estimate(arch)
        return (*self.space.encode(arch), math.log10(macs) / 3, math.log10(params) / 3)

    def sample(self, rng: random.Random) -> Params | None:
        return self._whole(rng, {})

    def complete(self, params: Params, rng: random.Random) -> Params | None:
        return self._whole(rng, params)

    def _whole(self, rng: random.Random, params: Params) -> Params | None:
        for _ in range(10):
            try:
                return self.space.arch_parameters(self.space.from_parameters(dict(params), rng=rng))
            except ArchError:  # a combination the space could not rule out
                continue
        return None

    def neighbours(self, name: str, value: Any) -> Sequence[Any]:
        values = self.space.values_of(name)
        return _next_to(value, values, steps=ordered(values))

    def features(self, params: Params) -> Sequence[float]:
        return self._features(frozenset(params.items()))

    def known(self, params: Params) -> Mapping[int, float]:
        return {}


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


def values_of(distribution: BaseDistribution, *, most: int = 16) -> tuple[Any, ...]:
    """The values of a distribution, in order; a continuous or long range is cut to `most` evenly spaced ones."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    if isinstance(distribution, IntDistribution):
        values = range(distribution.low, distribution.high + 1, distribution.step)
        stride = -(-len(values) // most)
        return tuple(values[::stride])
    assert isinstance(distribution, FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if step is not None and round((high - low) / step) < most:
        return tuple(low + i * step for i in range(round((high - low) / step) + 1))
    if distribution.log:
        return tuple(low * (high / low) ** (i / (most - 1)) for i in range(most))
    return tuple(low + (high - low) * i / (most - 1) for i in range(most))


def ordered(values: Sequence[Any]) -> bool:
    """Whether rank means something: ascending numbers, not names and not booleans."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return numbers and all(a < b for a, b in pairwise(values))


def _next_to(value: Any, values: Sequence[Any], *, steps: bool) -> Sequence[Any]:
    """The values one step away, or all others."""
    if not steps or value not in values:
        return [v for v in values if v != value]
    at = values.index(value)
    return [*values[max(0, at - 1) : at], *values[at + 1 : at + 2]]


def _columns(name: str, values: Sequence[Any], *, categories: bool) -> list[tuple[str, Any]]:
    """A column for the rank where there is one, and one for each value where values may be names written as numbers."""
    if len(values) == 1:
        return []
    rank: list[tuple[str, Any]] = [(name, None)] if ordered(values) else []
    return rank + ([(name, value) for value in values] if categories and (len(values) > 2 or not rank) else [])


def _cell(params: Params, values: Sequence[Any], name: str, value: Any) -> float:
    """One feature: the rank of an ordered parameter, or whether a category is this one; apart where it was not asked."""
    if name not in params:
        return -0.5 if value is None else 0.0
    if value is not None:
        return 0.7 * float(params[name] == value)  # two categories are then as far apart as the ends of a range
    at = min(range(len(values)), key=lambda i: abs(values[i] - params[name]))
    return at / (len(values) - 1)
