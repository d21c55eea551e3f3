"""`nasvit export`: picks of a run as files for a runtime, with labels, preprocessing and a predict.py."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nasvit.errors import ConfigError

if TYPE_CHECKING:  # torch stands behind it
    from nasvit.finals import Trained
    from nasvit.runtimes import FileRuntime

DEFAULT = "onnxruntime"


def export(
    run: Annotated[Path, typer.Argument(help="A run directory, or the folder of one full training (train/ID).")],
    pick: Annotated[str | None, typer.Option(help="knee (default; of a pruning its result), best, all, max-latency:8ms, trial:12, an "
                                                  "arch id; or several with commas.")] = None,
    runtime: Annotated[str, typer.Option(help="See `nasvit list runtimes`; with settings such as onnxruntime?precision=int8.")] = DEFAULT,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="For any number of images, not one.")] = False,
    device: Annotated[str | None, typer.Option(help="Where the latency is measured (default: this CPU with the runtime).")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to (default: export/ID-RUNTIME in the run, its settings behind it).")] = None,
) -> None:
    """Export trained picks: the inference form, labels and preprocessing inside, held against torch, timed, with a predict.py."""
    from nasvit.finals.export import export as write
    from nasvit.finals.export import parse_runtime

    chosen = parse_runtime(runtime)
    networks = _networks(run, pick)
    if out is not None and len(networks) > 1:
        raise ConfigError(f"--out takes one network and {len(networks)} are picked; leave it away")
    for parent, trained in networks:
        typer.echo(f"{trained.subject.label}{_state(trained)}")
        folder = out or parent / "export" / folder_name(trained.subject.id, chosen, dynamic_batch=dynamic_batch)
        done = write(trained, runtime=chosen, folder=folder, dynamic_batch=dynamic_batch)
        typer.echo(f"  file: {done.file} ({done.file.stat().st_size / 1e6:.2f} MB)")
        typer.echo(f"  against torch: {done.parity.relative_error:.1e} of the largest logit, the same class on "
                   f"{done.parity.agreement:.0%} of {done.parity.images} random images")
        typer.echo(f"  latency: {_latency(trained, device or _here(runtime))}")
        script = folder / "predict.py"
        typer.echo(f"  try it: {shlex.join(['python', str(script), 'IMAGE'])}" if script.exists() else
                   f"  no predict.py: {_why_none(chosen.name)}")


def folder_name(network: str, runtime: FileRuntime, *, dynamic_batch: bool) -> str:
    """One for each form, so that none takes another's place: "ID-onnxruntime", "ID-onnxruntime-int8", "ID-onnxruntime-dynamic"."""
    # where an interpreter lies is no property of the file
    values = [value for key, value in sorted(runtime.settings.items()) if key != "python" and value not in runtime.accepted[key][:1]]
    return "-".join([network, runtime.name, *values, *(["dynamic"] if dynamic_batch else [])])


def _state(trained: Trained) -> str:
    """How far it was trained, where that was not in full, and what to do about it."""
    from nasvit.finals.searched import SHORT

    known = trained.metrics.get("trained")
    return "" if known is None else f" ({known}: train it in full before you use it)" if known == SHORT else f" ({known})"


def _why_none(runtime: str) -> str:
    from nasvit.runtimes.predict import PREDICTABLE

    return "the network takes neither grey nor colour images" if runtime in PREDICTABLE else f"{runtime} has none"


def _here(runtime: str) -> str:
    """This machine's CPU; a figure from a busy machine comes with its verdict instead of ending the export."""
    return f"cpu/{runtime}{'&' if '?' in runtime else '?'}noise=keep"


def _latency(trained: Trained, device: str) -> str:
    from nasvit.devices import open_device

    with closing(open_device(device)) as target:
        stats = target.measure(trained.module, input_shape=(1, trained.in_channels, *trained.image_size))
    return f"{stats.median_ms:.4g} ms on {device} ({stats.ci_low_ms:.4g} to {stats.ci_high_ms:.4g}, {stats.verdict}, batch 1)"


def _networks(path: Path, pick: str | None) -> list[tuple[Path, Trained]]:
    """Each network with the folder its exports go to."""
    from nasvit.commands.picked import picked
    from nasvit.finals import load_trained
    from nasvit.finals.trained import METRICS

    if (path / METRICS).exists():
        if pick is not None:
            raise ConfigError(f"{path} is one full training; leave --pick away")
        return [(path, load_trained(path))]
    from nasvit.report import load

    return [(path, trained) for trained in picked(load(path), pick)]
