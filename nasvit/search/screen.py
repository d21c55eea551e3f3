"""Judges an architecture by its predicted latency, in the driver, before a worker builds or measures it.

Only what is over a limit with its whole interval is turned away, so that the prediction's own error costs next to no network that
keeps the limit; what is let through is measured, and what is on the front has been. The predictor begins with the profile of the
device where there is one, or empty, and learns from the measurements of the search while it knows few.
"""

from __future__ import annotations

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
LEARNED = 400
"""A model that knows so many networks learns no more: a fit, one for each trial, takes 25 ms at 300 and 58 ms at 600 and grows faster than
their number, and what 200 leave is the measurements' own noise."""


class Screen:
    """limits: of the experiment. models: from a latency's name (`latency_ms`, `latency_ms@NAME`) to its predictor; those that are limited
    and have none begin empty."""

    def __init__(self, *, limits: Mapping[str, float], models: Mapping[str, LatencyModel] | None = None,
                 records: Iterable[TrialRecord] = ()) -> None:
        self.limits = {name: value for name, value in limits.items() if name.partition("@")[0] == "latency_ms"}
        self.models = dict(models or {})
        for name in self.limits:
            from nasvit.latency import LatencyModel

            self.models.setdefault(name, LatencyModel())
        self._profiled = sorted(name for name, model in self.models.items() if model.ready)
        for record in records:
            self.observe(record)

    def observe(self, record: TrialRecord) -> None:
        """Take in what a record holds of measured latencies; a promotion brings nothing new."""
        if not self.models or not record.has_arch:
            return
        measured = {"latency_ms": record.latency, **{f"latency_ms@{n}": s for n, s in record.details.get("latencies", {}).items()}}
        for name, stats in measured.items():
            if stats and name in self.models and len(self.models[name].observations) < LEARNED:
                error = (float(stats["ci_high_ms"]) - float(stats["ci_low_ms"])) / 2 / float(stats["median_ms"])
                self.models[name].observe(record.network(), float(stats["median_ms"]), error=error)

    @property
    def profiled(self) -> bool:
        """Whether some latency could be predicted from the beginning, so that a sampler may rely on it."""
        return bool(self._profiled)

    def medians(self, arch: Arch) -> dict[str, float]:
        """The latencies that a profile predicts, by name, refined by the search's own measurements."""
        return {name: self.models[name].predict(arch).median_ms for name in self._profiled}

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
    """The screen of a search, with its profiles on the run's scale. Raises ConfigError for a profile of another device."""
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
        models[f"latency_ms@{name}" if name else "latency_ms"] = model.scaled(reference_ms / float(model.about["reference_ms"]))
    return Screen(limits=experiment.limits, models=models)
