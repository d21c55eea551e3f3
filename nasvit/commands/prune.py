"""`nasvit prune`: a trained model, made to run in X ms."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasvit.errors import ConfigError

if TYPE_CHECKING:  # pydantic stands behind it
    from nasvit.experiment import PruneExperiment

PREPARING = ("loading data and model, calibrating the device, measuring the dense model; then importance, probes of the choices where there"
             " is a target, and trying the learning rate of recovery")


def prune(
    model: Annotated[str | None, typer.Argument(help="A model's name in timm or the zoo, a .safetensors file with --arch, a run "
                                                     "whose pick was trained, or an experiment file, which options override.",
                                                show_default=False)] = None,
    pick: Annotated[str | None, typer.Option(help="Of a run: knee (default), best, max-latency:8ms, trial:12, an arch id.")] = None,
    data: Annotated[str | None, typer.Option(help="The data the model was trained on: a folder of images, an .npz, digits.")] = None,
    arch: Annotated[Path | None, typer.Option(help="The arch.json beside a .safetensors file.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of timm:NAME for these data (default: the published ones).")] = None,
    max_latency: Annotated[str | None, typer.Option(help="The target, such as 8ms, or 0.6x of the dense model's.")] = None,
    device: Annotated[str | None, typer.Option(help="Where latency is measured, such as cpu or cpu/onnxruntime.")] = None,
    budget: Annotated[int | None, typer.Option(help="Plans to evaluate.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after this time even if budget is left.")] = None,
    space: Annotated[str | None, typer.Option(help="What may be pruned: tokens,heads,mlp,depth,embed.")] = None,
    recover_epochs: Annotated[float | None, typer.Option(help="Training of the front with the dense model as teacher; 0: none (default: a "
                                                              "tenth of the dense training, else 3).")] = None,
    dense_epochs: Annotated[float | None, typer.Option(help="How long the dense model was trained (default: as nasvit train's "
                                                            "metrics.json says).")] = None,
    sibling: Annotated[list[str] | None, typer.Option(help="NAME=FILE: a smaller model's weights for these data, to compare with.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images the model was trained on (default: its own).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    sampler: Annotated[str | None, typer.Option(help="How the next plan is proposed: see `nasvit list samplers`.")] = None,
    engine: Annotated[str | None, typer.Option(help="Where evaluations run: inline, processes or ray.")] = None,
    workers: Annotated[int | None, typer.Option(help="Evaluations at the same time (default: one per core).")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: reports/runs/DATE-prune-MODEL).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, measure the dense model, show some plans, end.")] = False,
) -> None:
    """Prune a trained model to a latency measured on your device."""
    from nasvit.experiment import PruneExperiment
    from nasvit.search.directory import check_new_or_resumed

    if resume and out is None:
        raise ConfigError("--resume needs --out, the directory of the run to go on with")
    if out is not None:
        check_new_or_resumed(out, resume=resume)
    file = Path(model) if model is not None and model.endswith((".yaml", ".yml")) else None
    if file is not None:
        model = None
    elif resume and out is not None and (out / "experiment.yaml").is_file():
        file = out / "experiment.yaml"
    if model is None and file is None:
        raise ConfigError("give the model to prune: its name in timm, a .safetensors file with --arch, a run, or an experiment file")
    wanted: dict[str, Any] = {
        "model": model, "data": data, "arch": None if arch is None else str(arch), "target": max_latency, "device": device,
        "checkpoint": None if checkpoint is None else str(checkpoint), "budget": budget, "minutes": minutes,
        "recover_epochs": recover_epochs, "dense_epochs": dense_epochs, "siblings": _siblings(sibling or []) or None, "seed": seed,
        "sampler": sampler, "engine": engine, "workers": workers, "image_size": image_size,
        "choices": None if space is None else _choices(space)}
    experiment = PruneExperiment.load(file, overrides=wanted)
    if Path(experiment.model).is_dir():
        if not resume and (experiment.arch or experiment.checkpoint):
            raise ConfigError(f"--arch and --checkpoint go with a file and a name; {experiment.model} is a folder and brings its own")
        experiment = _of_run(experiment, pick or "knee")
    elif pick is not None:
        raise ConfigError(f"--pick chooses from a run directory, and {experiment.model} is none")
    if dry_run:
        _show(experiment)
        return
    from nasvit.commands.display import Display
    from nasvit.commands.terminal import fresh, out_console, render
    from nasvit.search.prune import prune as run

    file_ = Path(experiment.model.removeprefix("timm:"))
    name = file_.parent.name if file_.name == "model.safetensors" else file_.stem
    place = out or fresh(f"{time.strftime('%Y-%m-%d')}-prune-{name}")
    title = f"nasvit prune: {experiment.model} on {experiment.data}, device {experiment.device}, into {place}"
    with Display(title=title, console=out_console, preparing=PREPARING) as display:
        facts = run(experiment, out=place, resume=resume, progress=display)
    if facts["stopped_because"] == "interrupted":
        typer.echo(f"Interrupted. Go on with: nasvit prune --resume --out {shlex.quote(str(place))}", err=True)
        raise typer.Exit(1)
    render(place)
    _tell(facts, place)


def _of_run(experiment: PruneExperiment, what: str) -> PruneExperiment:
    """With the two files of the pick's full training, and the data, seed and device of its run where the experiment names none."""
    from nasvit.finals.trained import ARCH, METRICS, WEIGHTS, read_metrics
    from nasvit.report import load
    from nasvit.report.picks import pick

    path = Path(experiment.model)
    if (path / METRICS).exists():
        weights, model = path / WEIGHTS, read_metrics(path).get("model")
        words = [model, "--checkpoint", weights] if model else [weights, "--arch", path / ARCH]
        raise ConfigError(f"{path} is one full training and no run; prune its network by: {_command('prune', *words)}")
    if (path / "prune.json").exists():
        raise ConfigError(f"{path} is a pruning, and what it pruned has no picks; prune its dense model again by: "
                          f"{_command('prune', path / 'dense' / WEIGHTS, '--arch', path / 'dense' / ARCH)}")
    run = load(path)
    found = pick(run, what)
    if len(found) != 1:
        raise ConfigError(f"--pick {what} means {len(found)} networks of {path}, and one is pruned: {', '.join(r.arch_id for r in found)}")
    folder = path / "train" / found[0].arch_id
    if not all((folder / name).exists() for name in (METRICS, WEIGHTS, ARCH)):
        raise ConfigError(f"{found[0].arch_id}, the pick {what} of {path}, is not trained in full yet; first: "
                          f"{_command('train', path, '--pick', found[0].arch_id)}")
    own = {key: run.experiment[key] for key in {"data", "seed", "device"} & run.experiment.keys() - experiment.model_fields_set}
    return experiment.model_copy(update={**own, "model": str(folder / WEIGHTS), "arch": str(folder / ARCH), "checkpoint": None})


