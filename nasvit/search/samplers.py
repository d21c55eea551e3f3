"""Samplers by name: Optuna's, and nasvit's own. Several objectives and conditional parameters work in all.

A factory takes a seed and the domain, what is known of the space beyond names and values; Optuna's have no use for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from nasvit.errors import ConfigError
from nasvit.registry import Registry, function
from nasvit.search.domain import Domain

SAMPLERS: Registry[Callable[[int, Domain | None], BaseSampler]] = Registry("sampler", group="nasvit.samplers", check=function)

POPULATION = 20  # Optuna's 50 would be 6 generations at 300 trials


@SAMPLERS.register("random")
def random(seed: int, domain: Domain | None) -> BaseSampler:
    """Uniform over each parameter."""
    return RandomSampler(seed=seed)


@SAMPLERS.register("tpe")
def tpe(seed: int, domain: Domain | None) -> BaseSampler:
    """Multi-objective tree-structured Parzen estimator; trials still running count as bad (constant liar)."""
    return TPESampler(seed=seed, constant_liar=True)


@SAMPLERS.register("nsga2")
def nsga2(seed: int, domain: Domain | None) -> BaseSampler:
    """Non-dominated sorting genetic algorithm II."""
    return NSGAIISampler(population_size=POPULATION, seed=seed)


@SAMPLERS.register("nsga3")
def nsga3(seed: int, domain: Domain | None) -> BaseSampler:
    """Non-dominated sorting genetic algorithm III, for three objectives and more."""
    return NSGAIIISampler(population_size=POPULATION, seed=seed)


@SAMPLERS.register("gp")
def gp(seed: int, domain: Domain | None) -> BaseSampler:
    """Gaussian process with expected hypervolume improvement; about 2 CPU-seconds a proposal in a large space."""
    missing = [package for package in ("scipy", "torch") if find_spec(package) is None]
    if missing:
        raise ConfigError(f"the sampler gp needs {', '.join(missing)}; pip install {' '.join(missing)}, or choose another sampler")
    return GPSampler(seed=seed)


@SAMPLERS.register("surrogate")
def surrogate(seed: int, domain: Domain | None) -> BaseSampler:
    """nasvit's own: a Gaussian process on architectures, children of the front, expected hypervolume improvement."""
    from nasvit.search.surrogate import SurrogateSampler  # with scipy a third of a second, which the others do not wait for

    return SurrogateSampler(seed=seed, domain=domain)


def make_sampler(name: str, *, seed: int, domain: Domain | None = None) -> BaseSampler:
    """The sampler called `name`; raises ConfigError for an unknown one or one whose packages are missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed, domain)
