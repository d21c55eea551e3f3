"""Measures networks again: the front of a finished run against its own intervals, or one network from a file or from timm."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nasvit.arch import Arch
from nasvit.devices import Device, LatencyStats, open_device
from nasvit.errors import ConfigError, RunError
from nasvit.models.build import build
from nasvit.named import check_names
from nasvit.report.tables import Run
from nasvit.results.front import pareto
from nasvit.yaml_file import read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Remeasured:
    """A front point with its latency as recorded and as measured now, on the same scale."""

    trial: int
    arch_id: str
    recorded: LatencyStats
    now: LatencyStats
    limit_ms: float | None

    @property
    def inside(self) -> bool:
        """Whether the new median lies in the recorded interval."""
        return self.recorded.ci_low_ms <= self.now.median_ms <= self.recorded.ci_high_ms

    @property
    def within_limit(self) -> bool:
        """Whether the new median respects the run's limit; true without one."""
        return self.limit_ms is None or self.now.median_ms <= self.limit_ms


def front_of(run: Run, *, device: str | None = None) -> list[Remeasured]:
    """Every front point of a run again, with the run's reference_ms.

    Raises RunError where the device is not the run's: latencies of two devices are never put in one column.
    """
    if "reference_ms" not in run.env or not run.fingerprint:
        raise RunError(f"{run.path}: env.json has no reference_ms or fingerprint; only a run of `nasvit search` can be remeasured")
    spec = device or str(run.experiment.get("device", "cpu"))
    with closing(open_device(spec, threads=1, reference_ms=float(run.env["reference_ms"]))) as target:
        return _front_on(target, run, spec=spec)


def _front_on(target: Device, run: Run, *, spec: str) -> list[Remeasured]:
    if target.fingerprint != run.fingerprint:
        raise RunError(f"{run.path} was measured on device {run.fingerprint} and {spec} here is {target.fingerprint}: their latencies "
                       "cannot be compared; remeasure on the run's own device, with the same versions and settings")
    limit = run.experiment.get("limits", {}).get("latency_ms")
    found = []
    for record in pareto(run.records, run.objectives):
        if record.latency is None:
            raise RunError(f"{run.path}: trial {record.trial} has no latency; it is not complete")
        arch = record.network()
        now = target.measure(build(arch, seed=record.seed), input_shape=(1, arch.in_channels, *arch.image_size), patient=True)
        found.append(Remeasured(trial=record.trial, arch_id=record.arch_id, recorded=LatencyStats.from_dict(record.latency), now=now,
                                limit_ms=None if limit is None else float(limit)))
    if not found:
        raise RunError(f"{run.path}: the front is empty; no trial is complete")
    return found


def network_of(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """The untrained network of an Arch file, and its input shape (1, C, H, W)."""
    arch = read_arch(path)
    return build(arch, seed=0), (1, arch.in_channels, *arch.image_size)


def read_arch(path: Path) -> Arch:
    """An Arch from a JSON or YAML file. Raises ConfigError for anything else."""
    data, _ = read_yaml(path)  # JSON is YAML
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: an Arch must be a mapping with image_size, in_channels, num_classes, stem, stages and head")
    try:
        return Arch.from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


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
