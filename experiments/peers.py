"""The samplers that are compared, by name: Optuna's and nasvit's own here, those of other libraries in peers_elsewhere.py.

A searcher asks for a configuration and is told its values, nothing else. Settings are those that each library documents as best for a few
hundred trials of several objectives; where a library is missing its samplers are named as missing.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from judging import Objective, Outcome
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from tabular import TableProblem

from nasvit.errors import ConfigError
from nasvit.registry import unknown
from nasvit.search.domain import Domain
from nasvit.search.surrogate import SurrogateSampler

Params = Mapping[str, Any]


class Problem(Protocol):
    """What a searcher may be given: see tabular.py and hierarchical.py."""

    name: str
    objectives: tuple[Objective, ...]

    def suggest(self, trial: Any) -> Params: ...
    def evaluate(self, params: Params, *, seed: int) -> Outcome: ...
    def domain(self, *, known: bool, scores: bool = False) -> Domain: ...


class Searcher(Protocol):
    """Asked and told in turns."""

    def ask(self) -> Params: ...
    def tell(self, params: Params, values: NDArray[np.float64]) -> None:
        """`values` (m,) are minimised."""


class OptunaSearcher:
    """An Optuna sampler; the study is told values in the objectives' own directions."""

    def __init__(self, problem: Problem, sampler: BaseSampler) -> None:
        directions = [StudyDirection.MAXIMIZE if o.maximise else StudyDirection.MINIMIZE for o in problem.objectives]
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        self.signs = np.array([o.sign for o in problem.objectives])
        self.problem = problem

    def ask(self) -> Params:
        self.trial = self.study.ask()
        return self.problem.suggest(self.trial)

    def tell(self, params: Params, values: NDArray[np.float64]) -> None:
        self.study.tell(self.trial, (values * self.signs).tolist())


class RowSearcher:
    """Random search in a table with gaps: its rows in random order."""

    def __init__(self, problem: TableProblem, seed: int) -> None:
        self.problem, self.at = problem, -1
        self.order = np.random.default_rng(seed).permutation(len(problem.codes))

    def ask(self) -> Params:
        self.at += 1
        return self.problem.params(int(self.order[self.at % len(self.order)]))

    def tell(self, params: Params, values: NDArray[np.float64]) -> None:
        """Nothing is learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """make(problem, seed) -> Searcher; packages: whose versions matter; slow: over a second a proposal; what: its settings in words."""

    make: Callable[[Any, int], Searcher]
    packages: tuple[str, ...]
    what: str
    slow: bool = False


def _optuna(make: Callable[[int], BaseSampler]) -> Callable[[Any, int], Searcher]:
    return lambda problem, seed: OptunaSearcher(problem, make(seed))


def _random(problem: Problem, seed: int) -> Searcher:
    if isinstance(problem, TableProblem) and not problem.complete:
        return RowSearcher(problem, seed)
    return OptunaSearcher(problem, RandomSampler(seed=seed))


def _auto(problem: Problem, seed: int) -> Searcher:
    """OptunaHub's AutoSampler; the hub's registry is read over the network, or from a checkout of it named by OPTUNAHUB_REGISTRY."""
    import optunahub
    from git.exc import GitError

    place = os.environ.get("OPTUNAHUB_REGISTRY")
    try:
        module = (optunahub.load_local_module("samplers/auto_sampler", registry_root=str(Path(place) / "package")) if place
                  else optunahub.load_module("samplers/auto_sampler"))
    except (GitError, OSError) as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise ImportError(f"OptunaHub's registry cannot be read ({last}); name a checkout of it in OPTUNAHUB_REGISTRY") from error
    return OptunaSearcher(problem, module.AutoSampler(seed=seed))


class _NoBreeding(SurrogateSampler):
    """Candidates drawn at random only: neither children of the front nor climbing."""

    def _bred(self, *_: Any, **__: Any) -> list[Any]:
        return []

    def _around(self, *_: Any, **__: Any) -> list[Any]:
        return []


def _ours(sampler: type[SurrogateSampler] = SurrogateSampler, *, known: bool = True,
          scores: bool = False) -> Callable[[Any, int], Searcher]:
    return lambda problem, seed: OptunaSearcher(problem, sampler(seed=seed, domain=problem.domain(known=known, scores=scores)))


PEERS: dict[str, Peer] = {
    "random": Peer(make=_random, packages=("optuna",), what="uniform, with replacement; a table with gaps: its rows in random order"),
    "nsga2": Peer(make=_optuna(lambda seed: NSGAIISampler(population_size=20, seed=seed)), packages=("optuna",), what="population 20"),
    "nsga2-50": Peer(make=_optuna(lambda seed: NSGAIISampler(population_size=50, seed=seed)), packages=("optuna",),
                     what="population 50, Optuna's default"),
    "nsga3": Peer(make=_optuna(lambda seed: NSGAIIISampler(population_size=20, seed=seed)), packages=("optuna",), what="population 20"),
    "tpe": Peer(make=_optuna(lambda seed: TPESampler(seed=seed)), packages=("optuna",), what="Optuna's default"),
    "tpe-multivariate": Peer(make=_optuna(lambda seed: TPESampler(seed=seed, multivariate=True, group=True)), packages=("optuna",),
                             what="multivariate=True, group=True"),
    "gp": Peer(make=_optuna(lambda seed: GPSampler(seed=seed, deterministic_objective=False)), packages=("optuna", "torch"), slow=True,
               what="Gaussian process, expected hypervolume improvement; defaults"),
    "auto": Peer(make=_auto, packages=("optunahub", "optuna"), slow=True, what="OptunaHub's AutoSampler; defaults"),
    "surrogate": Peer(make=_ours(), packages=("nasvit",), what="nasvit's own, with --known objectives known"),
    "surrogate:modelled": Peer(make=_ours(known=False), packages=("nasvit",), what="nothing known beforehand"),
    "surrogate:scores": Peer(make=_ours(scores=True), packages=("nasvit",), what="with the synthetic problem's made-up zero-cost scores"),
    "surrogate:no-breeding": Peer(make=_ours(_NoBreeding), packages=("nasvit",), what="candidates drawn at random only"),
}


def peers() -> dict[str, Peer]:
    """Every sampler by name, those of other libraries among them."""
    from peers_elsewhere import ELSEWHERE

    return PEERS | ELSEWHERE


def choose(names: Sequence[str]) -> dict[str, Peer]:
    """The named samplers; raises ConfigError for an unknown or repeated name."""
    table = peers()
    for name in names:
        if name not in table:
            raise ConfigError(f"--samplers: {unknown('sampler', name, list(table))}")
    if len(set(names)) < len(names):
        raise ConfigError(f"--samplers names one twice: {', '.join(names)}")
    return {name: table[name] for name in names}


def versions(peer: Peer) -> str:
    """Names and versions of the packages that a sampler is made of; raises PackageNotFoundError where one is missing."""
    return ", ".join(f"{package} {version(package)}" for package in peer.packages)


def unavailable(name: str, peer: Peer, problem: Problem) -> str | None:
    """Why a sampler cannot run here, None where it can: its packages are there and it makes a first proposal."""
    try:
        versions(peer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.make(problem, 0).ask()
    except PackageNotFoundError as error:
        return f"{name}: the package {error.name} is not installed; pip install -e '.[peers]'"
    except ImportError as error:
        return f"{name}: {error}"
    return None


def python_seed(seed: int) -> None:
    """Seed the global generators, which some libraries use."""
    random.seed(seed)
    np.random.seed(seed)
