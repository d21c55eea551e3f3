"""A synthetic hierarchical problem on a real search space: four stages, conditional mixers and mixer parameters, known latency.

`hierarchical:SEED` is one random instance on `hybrid_mobile`: what a mixer is worth in a stage, how neighbouring blocks get on, which
mixer parameters are best where, what width, depth and MLP are worth and where they saturate, and how fast each of them is, are all
drawn from the seed. Accuracy is observed with the noise of a training's seed and judged without; latency is exact.

The true front of 10^36 networks is unknown. It is approximated by a long evolution on the true function, once an instance, and kept in
reports/published/hierarchical_fronts.json. Shares of its hypervolume are thus comparable with each other, and no proof of optimality.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from judging import Goal, Objective, Outcome, derived_seed
from numpy.typing import NDArray

from nasvit.arch import Arch, Block
from nasvit.errors import ConfigError
from nasvit.results.front import ranks
from nasvit.search.domain import ArchDomain, Domain
from nasvit.space import SearchSpace

Params = Mapping[str, Any]
FRONTS = Path(__file__).resolve().parents[1] / "reports" / "published" / "hierarchical_fronts.json"
SPACE = "hybrid_mobile"
NOISE = 0.15
"""Standard deviation of an observed accuracy, in points."""
SCORE_NOISE = 1.3
"""Of a made-up zero-cost score, in standard deviations of what networks are worth: real ones go with accuracy by 0.5 to 0.7, given cost."""
GENERATIONS, POPULATION = 400, 200
OBJECTIVES = (Objective(name="accuracy", maximise=True), Objective(name="latency_ms", maximise=False))


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """One random instance: accuracy in percent and latency in milliseconds of an Arch."""

    seed: int

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace.load(SPACE)

    def draw(self, *what: object) -> float:
        """A standard normal number that belongs to these names, always the same in this instance."""
        return _normal(self.seed, *what)

    def accuracy(self, arch: Arch) -> float:
        """Percent: between 40 and 85, about 55 for the average network, rising with capacity and how well the mixers fit."""
        middle, spread = self._fits
        return 40 + 45 / (1 + math.exp(0.7 - 0.8 * (self.fit(arch) - middle) / spread))

    @cached_property
    def _fits(self) -> tuple[float, float]:
        """Mean and standard deviation of `fit` over random networks: instances are alike in scale."""
        rng = random.Random(1)
        fits = [self.fit(self.space.sample(rng)) for _ in range(300)]
        return statistics.fmean(fits), statistics.stdev(fits)

    def fit(self, arch: Arch) -> float:
        """What the network is worth before saturation."""
        fit, before = 0.0, "stem"
        for s, stage in enumerate(arch.stages):
            width = math.log2(stage.embed_dim / 24)
            depth = len(stage.blocks)
            fit += 0.5 * math.exp(0.3 * self.draw("width", s)) * width + 0.8 * math.exp(0.4 * self.draw("depth", s)) * math.log(depth)
            if s:  # a jump in width costs; how much of one is right differs
                jump = math.log2(stage.embed_dim / arch.stages[s - 1].embed_dim)
                fit -= 0.35 * (jump - 0.8 - 0.2 * self.draw("jump", s)) ** 2
            for block in stage.blocks:
                name = _mixers(block)
                fit += (self._block(block, s, stage.embed_dim) + 0.18 * self.draw("pair", before, name)) / depth**0.6
                before = name
        first, last = _mixers(arch.stages[0].blocks[0]), _mixers(arch.stages[-1].blocks[-1])
        return fit + 0.3 * self.draw("ends", first, last)

    def _block(self, block: Block, s: int, dim: int) -> float:
        """What a block adds: its mixers, how near their parameters are to the best, the MLP, and the tokens it drops."""
        name = _mixers(block)
        worth = 0.45 * self.draw("mixer", s, name) + 0.35 * math.log2(block.mlp_dim / dim)
        worth -= 2.2 * math.exp(0.5 * self.draw("keep", s)) * (1 - block.keep_ratio) ** 2
        for mixer in block.mixers:
            for parameter, value in mixer.kwargs.items():
                worth += 0.22 * self.draw("value", s, mixer.name, parameter, str(value))
        return worth

    def latency(self, arch: Arch) -> float:
        """Milliseconds: each block's multiply-adds at the speed of its mixers on this device, and an overhead for each operation."""
        total = 0.6
        for s, stage in enumerate(arch.stages):
            height, width = arch.grid(s)
            tokens, dim = height * width, stage.embed_dim
            total += 4 * dim * (arch.stages[s - 1].embed_dim if s else 27) * tokens * 2e-8
            for block in stage.blocks:
                share = block.keep_ratio if block.keep_ratio < 1 else 0.96  # selecting and restoring has its price
                speed = 2e-8 * math.exp(0.25 * self.draw("mlp", s))
                total += share * 2 * tokens * dim * block.mlp_dim * speed + 0.02
                for mixer in block.mixers:
                    work = 4 * dim * dim + _reach(mixer.name, mixer.kwargs, tokens) * dim
                    total += share * tokens * work * 2e-8 * math.exp(0.4 * self.draw("speed", mixer.name))
                    total += 0.06 * math.exp(0.5 * self.draw("overhead", mixer.name))
        return total

    def scores(self, arch: Arch) -> dict[str, float]:
        """What zero-cost scores could be: one that goes with accuracy (correlation about 0.6), one that follows cost alone."""
        middle, spread = self._fits
        rng = random.Random(derived_seed("scores", self.seed, arch.id))
        return {"hint": math.exp((self.fit(arch) - middle) / spread + rng.gauss(0, SCORE_NOISE)),
                "chaff": self.latency(arch) * math.exp(rng.gauss(0, 0.3))}

    def values(self, arch: Arch) -> NDArray[np.float64]:
        """(2,) minimised: minus accuracy, latency."""
        return np.array([-self.accuracy(arch), self.latency(arch)])

    @cached_property
    def fingerprint(self) -> str:
        """12 hex of what twenty architectures are worth: changes when the definition does."""
        rng = random.Random(0)
        values = [f"{v:.6f}" for _ in range(20) for v in self.values(self.space.sample(rng))]
        return hashlib.sha256(" ".join(values).encode()).hexdigest()[:12]


