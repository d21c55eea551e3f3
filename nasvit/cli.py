"""The command line. Heavy imports stand inside the commands, so that help and errors come at once.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong. A NasvitError prints one message; --debug shows the traceback.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from nasvit import __version__
from nasvit.commands.compare import compare
from nasvit.commands.dashboard import dashboard
from nasvit.commands.devices import devices
from nasvit.commands.export import export
from nasvit.commands.measure import measure
from nasvit.commands.new import new
from nasvit.commands.profile import profile
from nasvit.commands.prune import prune
from nasvit.commands.repair import repair
from nasvit.commands.show import show
from nasvit.commands.terminal import error_console, fresh, out_console, render
from nasvit.commands.train import train
from nasvit.errors import ConfigError, NasvitError, RunError

DEFAULT_SPACE = "hybrid_tiny"
SAMPLE_SEED = 0

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True, rich_markup_mode=None,
                  help="Search vision transformers for a latency measured on your device.")


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
    except OSError as error:  # a full disk, a missing right: what the system says is the message
        if debug:
            raise
        error_console.print(f"nasvit: {error}", markup=False, highlight=False, soft_wrap=True)
        return RunError.exit_code
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
    device: Annotated[list[str] | None, typer.Option(help="Where latency is measured, such as cpu or cpu/onnxruntime; several as "
                                                          "NAME=DEVICE, each once.")] = None,
    profile: Annotated[str | None, typer.Option(help="What `nasvit profile` wrote for the device: rejects before measuring.")] = None,
    budget: Annotated[int | None, typer.Option(help="Distinct architectures to evaluate.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after this time even if budget is left.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    max_latency: Annotated[list[str] | None, typer.Option(help="Hard limit on measured latency, such as 8ms; of several devices "
                                                               "8ms@NAME, each once.")] = None,
    max_macs: Annotated[str | None, typer.Option(help="Hard limit on multiply-adds, such as 300M.")] = None,
    max_params: Annotated[str | None, typer.Option(help="Hard limit on parameters, such as 5M.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Hard limit on measured peak memory, such as 512MB.")] = None,
    sampler: Annotated[str | None, typer.Option(help="How the next architecture is proposed: see `nasvit list samplers`.")] = None,
    stop: Annotated[str | None, typer.Option(help="plateau ends where little is still expected; budget (default) does not.")] = None,
    engine: Annotated[str | None, typer.Option(help="Where evaluations run: inline, processes or ray.")] = None,
    workers: Annotated[int | None, typer.Option(help="Evaluations at the same time (default: one per core).")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running cluster for engine ray: auto, HOST:PORT, ray://HOST:PORT.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="What each worker of the engine ray reserves, such as 0.5.")] = None,
    baseline: Annotated[list[str] | None, typer.Option(help="random or timm:NAME, under the same protocol; may be repeated.")] = None,
    storage: Annotated[str | None, typer.Option(envvar="NASVIT_STORAGE", help="URL of an Optuna storage that is given a copy of the "
                                                                              "trials to watch.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: reports/runs/DATE-DATA-SPACE).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    allow_drift: Annotated[bool, typer.Option("--allow-drift", help="Resume although space, data, seed, settings or versions differ: "
                                                                        "further records are marked.")] = False,
) -> None:
    """Search architectures; at the end there is a report with their Pareto front."""
    from nasvit.experiment import Experiment, each_once, parse_limit, places
    from nasvit.search.directory import check_new_or_resumed

    if resume and out is None:
        raise ConfigError("--resume needs --out, the directory of the run to go on with")
    if out is not None:
        check_new_or_resumed(out, resume=resume)
    if resume and experiment is None and out is not None and (out / "experiment.yaml").is_file():
        experiment = out / "experiment.yaml"
    given = (*(("latency_ms", text) for text in max_latency or ()), ("macs_g", max_macs), ("params_m", max_params),
             ("peak_memory_mb", max_memory))
    limits = each_once(parse_limit(text, name=name) for name, text in given if text is not None)
    loaded = Experiment.load(experiment, overrides={
        "space": DEFAULT_SPACE if space is None and experiment is None else space, "data": data, "budget": budget,
        **places(device or ()), "profile": profile, "minutes": minutes,
        "seed": seed, "limits": limits or None, "sampler": sampler, "stop": stop, "engine": engine, "workers": workers,
        "ray_address": ray_address, "gpus_per_worker": gpus_per_worker, "baselines": tuple(baseline) if baseline else None})
    place = out or fresh(f"{time.strftime('%Y-%m-%d')}-{Path(loaded.data).stem}-{Path(loaded.space).stem}")

    title = f"nasvit search: {Path(loaded.space).stem} on {loaded.data}, device {loaded.device}, into {place}"
    ready = None
    try:
        if resume:  # nothing is calibrated then, which workers that start would disturb: they import beside this process
            from nasvit.search.workers import warmed

            ready = warmed(loaded, place)
        from nasvit.commands.display import Display
        from nasvit.search import run

        with Display(title=title, console=out_console) as display:
            summary = run(loaded, out=place, resume=resume, allow_drift=allow_drift, progress=display, storage=storage, workers=ready)
    finally:
        if ready is not None:
            ready.shutdown(cancel=True)
    if summary.get("evaluated"):
        render(place)
    elif summary.get("stopped_because") != "interrupted":
        raise RunError(f"no architecture was evaluated: {summary.get('stopped_because')}; loosen the limits or change the space")
    if str(summary.get("stopped_because")).startswith("the device is gone"):
        raise RunError(f"{summary['stopped_because']}; the report holds what was measured before")
    if summary.get("stopped_because") == "interrupted":
        again = f"nasvit search --resume --out {shlex.quote(str(place))}"
        error_console.print(f"Interrupted. Go on with: {again}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def report(run: Annotated[Path, typer.Argument(help="A run directory, finished or not.")]) -> None:
    """Render the report of a run: HTML, picture, tables."""
    render(run)


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
def list_(what: Annotated[str | None, typer.Argument(help="mixers, spaces, samplers, engines, devices, runtimes, data, "
                                                          "proxies or objectives; all where none is given.",
                                                          show_default=False)] = None) -> None:
    """List what can be named: mixers, spaces, samplers, engines, devices, runtimes, data, proxies, objectives."""
    from nasvit.commands.listing import KINDS, listing

    for kind in [what] if what is not None else KINDS:
        table = Table("name", "from", "what it is", title=kind, title_justify="left", box=None, header_style="dim")
        for row in listing(kind):
            table.add_row(*map(escape, row))
        out_console.print(table)


app.command(no_args_is_help=True)(measure)
app.command()(devices)
app.command(no_args_is_help=True)(new)
app.command(no_args_is_help=True)(profile)
app.command(no_args_is_help=True)(prune)
app.command(no_args_is_help=True)(repair)
app.command(no_args_is_help=True)(show)
app.command(no_args_is_help=True)(compare)
app.command(no_args_is_help=True)(dashboard)
app.command(no_args_is_help=True)(export)
app.command(no_args_is_help=True)(train)


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
