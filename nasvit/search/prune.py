"""One session of pruning: the search of `session.py` over what is left of a trained model, then the result, remeasured and written.

The run directory holds besides a search's files: `dense/` (the owned dense model and the importance of its units), `probes.json` (what each
choice alone was measured to be worth, where there is a target), `retimed.json` (milliseconds of the best plans, measured again),
`prune.json` (what a user of the result must know of its images, dense and pruned figures, target, recovery curve, siblings, verdict) and
`pruned/` (the chosen network: see `prune_result.py`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.cost import count
from nasvit.data import DataSet, load, load_test, rooted
from nasvit.data.augment import Normaliser
from nasvit.devices import Device, LatencyStats, open_device
from nasvit.errors import ConfigError, DataError, DeviceLostError, MeasurementError, RunError
from nasvit.experiment import PruneExperiment, named_device, parse_limit
from nasvit.models.weight_file import read_weights, write_weights
from nasvit.pruning import files
from nasvit.pruning.dense import Dense, input_shape, prepare, slice_weights
from nasvit.pruning.importance import CRITERIA, importance
from nasvit.pruning.opening import as_trained, full_name, image_size_of, open_model
from nasvit.pruning.plan import Plan
from nasvit.pruning.siblings import measured
from nasvit.pruning.space import GRANULES, STRENGTHS, PruneSpace, parse_choices
from nasvit.pruning.speed import Speed
from nasvit.registry import unknown
from nasvit.results.record import TrialRecord, read
from nasvit.search import directory
from nasvit.search.evaluate import Settings
from nasvit.search.progress import Progress
from nasvit.search.prune_choice import choose, compromise, kin, nearer, within
from nasvit.search.prune_rate import recovery_rate, steps_of_a_try
from nasvit.search.prune_recovery import RECIPE, check_rungs, curve, dense_training, rungs_of, steps_per_epoch
from nasvit.search.prune_result import relative_difference, write_result
from nasvit.search.prune_resume import check_same_model, weights_id
from nasvit.search.prune_siblings import check_named, compared
from nasvit.search.prune_trial import DENSE, SCORES, judged_by, plan_of, prune_evaluate
from nasvit.search.session import Bound, check, search_bound
from nasvit.search.workers import joined
from nasvit.training import Recipe, evaluate
from nasvit.whole_file import read_json

IDENTITY = 1e-6
"""A plan that keeps everything gives the dense model's logits to this, relative to the largest."""
CALIBRATION = 128
"""Training images from which importance is computed."""
EVALUATION_SECONDS, LEAST_IMAGES = 10.0, 200
"""A trial's evaluation takes about so long: fewer validation images where the dense model is slow, at least LEAST_IMAGES."""
PROBES, RETIMED = "probes.json", "retimed.json"
AIM = 0.985
"""Of the largest median that keeps the target: so far under it the strength of a plan is solved for."""
LAST = 0.1
"""The last trials (this share of the budget) come back to the best plan where it leaves time unused, the very last to one next to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The dense model under the run's protocol: everything that is known before the first trial.

    data: normalised as in the model's own training, in words `normalised`; loaded: the same images with mean and std of their own.
    """

    dense: Dense
    data: DataSet
    loaded: DataSet
    normalised: str
    device: Device
    latency: Mapping[str, Any]
    accuracy: float
    macs_g: float
    params_m: float
    identity: float
    target_ms: float | None


