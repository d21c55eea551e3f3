"""`nasvit train`: picks of a run, an Arch or a model of timm, trained in full."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nasvit.errors import ConfigError, first_of

if TYPE_CHECKING:  # torch stands behind them
    from nasvit.finals import FinalPlan, Subject, Task
    from nasvit.report import Run
    from nasvit.training import Moment

LINE_SECONDS = 10.0
PREDICTS_FROM = 20
"""Measured networks from which a latency is predicted."""
TRAINED = Path("reports/trained")
MEANT_ANYWHERE = ("knee", "best", "all")
"""Picks that any run has one of; ids and trials are of one run."""


def train(
    run: Annotated[Path | None, typer.Argument(help="A run directory; its data, recipe and device are used.", show_default=False)] = None,
    pick: Annotated[str | None, typer.Option(help="knee (default), best, all, max-latency:8ms, trial:12, an arch id; or several with "
                                                  "commas.")] = None,
    arch: Annotated[Path | None, typer.Option(help="Train one Arch from a JSON or YAML file.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Train timm:NAME; may be repeated.")] = None,
    data: Annotated[str | None, typer.Option(help="Images, where there is no run.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images for --model (default: the data's own).")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A YAML file: epochs, drop_path, teacher, recipe and more.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How long (default: the file's, else 100).")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long, by the clock.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Distil from timm:NAME[@CHECKPOINT] or the folder of a full training.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the training.")] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also the run's named baselines and the same pick of its random "
                                                                "search (of an id: its front's nearest in latency).")] = False,
    device: Annotated[str | None, typer.Option(help="Where latency is measured afterwards (default: the run's device, else cpu).")] = None,
    train_on: Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda where there is a GPU).")] = None,
    out: Annotated[Path | None, typer.Option(help=f"Parent of train/ID (default: the run, else {TRAINED}).")] = None,
) -> None:
    """Train picks of a run, an Arch or a timm model in full, and score them once on the test split. A killed training goes on."""
    from nasvit.finals import FinalPlan

    if sum((run is not None, arch is not None, bool(model))) != 1:
        raise ConfigError("train needs exactly one of a run directory, --arch and --model")
    if run is not None and (data is not None or image_size is not None):
        raise ConfigError("a run brings its own data and image size; leave --data and --image-size away")
    if run is None and (pick is not None or baselines):
        raise ConfigError("--pick and --baselines choose from a run directory; give one")
    if run is None and data is None:
        raise ConfigError("--arch and --model need --data, the images to train on")
    plan = FinalPlan.load(recipe, overrides={"epochs": epochs, "minutes": minutes, "teacher": teacher, "seed": seed})
    if run is not None:
        _of_run(run, pick=pick or "knee", baselines=baselines, plan=plan, device=device, train_on=train_on, out=out)
    else:
        _alone(arch, model or [], data=str(data), image_size=image_size, plan=plan, device=device, train_on=train_on, out=out)


def _of_run(path: Path, *, pick: str, baselines: bool, plan: FinalPlan, device: str | None, train_on: str | None, out: Path | None) -> None:
    from nasvit.finals import Task
    from nasvit.finals.searched import run_data
    from nasvit.finals.subject import NOT_ANEW
    from nasvit.report import load, render

    run = load(path)
    if (path / "prune.json").exists():
        raise ConfigError(f"{path} is the run of a pruning: {NOT_ANEW}")
    size = tuple(run.env.get("data", {}).get("image_size", ()))
    if len(size) != 2 or "data" not in run.experiment:
        raise ConfigError(f"{path} has no experiment.yaml and env.json of a search; only a run of `nasvit search` can be trained from")
    subjects = _picked(run, pick, origin="search")
    if baselines:
        if run.random is None and run.baselines.empty:
            raise ConfigError(f"{path} has no baselines: leave --baselines away, or give it some first, as in nasvit search --resume --out "
                              f"{shlex.quote(str(path))} --baseline random")
        subjects += _named(run)
        if run.random is not None:
            known = {subject.id for subject in subjects}
            rivals = _picked(run.random, _beside(run, run.random, pick), origin="random")
            subjects += [subject for subject in rivals if subject.id not in known]
    spec, seed = str(run.experiment["data"]), int(run.experiment.get("seed", 0))
    data = run_data(path, run.experiment, run.env, image_size=(int(size[0]), int(size[1])))
    task = Task(data=data, data_spec=spec, split_seed=seed, plan=plan, recipe=plan.full_recipe(run.experiment.get("recipe") or {}),
                folder=(out or path) / "train", device=_torch_device(train_on), versions=_versions())
    place = device or str(run.experiment.get("device", "cpu"))
    scale = float(run.env["reference_ms"]) if "reference_ms" in run.env and device is None else None
    _train_all(subjects, task, device=place, reference_ms=scale, fingerprint=run.fingerprint if device is None else "",
               anew=device is not None)
    if _first() and out is None:
        page = next(file for file in render(path) if file.suffix == ".html")
        typer.echo(f"report: {page}")


def _alone(arch: Path | None, models: list[str], *, data: str, image_size: int | None, plan: FinalPlan, device: str | None,
           train_on: str | None, out: Path | None) -> None:
    from nasvit.commands.remeasure import read_arch
    from nasvit.data import load as load_data
    from nasvit.finals import Subject, Task

    if arch is not None:
        if image_size is not None:
            raise ConfigError("an Arch has its own image size; leave --image-size away")
        subjects = [Subject.of_arch(read_arch(arch))]
        size: tuple[int, int] | None = subjects[0].arch.image_size if subjects[0].arch is not None else None
    else:
        subjects = [Subject.of_model(name) for name in models]
        size = None if image_size is None else (image_size, image_size)
    task = Task(data=load_data(data, seed=plan.seed, image_size=size), data_spec=data, split_seed=plan.seed, plan=plan,
                recipe=plan.full_recipe({}), folder=(out or TRAINED) / "train", device=_torch_device(train_on), versions=_versions())
    for text in task.data.notes:
        typer.echo(f"note: {text}", err=True)
    _train_all(subjects, task, device=device or "cpu", reference_ms=None, fingerprint="", anew=device is not None)


def _picked(run: Run, what: str, *, origin: str) -> list[Subject]:
    from nasvit.finals import Subject
    from nasvit.report.picks import pick

    return [Subject.of_arch(record.network(), origin=origin, **_known(record), **_predicted(run, record)) for record in pick(run, what)]


def _beside(run: Run, random: Run, what: str) -> str:
    """The pick of the random search that stands beside `what`: the same words; for a network by its id or trial, which mean nothing there,
    the network of the random front nearest in latency (the first cost, where none is measured), at most as slow where there is one."""
    from nasvit.report.picks import pick

    words, cost = [word.strip() for word in what.split(",")], run.axes[0]
    front = random.front.sort_values(cost)
    for place, word in enumerate(words):
        if word not in MEANT_ANYWHERE and not word.startswith("max-latency:") and len(front):
            within = front[front[cost] <= pick(run, word)[0].objectives[cost]]
            words[place] = str((within if len(within) else front.head(1))["arch_id"].iloc[-1])
    return ",".join(words)


def _named(run: Run) -> list[Subject]:
    from nasvit.finals import Subject
    from nasvit.results.record import read

    last = {record.label: record for record in read(run.path / "baselines.jsonl") if record.label}
    for label, record in last.items():
        if record.status != "complete":
            typer.echo(f"note: {label} is left out: the search could not train it ({record.reason})", err=True)
    return [Subject.of_model(label, origin="baseline", **_known(record)) for label, record in last.items() if record.status == "complete"]


def _known(record: Any) -> dict[str, Any]:
    """What the search recorded of a network, beside which the final figures will stand."""
    latency = record.latency or {}
    return {"trial": record.trial, "rung": record.rung, "accuracy": record.objectives.get("accuracy"),
            "latency_ms": record.objectives.get("latency_ms"), "ci_low_ms": latency.get("ci_low_ms"),
            "ci_high_ms": latency.get("ci_high_ms"), "fingerprint": record.fingerprint}


def _predicted(run: Run, record: Any) -> dict[str, float]:
    """What the latency predictor says of a network after the run's other measurements; nothing where they are too few."""
    from nasvit.devices import LatencyStats
    from nasvit.latency import LatencyModel
    from nasvit.results.record import latest

    others = [r for r in latest(run.records).values() if r.has_arch and r.latency and r.fingerprint == record.fingerprint
              and r.arch_id != record.arch_id]
    if len(others) < PREDICTS_FROM:
        return {}
    model = LatencyModel()
    for other in others:
        found = LatencyStats.from_dict(other.latency or {})
        model.observe(other.network(), found.median_ms, error=(found.ci_high_ms - found.ci_low_ms) / 2 / found.median_ms)
    guess = model.predict(record.network())
    return {"predicted_ms": guess.median_ms, "predicted_low_ms": guess.low_ms, "predicted_high_ms": guess.high_ms}


