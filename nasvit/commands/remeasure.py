"""Measures networks again: the front of a finished run on each of its devices, against its own intervals; or one network by itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from nasvit.arch import Arch
from nasvit.devices import Device, LatencyStats, open_device
from nasvit.errors import ConfigError, RunError
from nasvit.finals.pruned import result_trial
from nasvit.finals.subject import NOT_ANEW
from nasvit.models.build import build
from nasvit.named import check_names
from nasvit.pruning.dense import input_shape
from nasvit.pruning.files import Form, build_form, form_from_dict
from nasvit.pruning.files import read_form as read_json_form
from nasvit.pruning.plan import Plan
from nasvit.report.tables import Run, part
from nasvit.results.front import pareto
from nasvit.results.record import latest
from nasvit.yaml_file import read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A device of a run: its name there (its spec, where the run has one device), the name of its latency, and what it was then."""

    name: str
    latency: str
    spec: str
    reference_ms: float
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remeasured:
    """A front point with its latency on a device as recorded and as measured now, on the same scale. result: whether a pruning chose it."""

    device: str
    trial: int
    arch_id: str
    recorded: LatencyStats
    now: LatencyStats
    limit_ms: float | None
    result: bool = False

    @property
    def inside(self) -> bool:
        """Whether the new median lies in the recorded interval."""
        return self.recorded.ci_low_ms <= self.now.median_ms <= self.recorded.ci_high_ms

    @property
    def within_limit(self) -> bool:
        """Whether the new median respects the run's limit on this device; true without one."""
        return self.limit_ms is None or self.now.median_ms <= self.limit_ms


def places_of(run: Run) -> list[Place]:
    """The run's devices, in its order. Raises RunError where it does not say what they were."""
    named, others = part(run.experiment, "devices"), part(run.env, "devices")
    spec = str(run.experiment.get("device", "cpu"))
    first = {**run.env, "fingerprint": run.fingerprint, "spec": spec}
    about = {name: others.get(name, {}) if i else first for i, name in enumerate(named or [spec])}
    if not all(isinstance(one, Mapping) and one.get("reference_ms") and one.get("fingerprint") for one in about.values()):
        raise RunError(f"{run.path}: env.json has no reference_ms or fingerprint; only a run of `nasvit search` or `nasvit prune` can be "
                       "remeasured")
    return [Place(name=name, latency=f"latency_ms@{name}" if i else "latency_ms", spec=str(one["spec"]),
                  reference_ms=float(one["reference_ms"]), fingerprint=str(one["fingerprint"]))
            for i, (name, one) in enumerate(about.items())]


def front_of(run: Run, *, device: str | None = None) -> list[Remeasured]:
    """Every front point of a run again on each of the run's devices, with the run's scale of it, and the result of a pruning.

    device: only there; a name of the run's, or a spec. Raises RunError where it is none of the run's: latencies of two devices are never
    put in one column.
    """
    places = places_of(run)
    if device is not None:
        places = [next((p for p in places if device in (p.name, p.spec)), replace(places[0], spec=device))]
    else:  # what went away in the search is asked where it is named
        places = [place for place in places if place.latency not in part(run.summary, "gone")]
    found = []
    for place in places:
        with closing(open_device(place.spec, threads=1, reference_ms=place.reference_ms)) as target:
            found += _front_on(target, run, place=place)
    if not found:
        raise RunError(f"{run.path}: the front is empty; no trial is complete")
    return found


def absent(run: Run) -> list[str]:
    """The names of the run's devices that went away in the search, and so are asked by their names alone."""
    return [place.name for place in places_of(run) if place.latency in part(run.summary, "gone")]


def _front_on(target: Device, run: Run, *, place: Place) -> list[Remeasured]:
    if target.fingerprint != place.fingerprint:
        own = ", ".join(p.name for p in places_of(run))
        raise RunError(f"{run.path} was measured on device {place.fingerprint} and {place.spec} here is {target.fingerprint}: their "
                       f"latencies cannot be compared; remeasure on the run's own devices ({own}), with the same versions and settings")
    limit = part(run.experiment, "limits").get(place.latency)
    found, result = [], result_trial(run.path)
    members = pareto(run.records, run.objectives)
    if result is not None and result not in [record.trial for record in members]:
        members = [*members, latest(run.records)[result]]
    for record in members:
        further = record.details.get("latencies", {})
        stats = record.latency if place.latency == "latency_ms" else further.get(place.latency.partition("@")[2])
        if stats is None and place.latency in part(run.summary, "gone"):
            continue
        if stats is None:
            raise RunError(f"{run.path}: trial {record.trial} has no {place.latency}; it is not complete")
        form = form_from_dict(record.arch)
        module = build(form, seed=record.seed) if isinstance(form, Arch) else build_form(form)
        now = target.measure(module, input_shape=_shape(form), patient=True)
        found.append(Remeasured(device=place.name, trial=record.trial, arch_id=record.arch_id, recorded=LatencyStats.from_dict(stats),
                                now=now, limit_ms=None if limit is None else float(limit), result=record.trial == result))
    return found


def network_of(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """The untrained network of an Arch's or a Plan's file, and its input shape (1, C, H, W)."""
    form = read_form(path)
    return build_form(form), _shape(form)


def read_form(path: Path) -> Form:
    """An Arch, or the Plan of a pruned model, from a JSON or YAML file. Raises ConfigError for anything else."""
    if path.suffix == ".json":  # YAML would read 1e-06 as a text
        return read_json_form(path)
    data, _ = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: an Arch must be a mapping with image_size, in_channels, num_classes, stem, stages and head")
    try:
        return form_from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_arch(path: Path) -> Arch:
    """An Arch to be trained. Raises ConfigError for anything else, and for a Plan."""
    form = read_form(path)
    if isinstance(form, Plan):
        raise ConfigError(f"{path}: {NOT_ANEW}")
    return form


def _shape(form: Form) -> tuple[int, ...]:
    """(1, C, H, W)"""
    return (1, *(input_shape(form) if isinstance(form, Plan) else (form.in_channels, *form.image_size)))


def named_model(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """`timm:NAME`, or a model of the zoo by its name, untrained, and its own input shape (1, C, H, W).

    Raises ConfigError for a model that neither has.
    """
    short = name.removeprefix("timm:")
    check_names([short])
    import timm

    module: nn.Module = timm.create_model(short, pretrained=False)
    settings: dict[str, Any] = getattr(module, "pretrained_cfg")  # noqa: B009 (nn.Module types every attribute as a tensor)
    return module, (1, *settings["input_size"])
