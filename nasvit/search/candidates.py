"""Configurations that a sampler may propose, and the numbers that its models are given for them.

A space that is small enough is listed whole. From any other, candidates are bred from the best trials (stage-wise crossover,
mutations of one step), drawn afresh, and climbed from the best of these by single changes.

Legend: n configurations, d columns, m objectives, all minimised.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasvit.search.domain import Domain, Params
from nasvit.search.gaussian import GaussianProcess, Watch

Array = NDArray[np.float64]
Key = frozenset[tuple[str, Any]]

SAMPLE = 128
"""So many random configurations say how large the known objectives of a space are."""
REMEMBERED = 8_000
"""Rows that are kept, some kilobytes each at most."""
AROUND = 8
"""Neighbours of one candidate that are looked at."""
PARENTS = 24
MUTATIONS = (0, 1, 1, 2, 3)


def key(params: Params) -> Key:
    """What two equal configurations have in common."""
    return frozenset(params.items())


@dataclass(frozen=True, slots=True)
class Batch:
    """Configurations with their inputs. x: (n, d); known, guess: (n, m) objectives that are computed exactly or about, NaN elsewhere."""

    params: Sequence[Params]
    x: Array
    known: Array
    guess: Array
    watches: dict[int, Watch] | None = None  # of a batch that is looked at again and again

    def predict(self, objective: int, process: GaussianProcess, *, given: Array | None) -> tuple[Array, Array]:
        """Mean (n,) and deviation (n,) of what the process models."""
        if self.watches is None:
            columns = process.columns
            return process.predict(self.x[:, :columns], given=None if given is None else given[:, :columns])
        if objective not in self.watches:
            self.watches[objective] = Watch(self.x)
        return self.watches[objective].predict(process, given=given)

    def mean(self, objective: int, process: GaussianProcess) -> Array:
        """Mean (n,) of what the process models: that of `predict`."""
        if self.watches is None:
            return process.mean(self.x[:, : process.columns])
        return self.predict(objective, process, given=None)[0]

    def watched(self) -> Batch:
        """The same, its predictions kept up to date."""
        return replace(self, watches={})

    def beside(self, more: Array) -> Batch:
        """The same with further columns (n, k) at the end, for a process that was fitted on them; others do not look at them."""
        return replace(self, x=np.column_stack([self.x, more]), watches=None)

    def at(self, rungs: Array) -> Batch:
        """The same at these rungs (n,), as shares of the highest."""
        return replace(self, x=np.column_stack([self.x[:, :-1], rungs]), watches=None)

    def part(self, index: NDArray[np.int64]) -> Batch:
        return Batch(params=[self.params[i] for i in index], x=self.x[index], known=self.known[index], guess=self.guess[index])

    def __len__(self) -> int:
        return len(self.params)


@dataclass(slots=True)
class Inputs:
    """Makes batches. A row is the domain's features, the logarithms of known and guessed objectives, and the rung (1 = the highest)."""

    domain: Domain
    signs: Array
    rng: random.Random
    groups: list[int] = field(default_factory=list)
    _centre: Array = field(default_factory=lambda: np.empty(0))
    _spread: Array = field(default_factory=lambda: np.empty(0))
    _least: Array = field(default_factory=lambda: np.empty(0))
    _there: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _rows: dict[Key, tuple[Array, Array, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        drawn = [p for p in (self.domain.sample(self.rng) for _ in range(SAMPLE)) if p is not None]
        computed = np.array([np.concatenate([*self._objectives(p)]) for p in drawn]).reshape(len(drawn), 2 * len(self.signs))
        there = ~np.isnan(computed).any(axis=0) if len(drawn) else np.zeros(2 * len(self.signs), dtype=bool)
        self._there = np.flatnonzero(there)
        values = np.abs(computed[:, self._there])
        self._least = np.maximum(np.quantile(values, 0.01, axis=0), 1e-12) if len(drawn) else np.empty(0)
        logs = np.log(np.maximum(values, self._least)) if len(drawn) else np.empty((0, 0))
        self._centre, self._spread = (logs.mean(axis=0), np.maximum(4 * logs.std(axis=0), 1e-6)) if len(drawn) else (self._least,) * 2
        columns = list(self.domain.groups())
        first = max(columns, default=-1) + 1
        self.groups = [*columns, *range(first, first + len(self._there) + 1)]

    def _objectives(self, params: Params) -> tuple[Array, Array]:
        both = []
        for given in (self.domain.known(params), self.domain.guess(params)):
            row = np.full(len(self.signs), np.nan)
            for j, value in given.items():
                row[j] = value * self.signs[j]
            both.append(row)
        return both[0], both[1]

    def _row(self, params: Params, place: Key) -> tuple[Array, Array, Array]:
        found = self._rows.get(place)
        if found is None:
            known, guess = self._objectives(params)
            costs = np.abs(np.concatenate([known, guess])[self._there])
            scaled = (np.log(np.maximum(costs, self._least)) - self._centre) / self._spread
            found = np.array([*self.domain.features(params), *scaled, 1.0]), known, guess
            if len(self._rows) >= REMEMBERED:
                self._rows.clear()
            self._rows[place] = found
        return found

    @property
    def costs(self) -> slice:
        """The columns of the known and the guessed objectives."""
        return slice(-1 - len(self._there), -1)

    def batch(self, configurations: Sequence[Params], *, keys: Sequence[Key] | None = None) -> Batch:
        """All at the highest rung. keys: of each, where they are at hand."""
        rows = [self._row(p, k) for p, k in zip(configurations, map(key, configurations) if keys is None else keys, strict=True)]
        x = np.array([row[0] for row in rows]).reshape(len(rows), len(self.groups))
        known, guess = (np.array([row[i] for row in rows]).reshape(len(rows), len(self.signs)) for i in (1, 2))
        return Batch(params=configurations, x=x, known=known, guess=guess)


def fresh(domain: Domain, count: int, *, seen: Collection[Key], rng: random.Random) -> list[Params]:
    """At most `count` random configurations, all different and none of them seen."""
    found: dict[Key, Params] = {}
    for _ in range(4 * count + 20):
        params = domain.sample(rng)
        if params is None or len(found) >= count:
            break
        if key(params) not in seen:
            found[key(params)] = params
    return list(found.values())


def bred(domain: Domain, best: Sequence[Params], count: int, *, seen: Collection[Key], rng: random.Random) -> list[Params]:
    """At most `count` children of `best` (its first are the best): stage-wise crossover, then a few mutations by one step."""
    parents = list(best[:PARENTS])
    children: dict[Key, Params] = {}
    for _ in range(2 * count):
        if len(children) >= count:
            break
        child = dict(rng.choice(parents))
        if rng.random() < 0.5:
            other = rng.choice(parents)
            stages = sorted({_stage(name) for name in (*child, *other)})
            taken = {stage for stage in stages if rng.random() < 0.5}
            child = {n: v for n, v in child.items() if _stage(n) not in taken} | {n: v for n, v in other.items() if _stage(n) in taken}
        for _ in range(rng.choice(MUTATIONS)):
            name = rng.choice(sorted(child))
            options = domain.neighbours(name, child[name])
            if options:
                child[name] = rng.choice(list(options))
        whole = domain.complete(child, rng)
        if whole is not None and key(whole) not in seen:
            children[key(whole)] = whole
    return list(children.values())


def around(domain: Domain, params: Params, *, rng: random.Random) -> list[Params]:
    """Every configuration one change away; of very many a sample."""
    changes = [(name, value) for name, old in params.items() for value in domain.neighbours(name, old)]
    changes = changes if len(changes) <= AROUND else rng.sample(changes, AROUND)
    made = (domain.complete({**params, name: value}, rng) for name, value in changes)
    return [p for p in made if p is not None]


def _stage(name: str) -> str:
    """The group of a parameter that crossover takes whole: what stands before the first dot of its path."""
    return name.split(".", 1)[0]