def prune(experiment: PruneExperiment, *, out: Path, resume: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Prune into the run directory `out` and return what prune.json holds. Raises ConfigError before anything is spent, RunError for a
    directory of another run, for drift on `resume`, and where no plan keeps the target."""
    out = Path(out).absolute()
    with directory.claimed(out, resume=resume), joined(experiment) as ready:
        experiment = settled(experiment)
        if resume:
            check_same_model(experiment, out=out)
        start = begin(experiment, out=out, resume=resume)
        bound = _bind(experiment, start, out=out, resume=resume)
        records = read(out / directory.RECORDS, mend=True)
        for record in records:
            bound.observe(record)
        directory.write(out / "experiment.yaml", bound.experiment.to_yaml())
        known = read_json(out / "prune.json") if resume else {}  # a result stands until there is another
        directory.write_json(out / "prune.json", known | _dense_facts(start))
        directory.write_json(out / "env.json", bound.env)  # last: from here on there is a run to resume
        summary = search_bound(bound.experiment, bound, out=out, records=records, evaluate=prune_evaluate, progress=progress, workers=ready)
        if summary["stopped_because"] == "interrupted":
            return {**_dense_facts(start), "stopped_because": "interrupted"}
        if str(summary["stopped_because"]).startswith("the first "):
            raise RunError(f"{summary['stopped_because']}; nothing can be pruned until this is mended")
        return _finish(bound, start, out=out, stopped=str(summary["stopped_because"]))


def settled(experiment: PruneExperiment) -> PruneExperiment:
    """With what is left open in a user's words. Raises ConfigError for a model that is neither a name nor a file, and for an unknown
    choice or criterion."""
    if experiment.criterion not in CRITERIA:
        raise ConfigError(unknown("criterion", experiment.criterion, list(CRITERIA)))
    named = experiment.model_copy(update={"model": full_name(experiment.model, arch=experiment.arch),
                                          "choices": parse_choices(",".join(experiment.choices))})
    return named.absolute(data=rooted)  # now: a model given as a file bears its path as its name


def begin(experiment: PruneExperiment, *, out: Path | None, resume: bool) -> Start:
    """Check a settled experiment, open model, named siblings, data and device, prove that a plan that keeps everything is the dense
    model, and measure it. Nothing is written.

    Without `out` there is no run to go on with (a dry run)."""
    check(experiment)
    own = {experiment.device, named_device(experiment.device)[0], *list(experiment.devices)[:1]}
    target_of(experiment.target, dense_ms=math.inf, own=own)  # its words, before anything is measured
    size = experiment.image_size or image_size_of(experiment.model, arch=experiment.arch, checkpoint=experiment.checkpoint)
    loaded = data = load(experiment.data, seed=experiment.seed, image_size=size)
    model = open_model(experiment.model, arch=experiment.arch, checkpoint=experiment.checkpoint, num_classes=data.num_classes,
                       in_channels=data.in_channels, image_size=size)
    dense = prepare(model, name=experiment.model, image_size=data.image_size)
    if input_shape(dense.plan) != (data.in_channels, *data.image_size):
        raise ConfigError(f"{experiment.model} takes images of shape {input_shape(dense.plan)} and the data give "
                          f"{(data.in_channels, *data.image_size)}; set image_size, or take other data")
    data, normalised = as_trained(loaded, name=experiment.model, checkpoint=experiment.checkpoint)
    check_named(experiment, loaded)
    identity = same(dense, model, data)
    before = directory.earlier(out, resume=resume) if out is not None else {}
    device = open_device(experiment.device, threads=1, reference_ms=float(before["reference_ms"]) if before else None)
    if before and (before["fingerprint"], before["dense"]) != (device.fingerprint, weights_id(dense)):
        raise RunError(f"{out} cannot be resumed with another device or other weights: they were {before['fingerprint']} and "
                       f"{before['dense']}, are {device.fingerprint} and {weights_id(dense)}")
    shape = (1, *input_shape(dense.plan))
    known = read_json(out / "prune.json") if before and out is not None else {}
    latency = known["dense"]["latency"] if known else device.measure(dense.module, input_shape=shape, patient=True).to_dict()
    accuracy = known["dense"]["accuracy"] if known else evaluate(dense.module, data.val, data=data, device=device.torch_device)[0]
    cost = count(dense.module, input_shape=shape)
    return Start(dense=dense, data=data, loaded=loaded, normalised=normalised, device=device, latency=latency, accuracy=accuracy,
                 macs_g=cost.macs / 1e9, params_m=cost.params / 1e6, identity=identity,
                 target_ms=target_of(experiment.target, dense_ms=latency["median_ms"], own=own))


def target_of(text: str | None, *, dense_ms: float, own: Collection[str] = ()) -> float | None:
    """`target_of("0.6x", dense_ms=10) == 6.0`, `target_of("8ms", ..) == 8.0`.

    own: the names of the run's device, which `8ms@NAME` may give. Raises ConfigError for any other, and for what is not faster than dense.
    """
    if text is None:
        return None
    text, at, device = text.partition("@")
    if at and device.strip() not in own:
        raise ConfigError(f"the target {text.strip()!r} is on the latency of {device.strip()!r}, and a pruning has one latency, on "
                          f"{', '.join(sorted(own)) or 'its device'}; leave @{device.strip()} away, or choose that device with --device")
    if text.strip().endswith("x"):
        try:
            share = float(text.strip()[:-1])
        except ValueError:
            share = math.nan
        if not 0 < share < 1:
            raise ConfigError(f"the target {text!r} must be a share of the dense model's latency between 0x and 1x, such as 0.6x")
        return share * dense_ms
    limit = parse_limit(text)[1]
    if limit >= dense_ms:
        raise ConfigError(f"the target {limit:g} ms is no limit: the dense model takes {dense_ms:.3g} ms here already")
    return limit


def same(dense: Dense, model: nn.Module, data: DataSet) -> float:
    """The identity self-test: largest difference between the model's logits and a plan's that keeps everything, relative to the largest
    logit. Raises RunError above IDENTITY."""
    images = calibration(data, number=4, seed=0)[0]
    with torch.inference_mode():
        whole = slice_weights(dense, dense.plan, {})
        ours, theirs = whole(images), model.eval()(images)
    difference = relative_difference(ours, theirs)
    if not difference <= IDENTITY:
        raise RunError(f"keeping everything does not give the dense model: its logits differ by {difference:.1e} (at most {IDENTITY:.0e}); "
                       "nothing was pruned")
    return difference


def calibration(data: DataSet, *, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """(n, C, H, W) normalised training images and their labels, drawn at random."""
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:number]
    normalise = Normaliser.of(data.mean, data.std, device=torch.device("cpu"))
    return normalise(data.train.images[chosen]), data.train.labels[chosen]


def _bind(experiment: PruneExperiment, start: Start, *, out: Path, resume: bool) -> Bound:
    dense, data, device = start.dense, start.data, start.device
    per_epoch = steps_per_epoch(experiment, data)
    dense_steps, words = dense_training(experiment, per_epoch=per_epoch)
    rungs = rungs_of(experiment, per_epoch=per_epoch, dense_steps=dense_steps)
    top = rungs[-1]
    if not resume:  # a run's own are in its file, and held against these as everything else
        check_rungs(experiment, rungs)
    limits = dict(experiment.limits) | ({"latency_ms": start.target_ms} if start.target_ms is not None else {})
    experiment = experiment.model_copy(update={"rungs": rungs, "limits": limits, "recipe": {**RECIPE, **experiment.recipe},
                                               "image_size": data.image_size, "dense_steps": dense_steps, "dense_epochs": None})
    images = min(len(data.val), max(LEAST_IMAGES, int(EVALUATION_SECONDS * 1e3 / start.latency["median_ms"])))
    before = directory.earlier(out, resume=resume)
    kept = PruneExperiment.load(out / "experiment.yaml") if before else None
    if kept is not None and "lr" in kept.recipe:
        experiment = experiment.model_copy(update={"recipe": {"lr": kept.recipe["lr"], **experiment.recipe}})
    env: dict[str, Any] = {**directory.versions(), "host": directory.host(), "device": device.describe(), "fingerprint": device.fingerprint,
           "reference_ms": device.reference_ms, "dense": weights_id(dense), "sessions": int(before.get("sessions", 0)) + 1,
           "data": {"name": data.name, "kind": data.kind, "fingerprint": data.fingerprint, "train": len(data.train), "val": len(data.val),
                    "judged_by": images, "classes": data.num_classes, "image_size": list(data.image_size), "mean": list(data.mean),
                    "std": list(data.std), "notes": list(data.notes)},
           "space": {"name": f"what is left of {experiment.model}"}}
    if "recovery_rates" in before:
        env["recovery_rates"] = before["recovery_rates"]
    if kept is not None:
        found = directory.drift(before, env, old=kept, new=experiment)
        if found:
            raise RunError(f"{out} cannot be resumed, because it differs in {'; '.join(found)}: restore it, or choose another --out")
    scores = _importance(experiment, start, folder=out / DENSE, resume=resume)
    space, speed = make_space(experiment, start, scores)
    env["space"]["size"] = space.size()
    env["dense_training"] = words if kept is None or kept.dense_steps != dense_steps else before.get("dense_training", words)
    notes: tuple[str, ...] = (*data.notes, f"images of {'x'.join(map(str, start.data.image_size))} px are normalised {start.normalised}",
                              f"recovery trains {', '.join(map(str, rungs))} steps; {env['dense_training']}")
    if start.target_ms is not None:
        asked, failed = _probed(space, start, scores, path=out / PROBES, resume=bool(before))
        for plan, ms, half_width in asked:
            speed.observe(plan, ms, half_width=half_width)
        notes += tuple(f"a probe could not be measured, so that the first plans are further from the target: {why}" for why in failed[:1])
    seen: list[TrialRecord] = []
    again: dict[str, list[float]] = read_json(out / RETIMED) if before else {}
    directory.write_json(out / RETIMED, again)

    def retimed(best: TrialRecord) -> None:
        if str(best.trial) in again:
            return
        again[str(best.trial)] = []
        try:
            stats = start.device.measure(slice_weights(dense, plan_of(best), scores), input_shape=(1, *input_shape(dense.plan)))
        except DeviceLostError:
            raise
        except MeasurementError:  # it only steers
            return
        speed.observe(plan_of(best), stats.median_ms, half_width=stats.half_width)
        again[str(best.trial)].append(stats.median_ms)
        directory.write_json(out / RETIMED, again)

    def due(left: int) -> list[dict[str, Any]]:
        if start.target_ms is None or left > max(2, round(LAST * experiment.budget)):
            return []
        if done := within(seen, limits=limits):
            retimed(choose(done, images=images, again=again))
        beside = partial(kin, values=space.parameters(), rng=random.Random(f"{experiment.seed} {len(seen)}")) if left == 1 else None
        return nearer(seen, limits=limits, images=images, aim_ms=_aim(start.target_ms, speed), again=again, beside=beside)

    if top and "lr" not in experiment.recipe:
        seen_data, tried = judged_by(data, experiment.seed, count=images, mean=data.mean, std=data.std), steps_of_a_try(top)
        rates = recovery_rate(space, dense, scores, seen_data, recipe=Recipe.of(experiment.recipe), steps=tried, seed=experiment.seed,
                              device=device.torch_device)
        experiment = experiment.model_copy(update={"recipe": {**experiment.recipe, "lr": next(iter(rates))}})
        env["recovery_rates"] = [{"lr": rate, "val_loss": loss if math.isfinite(loss) else None} for rate, loss in rates.items()]
        notes += (f"recovery's learning rate is {next(iter(rates)):.2g}: validation loss of a middling plan after {tried} steps "
                  + ", ".join(f"{loss:.3g} at {rate:.2g}" for rate, loss in rates.items()),)
    settings = Settings(run=str(out), data=experiment.data, device=experiment.device, reference_ms=float(device.reference_ms or 0.0),
                        image_size=data.image_size, seed=experiment.seed, rungs=rungs, recipe=dict(experiment.recipe), limits=limits,
                        versions=directory.versions(), fingerprint=device.fingerprint, data_fingerprint=data.fingerprint,
                        prune={"images": images, "mean": data.mean, "std": data.std},
                        memory="peak_memory_mb" in (*experiment.objectives, *limits))

    def observe(record: TrialRecord) -> None:
        seen.append(record)
        if record.latency is not None and record.rung <= 1 and record.arch is not None:
            stats = LatencyStats.from_dict(record.latency)
            for ms in (stats.median_ms, *again.get(str(record.trial), ())):
                speed.observe(plan_of(record), ms, half_width=stats.half_width)

    return Bound(space=space, settings=settings, env=env, experiment=experiment, network=plan_of, observe=observe, due=due,
                 notes=notes)


def _probed(space: PruneSpace, start: Start, scores: Mapping[str, Tensor], *, path: Path,
            resume: bool) -> tuple[list[tuple[Plan, float, float]], list[str]]:
    """The space's probes, each with milliseconds and the half width of their interval, measured once in a run; and why others could not
    be measured. They only steer, so the run goes on without; a device that is gone ends it."""
    rows = read_json(path).get("probes", []) if resume else []
    for plan in () if resume else space.probes():
        try:
            stats = start.device.measure(slice_weights(start.dense, plan, scores), input_shape=(1, *input_shape(start.dense.plan)))
            rows.append({"plan": plan.to_dict(), "ms": stats.median_ms, "half_width": stats.half_width})
        except DeviceLostError:
            raise
        except MeasurementError as error:
            rows.append({"plan": plan.to_dict(), "why": str(error)})
    if not resume:
        directory.write_json(path, {"probes": rows})
    return ([(Plan.from_dict(one["plan"]), float(one["ms"]), float(one["half_width"])) for one in rows if "why" not in one],
            [str(one["why"]) for one in rows if "why" in one])


def _aim(target_ms: float, speed: Speed) -> float:
    """Where a plan's median should lie: the upper end of its interval is held against the target."""
    return AIM * target_ms / (1 + speed.half_width)


def _importance(experiment: PruneExperiment, start: Start, *, folder: Path, resume: bool) -> dict[str, Tensor]:
    """The scores, computed once in a run and kept beside the dense model, where the workers read both."""
    files.save(start.dense.module, folder)
    path = folder / SCORES
    if resume and path.is_file():  # what a run that never began left there may be of another model
        return read_weights(path)
    images, labels = calibration(start.data, number=CALIBRATION, seed=experiment.seed)
    scores = importance(start.dense, images, labels, criterion=experiment.criterion).scores
    write_weights(path, scores)
    return scores


def make_space(experiment: PruneExperiment, start: Start, scores: Mapping[str, Tensor]) -> tuple[PruneSpace, Speed]:
    """The space, and what it knows of speed."""
    layout = start.dense.layout
    parts = {"block": ("heads", "mlp"), "attention": ("heads",), "mlp": ("mlp",)}
    matter = {part: [float(sum(scores[f"{n}.{i}"].sum() for n in names if f"{n}.{i}" in scores)) for i in range(len(layout.blocks))]
              for part, names in parts.items()}
    speed = Speed(start.dense.plan, layout=layout, dense_ms=float(start.latency["median_ms"]))
    target = start.target_ms
    solve = None if target is None else speed.solver(aim_ms=lambda: _aim(target, speed), steps=STRENGTHS)
    orders = {part: sorted(range(len(values)), key=values.__getitem__) for part, values in matter.items()}
    space = PruneSpace(start.dense.plan, layout=layout, choices=experiment.choices, orders=orders, solve=solve,
                       granule=GRANULES[start.device.runtime.settings.get("precision", "fp32")])
    return space, speed


def _dense_facts(start: Start) -> dict[str, Any]:
    return {"model": start.dense.plan.source.name, "target_ms": start.target_ms, "identity": start.identity, "mean": list(start.data.mean),
            "std": list(start.data.std), "normalised": start.normalised, "class_names": list(start.data.class_names),
            "dense": {"latency": dict(start.latency), "accuracy": start.accuracy, "macs_g": start.macs_g, "params_m": start.params_m}}


def _finish(bound: Bound, start: Start, *, out: Path, stopped: str) -> dict[str, Any]:
    """Choose, measure again, evaluate on all validation images and once on the test images, write; then compare with siblings."""
    experiment, records = bound.experiment, read(out / directory.RECORDS)
    assert isinstance(experiment, PruneExperiment)
    done = within(records, limits=bound.settings.limits)
    if not done and not stopped.startswith(("budget", "space exhausted", "the limits leave too little")):
        raise RunError(f"the run ended before a plan was evaluated that keeps the target ({stopped}); go on with --resume")
    if not done:
        raise RunError("no plan could be evaluated; the records say why" if start.target_ms is None else
                       f"no plan of {experiment.model} keeps the target of {start.target_ms:.4g} ms; raise it, or allow more with --space")
    if stopped.startswith("the device is gone"):  # the result is measured again, which it could not be
        raise DeviceLostError(f"{stopped}; what was evaluated is on record: when the device is back, go on with --resume")
    chosen = (compromise(done, dense_ms=float(start.latency["median_ms"])) if start.target_ms is None else
              choose(done, images=int(bound.settings.prune["images"]), again=read_json(out / RETIMED)))
    module = slice_weights(start.dense, plan_of(chosen), read_weights(out / DENSE / SCORES))
    if chosen.checkpoint is not None:
        module.load_state_dict(read_weights(out / chosen.checkpoint))
    again = start.device.measure(module, input_shape=(1, *input_shape(start.dense.plan)), patient=True).to_dict()
    accuracy = evaluate(module, start.data.val, data=start.data, device=start.device.torch_device)[0]
    tested = _tested(module, experiment, start)
    about = {"labels": list(start.data.class_names), "mean": list(start.data.mean), "std": list(start.data.std), "accuracy": accuracy,
             "network": f"{start.dense.plan.source.name}, pruned", **tested}
    written = write_result(module, out / "pruned", dense=start.dense.module, runtime=start.device.runtime, threads=start.device.threads,
                           val=start.data.val, shape=input_shape(start.dense.plan), images=about)
    facts = {**_dense_facts(start), "stopped_because": "done", "written": written,
             "pruned": {"trial": chosen.trial, "id": chosen.arch_id, "latency": again, "recorded_ms": chosen.objectives["latency_ms"],
                        "accuracy": accuracy, **tested, "macs_g": chosen.objectives["macs_g"], "params_m": chosen.objectives["params_m"],
                        "of_target": None if start.target_ms is None else again["median_ms"] / start.target_ms},
             "recovery": curve(records, chosen, rungs=bound.settings.rungs, dense_steps=experiment.dense_steps),
             "dense_training": bound.env["dense_training"],
             **({} if experiment.dense_steps is None else {"dense_steps": experiment.dense_steps}),
             "siblings": [], "verdict": {"dominated": None, "by": None, "text": "not compared with smaller siblings yet"}}
    directory.write_json(out / "prune.json", facts)  # the result stands whatever becomes of the comparison
    facts |= compared(measured("pruned", again, accuracy=accuracy), experiment, model=start.dense.plan.source.name, data=start.loaded,
                      device=start.device)
    directory.write_json(out / "prune.json", facts)
    return facts


def _tested(module: nn.Module, experiment: PruneExperiment, start: Start) -> dict[str, Any]:
    """Accuracy on the test images, by which nothing was chosen; where there are none, the reason."""
    try:
        test = load_test(experiment.data, seed=experiment.seed, image_size=start.data.image_size)
    except DataError as error:
        return {"test_accuracy": None, "test_images": 0, "test_missing": str(error)}
    accuracy = evaluate(module, test, data=start.data, device=start.device.torch_device)[0]
    return {"test_accuracy": accuracy, "test_images": len(test)}
