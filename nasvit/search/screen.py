"""Predicts latencies in the driver, before a worker builds or measures a network: to turn it away, and for a sampler to rely on.

Only what is over a limit with its whole interval is turned away, so that the prediction's own error costs next to no network that
keeps the limit; what is let through is measured, and what is on the front has been. The predictor begins with the profile of the
device where there is one, or empty, and learns from the measurements of the search while it knows few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nasvit.arch import Arch
from nasvit.errors import ConfigError
from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord
from nasvit.search.evaluate import Settings

if TYPE_CHECKING:  # it brings scipy's optimiser, which a search without a limit or profile does not wait for
    from nasvit.latency import LatencyModel

ENOUGH = 20
"""So many measured networks before anything is turned away."""
FEW, GROWN = 8, 1.4
"""Measured networks from which a sampler is told medians, and how many times more there are when it is told others."""
LEARNED = 400
"""A model that knows so many networks learns no more: a fit, one for each trial, takes 25 ms at 300 and 58 ms at 600 and grows faster than
their number, and what 200 leave is the measurements' own noise."""


class Screen:
    """limits: of the experiment. models: from a latency's name (`latency_ms`, `latency_ms@NAME`) to its predictor; those that are limited
    or guessed for a sampler (`guessed`) and have none begin empty."""

    def __init__(self, *, limits: Mapping[str, float], models: Mapping[str, LatencyModel] | None = None, guessed: Iterable[str] = (),
                 records: Iterable[TrialRecord] = ()) -> None:
        self.limits = {name: value for name, value in limits.items() if name.partition("@")[0] == "latency_ms"}
        self.models = dict(models or {})
        for name in (*self.limits, *guessed):
            from nasvit.latency import LatencyModel

            self.models.setdefault(name, LatencyModel())
        self._guesses: dict[str, LatencyModel] = {}  # what a sampler is told by, by name: its model as it was at some length
        self._due = {name: max(FEW, len(model.observations)) for name, model in self.models.items()}  # the length of the next one
        for record in records:
            self.observe(record)

    def drop(self, name: str) -> None:
        """Forget a latency that is measured no more."""
        for known in (self.limits, self.models, self._guesses, self._due):
            known.pop(name, None)

    def observe(self, record: TrialRecord) -> None:
        """Take in what a record holds of measured latencies; a promotion brings nothing new."""
        if not self.models or not record.has_arch:
            return
        measured = {"latency_ms": record.latency, **{f"latency_ms@{n}": s for n, s in record.details.get("latencies", {}).items()}}
        for name, stats in measured.items():
            if stats and name in self.models and len(self.models[name].observations) < LEARNED:
                error = (float(stats["ci_high_ms"]) - float(stats["ci_low_ms"])) / 2 / float(stats["median_ms"])
                self.models[name].observe(record.network(), float(stats["median_ms"]), error=error)

    def learned(self) -> int:
        """How many measurements `medians` rests on. It takes in new ones here alone, and only where they are many more: a sampler keeps
        what it is told. The lengths follow from the measurements, so that a resumed search guesses as it did."""
        for name, model in self.models.items():
            while len(model.observations) >= self._due[name]:
                self._guesses[name] = type(model)(model.observations[: self._due[name]])
                self._due[name] = math.ceil(GROWN * self._due[name])
        return sum(len(model.observations) for model in self._guesses.values())

    def medians(self, arch: Arch) -> dict[str, float]:
        """The latencies that can be predicted, by name, each without the network's own measurement."""
        return {name: model.unseen(arch) for name, model in self._guesses.items()}

    def judge(self, arch: Arch) -> tuple[str, dict[str, Any]] | None:
        """The reason why the network is turned away, and what was predicted by a latency's name; None where it may be measured."""
        for name, limit in self.limits.items():
            model = self.models[name]
            if len(model.observations) < ENOUGH:
                continue
            predicted = model.predict(arch)
            if predicted.low_ms > limit:
                facts = {"median_ms": predicted.median_ms, "low_ms": predicted.low_ms, "high_ms": predicted.high_ms}
                return (f"{name} is predicted as {predicted.median_ms:.4g} ({predicted.low_ms:.4g} to {predicted.high_ms:.4g}), over the "
                        f"limit {limit:.4g} with its whole interval"), {name: facts}
        return None


def make_screen(experiment: Experiment, *, settings: Settings) -> Screen:
    """The screen of a search, with its profiles on the run's scale. Raises ConfigError for a profile of another device or image size."""
    given = experiment.profile
    profiles = {} if given is None else {"": given} if isinstance(given, str) else dict(given)
    first = next(iter(experiment.devices), "")
    devices = {"": (settings.reference_ms, settings.fingerprint), **{name: (ms, mark) for name, (_, ms, mark) in settings.others.items()}}
    models = {}
    for name, path in profiles.items():
        from nasvit.latency import LatencyModel

        name = "" if name == first else name
        if name not in devices:
            raise ConfigError(f"profile {path}: the search has no device {name!r}; its devices are {', '.join(experiment.devices)}")
        reference_ms, fingerprint = devices[name]
        model = LatencyModel.load(path)
        if model.about.get("fingerprint") != fingerprint:
            raise ConfigError(f"{path} is the profile of device {model.about.get('fingerprint')} and this one is {fingerprint}; profile it "
                              "with these versions and settings")
        if model.image_sizes != [settings.image_size]:
            was, here = (", ".join(f"{height}x{width}" for height, width in sizes) for sizes in (model.image_sizes, [settings.image_size]))
            raise ConfigError(f"{path} is a profile at {was or 'no'} px and the search is at {here} px, whose latencies are not alike: "
                              f"profile the device with --image-size {settings.image_size[0]}, or set image_size in the experiment file")
        models[f"latency_ms@{name}" if name else "latency_ms"] = model.scaled(reference_ms / float(model.about["reference_ms"]))
    relies = experiment.sampler == "surrogate"
    guessed = [name for name in experiment.objectives if relies and name.partition("@")[0] == "latency_ms"]
    return Screen(limits=experiment.limits, models=models, guessed=guessed)
