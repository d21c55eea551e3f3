"""`nasvit measure`: the front of a run against its intervals, or one network on one device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from nasvit.commands.terminal import out_console
from nasvit.errors import ConfigError

if TYPE_CHECKING:  # torch stands behind them
    from nasvit.devices import Device, LatencyStats


def measure(
    run: Annotated[Path | None, typer.Option(help="Measure every front point of this run again.")] = None,
    arch: Annotated[Path | None, typer.Option(help="Measure one Arch, or a pruned model's arch.json, from a JSON or YAML file.")] = None,
    model: Annotated[str | None, typer.Option(help="Measure timm:NAME, or a model of the zoo by its name.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to measure, such as cpu/onnxruntime?threads=4 or a name that `nasvit devices` "
                                                    "gave; with --run the name of a device there (default: all of the run's, "
                                                    "else cpu).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one inference.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure latency: the front of a run against its intervals, or one network."""
    if sum(given is not None for given in (run, arch, model)) != 1:
        raise ConfigError("measure needs exactly one of --run, --arch and --model")
    if run is not None:
        if batch_size != 1:
            raise ConfigError("a run's latencies are of one image; leave --batch-size away")
        if device is not None and device not in _own_names(run) and _other_precision(device):
            from nasvit.commands.precision import show

            show(run, device=device, as_json=as_json)
            return
        _front(run, device=device, as_json=as_json)
        return
    from nasvit.commands import remeasure
    from nasvit.devices import open_device

    target = open_device(device or "cpu")
    try:
        module, shape = remeasure.network_of(arch) if arch is not None else remeasure.named_model(str(model))
        shape = (batch_size, *shape[1:])
        with target.prepared(module, input_shape=shape) as ready, target.alone():
            peak_mb, stats, step_mb = ready.peak_memory_mb(), ready.measure(), ready.peak_step_mb
        facts = _facts(stats, device=target, shape=shape, peak_mb=peak_mb, step_mb=step_mb)
    finally:
        target.close()
    typer.echo(json.dumps(facts, indent=2) if as_json else _text(facts))


def _own_names(run: Path) -> list[str]:
    """The names that a run gave to several devices: its own come before those of the devices file."""
    from nasvit.report import load
    from nasvit.report.tables import part

    return list(part(load(run).experiment, "devices"))


def _other_precision(device: str) -> bool:
    """Whether a device computes in less than float32: then the accuracy is measured, too."""
    from nasvit.devices.spec import parse

    return parse(device).settings.get("precision", "fp32") != "fp32"


def _facts(stats: LatencyStats, *, device: Device, shape: tuple[int, ...], peak_mb: float, step_mb: float) -> dict[str, Any]:
    """One JSON object: the figure, its interval and verdict first, then everything else that is known of it."""
    about = device.describe()
    state = {key: about[key] for key in ("governor", "frequency_mhz", "max_frequency_mhz", "temperature_c", "load_average", "available_mb")}
    return {"latency_ms": stats.median_ms, "interval_ms": [stats.ci_low_ms, stats.ci_high_ms], "verdict": stats.verdict, "note": stats.note,
            "p10_ms": stats.p10_ms, "p90_ms": stats.p90_ms, "cpu_ms": stats.cpu_ms, "threads": stats.threads, "peak_memory_mb": peak_mb,
            "peak_memory_step_mb": step_mb, "batch_size": stats.batch_size, "input_shape": list(shape), "runs": stats.runs,
            "repeats": stats.repeats, "attempts": stats.attempts, "waited": stats.waited, "slowness": stats.slowness,
            "reference_trend": stats.reference_trend, "reference_ms": stats.reference_ms, "calibration": about["calibration"],
            "fingerprint": stats.fingerprint,
            "device": {key: value for key, value in about.items() if key not in state and key not in ("reference_ms", "calibration")},
            "state": state}


def megabytes(value: float, *, step: float) -> str:
    """`12.3 MB`, `0.0904 MB`; `below 0.1 MB` for what is less than the step in which it is told."""
    if value < step:
        return f"below {step:g} MB"
    return f"{value:.1f} MB" if step or value >= 1 else f"{value:.3g} MB"


def _text(facts: dict[str, Any]) -> str:
    low, high = facts["interval_ms"]
    why = f", because {facts['note']}" if facts["note"] else ""
    return (f"{facts['latency_ms']:.4g} ms (interval {low:.4g} to {high:.4g}, {facts['verdict']}{why}), "
            f"input {'x'.join(map(str, facts['input_shape']))}, {facts['threads']} thread(s), {facts['runs']} runs, peak memory "
            f"{megabytes(facts['peak_memory_mb'], step=facts['peak_memory_step_mb'])}, "
            f"{facts['device']['runtime_version']} in its {facts['device']['form']} form, "
            f"device {facts['fingerprint']}")


def _front(run: Path, *, device: str | None, as_json: bool) -> None:
    from nasvit.commands.remeasure import absent, front_of
    from nasvit.report import load

    loaded = load(run)
    for name in absent(loaded) if device is None else ():
        typer.echo(f"{name} went away in the search and is not asked; --device {name} asks it", err=True)
    rows = front_of(loaded, device=device)
    inside, within = sum(row.inside for row in rows), sum(row.within_limit for row in rows)
    if as_json:
        points = [{"device": row.device, "trial": row.trial, "arch_id": row.arch_id, "ci_low_ms": row.recorded.ci_low_ms,
                   "ci_high_ms": row.recorded.ci_high_ms, "recorded_ms": row.recorded.median_ms, "median_ms": row.now.median_ms,
                   "verdict": row.now.verdict, "inside": row.inside, "limit_ms": row.limit_ms, "within_limit": row.within_limit,
                   "result": row.result} for row in rows]
        typer.echo(json.dumps({"points": points, "share_inside": inside / len(rows), "share_within_limit": within / len(rows)}, indent=2))
        return
    names = list(dict.fromkeys(row.device for row in rows))
    for name in names:
        own = [row for row in rows if row.device == name]
        table = Table("trial", "arch", "recorded ms", "interval", "now ms", "inside", "verdict", box=None, header_style="dim",
                      title=escape(name) if len(names) > 1 else None, title_justify="left")
        for row in own:
            table.add_row(f"{row.trial}{' (result)' if row.result else ''}", row.arch_id, f"{row.recorded.median_ms:.4g}",
                          f"{row.recorded.ci_low_ms:.4g} to {row.recorded.ci_high_ms:.4g}", f"{row.now.median_ms:.4g}",
                          "yes" if row.inside else "no", row.now.verdict)
        out_console.print(table)
        inside = sum(row.inside for row in own)
        typer.echo(f"{inside} of {len(own)} inside their interval ({inside / len(own):.0%})")
        if own[0].limit_ms is not None:
            typer.echo(f"{sum(row.within_limit for row in own)} of {len(own)} within the limit of {own[0].limit_ms:g} ms")
