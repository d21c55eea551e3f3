"""The front of a run in another precision: what each network scores there on the validation images, and how long it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.table import Table

from nasvit.commands.terminal import out_console
from nasvit.data import load as load_data
from nasvit.data.augment import Normaliser
from nasvit.devices import Device, LatencyStats, machine_lock, open_device
from nasvit.errors import DeviceLostError, MeasurementError, RunError
from nasvit.finals.searched import load_searched
from nasvit.models.deploy import deploy
from nasvit.report.tables import Run
from nasvit.results.front import pareto
from nasvit.results.record import TrialRecord
from nasvit.runtimes.accuracy import RuntimeAccuracy, quantised_accuracy, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantised:
    """A front point on a device of another precision: the accuracy that was recorded, eager's now and the device's, and its latency."""

    trial: int
    arch_id: str
    recorded: float
    accuracy: RuntimeAccuracy
    latency: LatencyStats


def front_in_precision(run: Run, *, device: str, told: Callable[[str], object] = lambda text: None) -> list[Requantised]:
    """Every front point of a run, from its checkpoint, on validation images of the run (at most MOST, evenly drawn).

    A point that cannot be measured is told, and the others go on; where none can, its MeasurementError is raised.
    Raises RunError where the run has no front, a checkpoint is gone or the data is another.
    """
    front = pareto(run.records, run.objectives)
    if not front:
        raise RunError(f"{run.path}: the front is empty; no trial is complete")
    found: list[Requantised] = []
    failures: list[MeasurementError] = []
    with closing(open_device(device)) as target:
        for record in front:
            try:
                found.append(_requantised(run, record, target))
            except DeviceLostError:
                raise
            except MeasurementError as error:
                failures.append(error)
                told(f"trial {record.trial} ({record.arch_id}) is left out: {error}")
    if not found:
        raise failures[-1]
    return found


def _requantised(run: Run, record: TrialRecord, target: Device) -> Requantised:
    trained = load_searched(run.path, record, run.experiment, run.env)
    data = load_data(str(run.experiment["data"]), seed=int(run.experiment.get("seed", 0)), image_size=trained.image_size)
    about, chosen = trained.metrics["data"], spread(len(data.val))
    with machine_lock.training():  # computing is work: it would disturb another run's measurement
        images = Normaliser.of(about["mean"], about["std"], device="cpu")(data.val.images[chosen])
        accuracy = quantised_accuracy(deploy(trained.module), runtime=target.runtime, images=images, labels=data.val.labels[chosen],
                                      threads=target.threads)
    stats = target.measure(trained.module, input_shape=(1, trained.in_channels, *trained.image_size), patient=True)
    return Requantised(trial=record.trial, arch_id=record.arch_id, recorded=record.objectives["accuracy"], accuracy=accuracy, latency=stats)


def show(run: Path, *, device: str, as_json: bool) -> None:
    """Print the front in the device's precision."""
    from nasvit.report import load

    rows = front_in_precision(load(run), device=device, told=lambda text: typer.echo(text, err=True))
    if as_json:
        points = [{"trial": row.trial, "arch_id": row.arch_id, "accuracy_recorded": row.recorded, "accuracy_fp32": row.accuracy.eager,
                   "accuracy_int8": row.accuracy.runtime, "same_class": row.accuracy.same, "images": row.accuracy.images,
                   "latency_ms": row.latency.median_ms, "interval_ms": [row.latency.ci_low_ms, row.latency.ci_high_ms],
                   "verdict": row.latency.verdict, "latency": asdict(row.latency)} for row in rows]
        typer.echo(json.dumps({"device": device, "points": points}, indent=2))
        return
    table = Table("trial", "arch", "accuracy recorded", "fp32", "int8", "same class", "ms", "interval", "verdict", box=None,
                  header_style="dim")
    for row in rows:
        table.add_row(str(row.trial), row.arch_id, f"{row.recorded:.2%}", f"{row.accuracy.eager:.2%}", f"{row.accuracy.runtime:.2%}",
                      f"{row.accuracy.same:.2%}", f"{row.latency.median_ms:.4g}",
                      f"{row.latency.ci_low_ms:.4g} to {row.latency.ci_high_ms:.4g}", row.latency.verdict)
    out_console.print(table)
    typer.echo(f"on {rows[0].accuracy.images} validation images, one at a time; the latencies are of {device}, and not the run's own")
