"""The command line. Heavy imports stand inside the commands, so that help and errors come at once.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong. A NasvitError prints one message; --debug shows the traceback.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nasvit import __version__
from nasvit.commands.repair import repair
from nasvit.errors import ConfigError, NasvitError, RunError

DEFAULT_SPACE = "hybrid_tiny"
RUNS = Path("reports/runs")
SAMPLE_SEED = 0

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True, rich_markup_mode=None,
                  help="Search vision transformers for a latency measured on your device.")
out_console = Console(width=None if sys.stdout.isatty() else 140)  # a log has no width of its own
error_console = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        app(args=[a for a in arguments if a != "--debug"], prog_name="nasvit")
    except NasvitError as error:
        if debug:
            raise
        error_console.print(f"nasvit: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:  # `nasvit list | head`
        sys.stderr.close()
        return 0
    return 0


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True,
                                                  callback=_version)] = False,
            debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Search vision transformers for a latency measured on your device."""


@app.command(no_args_is_help=True)
def search(
    experiment: Annotated[Path | None, typer.Argument(help="An experiment file; options override it.", show_default=False)] = None,
    space: Annotated[str | None, typer.Option(help=f"Space file or name of a shipped one (default: {DEFAULT_SPACE}).")] = None,
    data: Annotated[str | None, typer.Option(help="digits, a folder of images, an .npz file or folder, or a torchvision set.")] = None,
    device: Annotated[str | None, typer.Option(help="Where latency is measured, such as cpu or cpu/eager.")] = None,
    budget: Annotated[int | None, typer.Option(help="Distinct architectures to evaluate.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after this time even if budget is left.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Hard limit on measured latency, such as 8ms.")] = None,
    max_macs: Annotated[str | None, typer.Option(help="Hard limit on multiply-adds, such as 300M.")] = None,
    max_params: Annotated[str | None, typer.Option(help="Hard limit on parameters, such as 5M.")] = None,
    sampler: Annotated[str | None, typer.Option(help="How the next architecture is proposed: see `nasvit list samplers`.")] = None,
    engine: Annotated[str | None, typer.Option(help="Where evaluations run: inline, processes or ray.")] = None,
    workers: Annotated[int | None, typer.Option(help="Evaluations at the same time (default: one per core).")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running cluster for engine ray: auto, HOST:PORT, ray://HOST:PORT.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="What each worker of the engine ray reserves, such as 0.5.")] = None,
    baseline: Annotated[list[str] | None, typer.Option(help="random or timm:NAME, under the same protocol; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: reports/runs/DATE-DATA-SPACE).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    allow_drift: Annotated[bool, typer.Option("--allow-drift", help="Resume although recipe, rungs, limits or data differ.")] = False,
) -> None:
    """Search architectures; at the end there is a report with their Pareto front."""
    from nasvit.experiment import Experiment, parse_limit

    if resume and out is None:
        raise ConfigError("--resume needs --out, the directory of the run to go on with")
    if resume and experiment is None and out is not None and (out / "experiment.yaml").is_file():
        experiment = out / "experiment.yaml"
    given = (("latency_ms", max_latency), ("macs_g", max_macs), ("params_m", max_params))
    limits = dict(parse_limit(text, name=name) for name, text in given if text is not None)
    loaded = Experiment.load(experiment, overrides={
        "space": DEFAULT_SPACE if space is None and experiment is None else space, "data": data, "device": device, "budget": budget,
        "minutes": minutes, "seed": seed, "limits": limits or None, "sampler": sampler, "engine": engine, "workers": workers,
        "ray_address": ray_address, "gpus_per_worker": gpus_per_worker, "baselines": tuple(baseline) if baseline else None})
    place = out or _fresh(f"{time.strftime('%Y-%m-%d')}-{Path(loaded.data).stem}-{Path(loaded.space).stem}")

    from nasvit.commands.display import Display
    from nasvit.search import run

    title = f"nasvit search: {Path(loaded.space).stem} on {loaded.data}, device {loaded.device}, into {place}"
    with Display(title=title, console=out_console) as display:
        summary = run(loaded, out=place, resume=resume, allow_drift=allow_drift, progress=display)
    if summary.get("evaluated"):
        _render(place)
    elif summary.get("stopped_because") != "interrupted":
        raise RunError(f"no architecture was evaluated: {summary.get('stopped_because')}; loosen the limits or change the space")
    if summary.get("stopped_because") == "interrupted":
        again = f"nasvit search --resume --out {shlex.quote(str(place))}"
        error_console.print(f"Interrupted. Go on with: {again}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def report(run: Annotated[Path, typer.Argument(help="A run directory, finished or not.")]) -> None:
    """Render the report of a run: HTML, picture, tables."""
    _render(run)


@app.command(no_args_is_help=True)
def measure(
    run: Annotated[Path | None, typer.Option(help="Measure every front point of this run again.")] = None,
    arch: Annotated[Path | None, typer.Option(help="Measure one Arch from a JSON or YAML file.")] = None,
    model: Annotated[str | None, typer.Option(help="Measure timm:NAME.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to measure (default: the run's device, else cpu).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure latency: the front of a run against its intervals, or one network."""
    if sum(given is not None for given in (run, arch, model)) != 1:
        raise ConfigError("measure needs exactly one of --run, --arch and --model")
    if run is not None:
        _measure_front(run, device=device, as_json=as_json)
        return
    from nasvit.commands import remeasure
    from nasvit.devices import open_device

    module, shape = remeasure.network_of(arch) if arch is not None else remeasure.named_model(str(model))
    stats = remeasure.measure(module, device=open_device(device or "cpu"), input_shape=shape)
    if as_json:
        typer.echo(json.dumps({**stats.to_dict(), "input_shape": shape}, indent=2))
        return
    typer.echo(f"{stats.median_ms:.4g} ms (interval {stats.ci_low_ms:.4g} to {stats.ci_high_ms:.4g}, {stats.verdict}), "
               f"input {'x'.join(map(str, shape))}, {stats.runs} runs, device {stats.fingerprint}")


@app.command(no_args_is_help=True)
def space(
    file: Annotated[str, typer.Argument(help="A space file, or the name of a shipped space.")],
    sample: Annotated[int, typer.Option(min=0, help="Build, count and run this many samples.")] = 0,
    image_size: Annotated[int | None, typer.Option(help="Side of the images (default: the file's).")] = None,
) -> None:
    """Check a search space at every image size it allows, and print its size; with --sample, prove it."""
    from nasvit.models.space_check import check_space
    from nasvit.space import SearchSpace

    loaded = SearchSpace.load(file, image_size=None if image_size is None else (image_size, image_size))
    check_space(loaded)
    loaded.check_all_sizes()
    size = loaded.size()
    typer.echo(f"{loaded.name}: {loaded.file.description or 'no description'}")
    typer.echo(f"{size if size < 10**7 else f'{size:.3e}'} architectures at {'x'.join(map(str, loaded.image_size))}; "
               f"{len(loaded.encoding_names())} numbers encode one; holds at every image size from {loaded.file.sizes[0]} "
               f"to {loaded.file.sizes[-1]}")
    if sample:
        _probe(loaded, samples=sample)


@app.command("list")
def list_(what: Annotated[str | None, typer.Argument(help="mixers, spaces, samplers, engines, devices, runtimes, data or "
                                                          "objectives; all where none is given.", show_default=False)] = None) -> None:
    """List what can be named: mixers, spaces, samplers, engines, devices, runtimes, data, objectives."""
    from nasvit.commands.listing import KINDS, listing

    for kind in [what] if what is not None else KINDS:
        table = Table("name", "what it is", title=kind, title_justify="left", box=None, header_style="dim")
        for name, text in listing(kind):
            table.add_row(name, text)
        out_console.print(table)


app.command(no_args_is_help=True)(repair)


def _fresh(name: str) -> Path:
    """A run directory that is not there yet."""
    path, number = RUNS / name, 1
    while path.exists():
        number += 1
        path = RUNS / f"{name}-{number}"
    return path


def _render(run: Path) -> None:
    """Render the report and print its front and where it is."""
    from nasvit.report import load
    from nasvit.report import render as render_report

    files = render_report(run)
    loaded = load(run)
    front = loaded.front
    known = ("accuracy", "latency_ms", "macs_g", "params_m", "peak_memory_mb")
    shown = [name for name in known if name in front and front[name].notna().any()]
    table = Table("trial", *shown, "rung", "network", title=f"Pareto front: {len(front)} networks", title_justify="left", box=None,
                  header_style="dim")
    for row in front.to_dict("records"):
        mark = " (knee)" if row.get("knee") else ""
        table.add_row(f"{row['trial']}{mark}", *(_cell(name, row[name]) for name in shown), str(row["rung"]), str(row["mixers"]))
    out_console.print(table)
    page = next((file for file in files if file.suffix == ".html"), files[0])
    typer.echo(f"report: {page}")


def _cell(name: str, value: Any) -> str:
    return f"{value:.2%}" if name == "accuracy" else f"{value:.4g}"


def _measure_front(run: Path, *, device: str | None, as_json: bool) -> None:
    from nasvit.commands.remeasure import front_of
    from nasvit.report import load

    rows = front_of(load(run), device=device)
    inside, within = sum(row.inside for row in rows), sum(row.within_limit for row in rows)
    if as_json:
        points = [{"trial": row.trial, "arch_id": row.arch_id, "ci_low_ms": row.recorded.ci_low_ms, "ci_high_ms": row.recorded.ci_high_ms,
                   "recorded_ms": row.recorded.median_ms, "median_ms": row.now.median_ms, "verdict": row.now.verdict,
                   "inside": row.inside, "within_limit": row.within_limit} for row in rows]
        typer.echo(json.dumps({"points": points, "share_inside": inside / len(rows), "share_within_limit": within / len(rows)}, indent=2))
        return
    table = Table("trial", "arch", "recorded ms", "interval", "now ms", "inside", "verdict", box=None, header_style="dim")
    for row in rows:
        table.add_row(str(row.trial), row.arch_id, f"{row.recorded.median_ms:.4g}",
                      f"{row.recorded.ci_low_ms:.4g} to {row.recorded.ci_high_ms:.4g}", f"{row.now.median_ms:.4g}",
                      "yes" if row.inside else "no", row.now.verdict)
    out_console.print(table)
    typer.echo(f"{inside} of {len(rows)} inside their interval ({inside / len(rows):.0%})")
    if rows[0].limit_ms is not None:
        typer.echo(f"{within} of {len(rows)} within the limit of {rows[0].limit_ms:g} ms")


def _probe(space: Any, *, samples: int) -> None:
    from rich.progress import track

    from nasvit.commands.space_probe import probe

    text = "building, counting, running"
    found = list(track(probe(space, samples=samples, seed=SAMPLE_SEED), total=samples, description=text, console=error_console,
                       transient=True))
    good = [p for p in found if p.error is None]
    typer.echo(f"{len(good)} of {samples} samples built, counted and run")
    if good:
        macs, params = sorted(p.macs / 1e6 for p in good), sorted(p.params / 1e6 for p in good)
        typer.echo(f"MACs {macs[0]:.3g} to {macs[-1]:.3g} M (median {macs[len(macs) // 2]:.3g}), "
                   f"params {params[0]:.3g} to {params[-1]:.3g} M (median {params[len(params) // 2]:.3g})")
    bad = [p for p in found if p.error is not None]
    if bad:
        raise NasvitError(f"{len(bad)} of {samples} samples failed; the first: {bad[0].error}\n{bad[0].arch.to_json()}")


if __name__ == "__main__":
    sys.exit(main())
