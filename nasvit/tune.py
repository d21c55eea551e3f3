"""nasvit's search spaces inside Ray Tune experiments of your own: a define-by-run space and a trainable.

    from ray import tune
    from ray.tune.search.optuna import OptunaSearch
    from nasvit.tune import define_by_run, trainable

    search = OptunaSearch(space=define_by_run("hybrid_tiny", data="digits"), metric=["accuracy", "macs_g"], mode=["max", "min"])
    tune.Tuner(trainable("hybrid_tiny", data="digits", steps=120, seed=0),
               tune_config=tune.TuneConfig(search_alg=search, num_samples=20)).fit()

`nasvit search` does not stand on this: Tune's OptunaSearch costs seconds a trial, knows no rungs over several objectives and forwards no
limits. No latency is measured here either, because Tune's trials share their machines; measure what comes out with `nasvit measure`.
Importing this module loads neither torch nor Ray; `ray.tune` itself is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nasvit.arch import Arch
from nasvit.errors import ArchError, ConfigError
from nasvit.space import SearchSpace

Report = Callable[[dict[str, Any]], object]


def bound_space(space: str, *, data: str) -> SearchSpace:
    """The space (a file or a shipped name) at the image size, channels and classes of the data."""
    from nasvit.data import describe

    info = describe(data)
    size = SearchSpace.load(space).fit_image_size(info.natural_size)
    return SearchSpace.load(space, image_size=size, in_channels=info.in_channels, num_classes=info.num_classes)


def define_by_run(space: str, *, data: str) -> Callable[[Any], None]:
    """For `OptunaSearch(space=...)`: asks the trial for an architecture of the space; its parameters become Tune's config.

    A combination that the space cannot build is asked for all the same, and its trial fails with the reason.
    """
    return _Asked(space, data)


def arch_of(config: Mapping[str, Any], *, space: str, data: str) -> Arch:
    """The architecture of a Tune config: what the space asks for, by path. What else the config holds is not looked at.

    Raises ConfigError where a choice is missing or foreign; ArchError for a combination that cannot be built.
    """
    return bound_space(space, data=data).from_parameters(config)


def trainable(space: str, *, data: str, steps: int, seed: int, reports: int = 4, recipe: Mapping[str, Any] | None = None,
              report: Report | None = None) -> Callable[[dict[str, Any]], None]:
    """For `tune.Tuner(...)`: trains the config's network for so many steps and reports accuracy, params_m, macs_g and steps.

    reports: how often, so that Tune's schedulers can stop it; each stretch is a whole cycle of the recipe, as a rung of `nasvit search` is.
    report: where figures go (None: `ray.tune.report`). Raises ConfigError for fewer steps than reports.
    """
    if not 1 <= reports <= steps:
        raise ConfigError(f"steps must be at least as many as reports, and these at least 1; not {steps} and {reports}")
    made = _Trainable(space=space, data=data, steps=steps, seed=seed, reports=reports, recipe=dict(recipe or {}), report=report)

    def train(config: dict[str, Any]) -> None:  # a function, on which `tune.with_resources` can set what it wants
        made(config)

    return train


@dataclass(frozen=True, slots=True)
class _Asked:
    """A class and not a closure, so that it can be sent to another process."""

    space: str
    data: str

    def __call__(self, trial: Any) -> None:
        with suppress(ArchError):  # the trainable meets it again, and says it
            bound_space(self.space, data=self.data).suggest(trial)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trainable:
    space: str
    data: str
    steps: int
    seed: int
    reports: int
    recipe: Mapping[str, Any]
    report: Report | None

    def __call__(self, config: dict[str, Any]) -> None:
        import torch

        from nasvit.cost import count
        from nasvit.data import load
        from nasvit.devices import machine_lock
        from nasvit.models.build import build
        from nasvit.proxies import short_train
        from nasvit.training import Recipe

        report = self.report
        if report is None:
            from ray import tune

            report = tune.report
        arch = arch_of(config, space=self.space, data=self.data)
        device = "cuda" if torch.cuda.is_available() else "cpu"  # Tune shows a trial only the GPUs that it reserved
        if device == "cpu":
            torch.set_num_threads(1)
        data, module = load(self.data, seed=self.seed, image_size=arch.image_size), build(arch, seed=self.seed)
        cost, done = count(module, input_shape=(1, arch.in_channels, *arch.image_size)), 0
        for number in range(1, self.reports + 1):
            upto = self.steps * number // self.reports
            score = short_train.fit(module, data, budget=upto - done, seed=self.seed + number, recipe=Recipe.of(dict(self.recipe)),
                                    device=device, steps_before=done, step_guard=machine_lock.training)
            done = upto
            report({"accuracy": score.value, "params_m": cost.params / 1e6, "macs_g": cost.macs / 1e9, "steps": done, "arch_id": arch.id})