def _command(*words: object) -> str:
    """A command to copy, whatever the paths are called."""
    return shlex.join(["nasvit", *map(str, words)])


def _choices(text: str) -> tuple[str, ...]:
    from nasvit.pruning.space import parse_choices

    return parse_choices(text)


def _siblings(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not name or not Path(path).is_file():
            raise ConfigError(f"--sibling is NAME=FILE, such as deit_tiny_patch16_224=tiny.safetensors with its weights, not {text!r}")
        found[name] = str(Path(path).resolve())
    return found


def _show(experiment: Any) -> None:
    """What a run would start from."""
    import random

    from nasvit.pruning.importance import importance
    from nasvit.search.prune import begin, calibration, make_space, settled
    from nasvit.search.prune_recovery import RECIPE, check_rungs, dense_training, rungs_of, steps_per_epoch

    experiment = settled(experiment)
    start = begin(experiment, out=None, resume=False)
    images, labels = calibration(start.data, number=32, seed=experiment.seed)
    space, speed = make_space(experiment, start, importance(start.dense, images, labels, criterion=experiment.criterion).scores)
    typer.echo(f"images of {'x'.join(map(str, start.data.image_size))} px are normalised {start.normalised}")
    typer.echo(f"{experiment.model}: {start.accuracy:.2%}, {start.latency['median_ms']:.4g} ms, {start.macs_g:.4g} G MACs, "
               f"{start.params_m:.4g} M parameters; a plan that keeps everything differs by {start.identity:.1e}")
    target = "none: the whole front" if start.target_ms is None else f"{start.target_ms:.4g} ms"
    per_epoch = steps_per_epoch(experiment, start.data)
    steps, words = dense_training(experiment, per_epoch=per_epoch)
    rungs = rungs_of(experiment, per_epoch=per_epoch, dense_steps=steps)
    check_rungs(experiment, rungs)
    typer.echo(f"target {target}; choices {', '.join(space.choices)} ({space.size():.3g} combinations), token operators "
               f"{', '.join(space.operators) or 'none'}; recovery of {', '.join(map(str, rungs))} steps, recipe "
               f"{RECIPE | experiment.recipe}" + (", its learning rate tried first" if rungs[-1] and "lr" not in experiment.recipe else ""))
    typer.echo(words)
    rng = random.Random(experiment.seed)
    from nasvit.report.shorthand import plan_facts

    for _ in range(5):
        plan = space.sample(rng)
        facts = plan_facts(plan.to_dict())
        typer.echo(f"  about {speed.predict(plan):.3g} ms: {facts['depth']} blocks, width {facts['widths']}, {facts['mixers']}")


def _tell(facts: dict[str, Any], place: Path) -> None:
    from nasvit.report.pruned import precision_words, speed_words

    dense, pruned = facts["dense"], facts["pruned"]
    typer.echo(f"dense  {dense['accuracy']:.2%} at {dense['latency']['median_ms']:.4g} ms, {dense['macs_g']:.4g} G MACs")
    of = "" if pruned["of_target"] is None else f", {pruned['of_target']:.0%} of the target"
    typer.echo(f"pruned {pruned['accuracy']:.2%} at {pruned['latency']['median_ms']:.4g} ms (remeasured; {speed_words(facts)}{of}), "
               f"{pruned['macs_g']:.4g} G MACs: {place / 'pruned'}")
    typer.echo(f"test   no test images ({pruned['test_missing']}): the accuracy above is of the images by which the plan was chosen"
               if pruned["test_accuracy"] is None else
               f"test   {pruned['test_accuracy']:.2%} on {pruned['test_images']} images by which nothing was chosen")
    if len(facts["recovery"]) > 1:
        shares = [f" ({100 * point['share_of_dense']:.2g}%)" if "share_of_dense" in point else "" for point in facts["recovery"]]
        points = [f"{point['accuracy']:.2%} after {point['steps']}{share}" for point, share in zip(facts["recovery"], shares, strict=True)]
        typer.echo(f"steps  {', '.join(points)}; {facts['dense_training']}")
    export, timm = facts["written"]["export"], facts["written"]["timm"]
    typer.echo(f"no file for {export['runtime']}: {export['why']}" if export["file"] is None else
               f"{export['file']}: {precision_words(facts)}" if "accuracy" in export else
               f"{export['file']} agrees with torch to {export['error']:.0e}")
    if timm["file"] is not None:
        typer.echo(f"{timm['file']} loads into timm's own module, with the arguments in timm.json")
    typer.echo(facts["verdict"]["text"])