def _mixers(block: Block) -> str:
    return "+".join(mixer.name for mixer in block.mixers)


def _reach(name: str, kwargs: Mapping[str, Any], tokens: int) -> float:
    """How many tokens a token is compared with, about."""
    if name == "global":
        return 2.0 * tokens
    if name == "window":
        return 2.0 * kwargs.get("window_size", 7) ** 2
    if name == "slide":
        return 2.0 * kwargs.get("kernel_size", 3) ** 2
    return 2.0 * tokens / 2 ** kwargs.get("cluster_depth", 2) if name == "fsla" else 18.0


def _normal(seed: int, *what: object) -> float:
    key = (seed, *what)
    if key not in _DRAWN:
        _DRAWN[key] = random.Random(derived_seed(*key)).gauss(0, 1)
    return _DRAWN[key]


_DRAWN: dict[tuple[object, ...], float] = {}


@dataclass(frozen=True, kw_only=True)
class HierarchicalProblem:
    """See the file's top."""

    landscape: Landscape
    goal: Goal
    objectives: tuple[Objective, ...] = OBJECTIVES
    known: tuple[int, ...] = (1,)

    @property
    def name(self) -> str:
        return f"hierarchical:{self.landscape.seed}"

    @property
    def key(self) -> str:
        return hashlib.sha256(repr((self.landscape.fingerprint, NOISE, self.goal.key)).encode()).hexdigest()[:12]

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"{float(self.landscape.space.size()):.1e} networks of {SPACE}; accuracy observed with noise of {NOISE} points",
                f"the front that counts as true has {self.goal.front_size} points found by {GENERATIONS * POPULATION:,} evaluations")

    def suggest(self, trial: Any) -> Params:
        """Ask a trial for a network; its choices."""
        return self.landscape.space.arch_parameters(self.landscape.space.suggest(trial))

    def evaluate(self, params: Params, *, seed: int) -> Outcome:
        """Accuracy with the noise of this search's training, latency as it is."""
        arch = self.landscape.space.from_parameters(dict(params))
        true = self.landscape.values(arch)
        noise = NOISE * random.Random(derived_seed("noise", seed, arch.id)).gauss(0, 1)
        return Outcome(id=arch.id, observed=true + np.array([noise, 0.0]), true=true)

    def domain(self, *, known: bool, scores: bool = False) -> Domain:
        """The space, with its latency where it may be known, and with made-up zero-cost scores where they are asked for."""
        costs = (lambda arch: {"latency_ms": self.landscape.latency(arch)}) if known else None
        return ArchDomain(self.landscape.space, objectives=[o.name for o in self.objectives], costs=costs,
                          scores=self.landscape.scores if scores else None)