def _train_all(subjects: list[Subject], task: Task, *, device: str, reference_ms: float | None, fingerprint: str, anew: bool) -> None:
    """fingerprint: of the run's device, whose scale is reference_ms; "" where latencies have a scale of their own. anew: measure on this
    device what another one gave a latency before."""
    from nasvit.devices import open_device
    from nasvit.finals import known_plan, train_in_full
    from nasvit.training import joined

    for subject in subjects:  # before hours are spent on the first of them
        known_plan(subject, task)
    try:
        open_device(device, threads=1).close()
    except ConfigError as error:  # now, and not behind hours of training
        if anew:
            raise
        typer.echo(f"note: {error}; no latency will be measured", err=True)
    opened, after = list[Any](), ExitStack()  # once for all, and only when the first training is done

    def measure_on() -> Any:
        if not opened:
            place = open_device(device, threads=1, reference_ms=reference_ms)
            if fingerprint and place.fingerprint != fingerprint:
                typer.echo(f"note: {device} is not the run's device here; the new latencies stand apart in the report", err=True)
                place.close()
                place = open_device(device, threads=1)  # the run's scale is of another machine
            opened.append(after.enter_context(closing(place)))
        return opened[0]

    rows = []
    with after, joined(device=task.device) as world:
        local = f"cuda:{world.local_rank}" if task.device == "cuda" else task.device
        for number, subject in enumerate(subjects, start=1):
            bar = Bar(f"{subject.label} ({number} of {len(subjects)})", show=world.first)
            with bar as report:
                try:
                    rows.append(train_in_full(subject, replace(task, device=local), world=world, report=report, goes_on=bar.goes_on,
                                              measure_on=measure_on, anew=anew))
                except KeyboardInterrupt:
                    typer.echo("Interrupted. The same command goes on.", err=True)
                    raise typer.Exit(1) from None
        if world.first:
            _print(rows, folder=task.folder)


def _print(rows: list[dict[str, Any]], *, folder: Path) -> None:
    table = Table("network", "test", "validation", "in the search", "latency ms", "params M", "epochs", box=None, header_style="dim")
    for row in rows:
        latency, searched = row.get("latency") or {}, row.get("searched") or {}
        cells = [_percent(row.get("test_accuracy")), _percent(row.get("val_accuracy")), _percent(searched.get("accuracy")),
                 f"{latency['median_ms']:.4g}" if latency else "-", f"{row['params_m']:.3g}", f"{row['epochs']:.4g}"]
        table.add_row(str(row["label"]), *cells)
    Console(width=None if Console().is_terminal else 140).print(table)
    for missing in sorted({str(row["test_missing"]) for row in rows if row.get("test_missing")}):
        typer.echo(f"no test accuracy: {missing}")
    for row in rows:
        if row.get("latency_missing"):
            typer.echo(f"no latency of {row['label']}: {row['latency_missing']}; the same command measures it again")
    typer.echo("weights and metrics: " + first_of([f"{folder / str(row['id'])}/" for row in rows], most=4))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _torch_device(asked: str | None) -> str:
    from nasvit.finals.session import check_device, usual_device

    return usual_device() if asked is None else check_device(asked)


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _versions() -> dict[str, str]:
    from nasvit.search.directory import versions

    return versions()


class Bar:
    """Shows Moments: a bar on a terminal, a line every LINE_SECONDS elsewhere. A context manager."""

    def __init__(self, title: str, *, show: bool, console: Console | None = None) -> None:
        self.title, self.show = title, show
        self.console = console or Console(stderr=True)
        self._printed = time.monotonic()
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Callable[[Moment], None]:
        if self.show and self.console.is_terminal:
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn(),
                                 console=self.console)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=None, state="")
        return self._report

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def goes_on(self, step: int) -> None:
        """Say that a killed training is not begun anew."""
        if self.show:
            self._say(f"{self.title}: going on from step {step}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _report(self, moment: Moment) -> None:
        state = f"epoch {moment.epoch:.1f}, loss {moment.loss:.3f}"
        if moment.val_accuracy is not None:
            state += f", validation {moment.val_accuracy:.2%}"
        if self._bar is not None:
            self._bar.update(self._task, total=moment.steps, completed=moment.step, state=state)
        elif self.show and (time.monotonic() - self._printed >= LINE_SECONDS or moment.step == moment.steps):
            self._printed = time.monotonic()
            self._say(f"{self.title}: step {moment.step} of {moment.steps}, {state}")