def load_hierarchical(spec: str) -> HierarchicalProblem:
    """The problem called `hierarchical:SEED`, with the front that counts as true, searched for now if it is not on file."""
    kind, _, seed = spec.partition(":")
    if kind != "hierarchical" or not seed.isdigit():
        raise ConfigError(f"--problem {spec!r}: say hierarchical:SEED, e.g. hierarchical:0")
    landscape = Landscape(seed=int(seed))
    kept = json.loads(FRONTS.read_text()) if FRONTS.exists() else {}
    entry = kept.get(spec)
    if entry is None or entry["fingerprint"] != landscape.fingerprint:
        entry = {"fingerprint": landscape.fingerprint, **evolve(landscape)}
        kept[spec] = entry
        FRONTS.write_text(json.dumps(kept, separators=(",", ":")).replace('"hierarchical', '\n"hierarchical') + "\n")
    front = np.array(entry["front"])
    return HierarchicalProblem(landscape=landscape, goal=Goal.of_front(front, worst=np.array(entry["worst"])))


def evolve(landscape: Landscape) -> dict[str, Any]:
    """The front of a long evolution on the true function: parents among the best ranks, stage-wise crossover, few changes each."""
    space, rng = landscape.space, random.Random(landscape.seed)
    people: dict[frozenset[tuple[str, Any]], NDArray[np.float64]] = {}

    def add(params: Mapping[str, Any]) -> None:
        arch = space.from_parameters(dict(params), rng=rng)
        key = frozenset(space.arch_parameters(arch).items())
        if key not in people:
            people[key] = landscape.values(arch)

    for _ in range(5 * POPULATION):
        add({})
    worst = np.max(list(people.values()), axis=0)
    for _ in range(GENERATIONS):
        parents = [dict(key) for key in people]
        for _ in range(POPULATION):
            one, two = rng.choice(parents), rng.choice(parents)
            stages = {f"s{s}" for s in range(4) if rng.random() < 0.3}
            child = {n: v for n, v in one.items() if n[:2] not in stages} | {n: v for n, v in two.items() if n[:2] in stages}
            for name in rng.sample(sorted(child), min(len(child), rng.choice((0, 1, 1, 2, 3)))):
                child[name] = rng.choice(space.values_of(name))
            add(child)
        people = _best(people, POPULATION)
    values = np.array(list(people.values()))
    front = values[ranks(values) == 0]
    return {"front": np.round(front[np.argsort(front[:, 1])], 6).tolist(), "worst": np.round(worst, 6).tolist()}


def _best(people: dict[Any, NDArray[np.float64]], count: int) -> dict[Any, NDArray[np.float64]]:
    """The first `count` by rank; of the last rank that fits, spread evenly along latency."""
    keys, values = list(people), np.array(list(people.values()))
    level = ranks(values)
    chosen: list[int] = []
    for rank in range(level.max() + 1):
        of_rank = np.flatnonzero(level == rank)
        if len(chosen) + len(of_rank) > count:
            of_rank = of_rank[np.argsort(values[of_rank, 1])]
            places = np.unique(np.linspace(0, len(of_rank) - 1, count - len(chosen)).round().astype(int))
            chosen += of_rank[places].tolist()
            break
        chosen += of_rank.tolist()
    return {keys[i]: people[keys[i]] for i in chosen}
