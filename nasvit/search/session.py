"""One session of a search: bind data, space and device, open or resume the run directory, run the loop, then the baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasvit.data import DataSet, describe, load, rooted
from nasvit.devices import machine_lock, open_device
from nasvit.engines import ENGINES, Engine
from nasvit.errors import ConfigError, RunError
from nasvit.experiment import Experiment, PruneExperiment
from nasvit.models.space_check import check_space
from nasvit.results.precision import FILE as PRECISION_FILE
from nasvit.results.precision import precisions
from nasvit.results.record import TrialRecord, read
from nasvit.search import baselines, directory, pilot, precision, tokens, truth, zero_cost
from nasvit.search.elsewhere import Elsewhere
from nasvit.search.evaluate import Job, Settings, evaluate
from nasvit.search.gone import gone_of, left, summed, without
from nasvit.search.loop import Loop
from nasvit.search.progress import Progress, Snapshot, snapshot
from nasvit.search.restriction import restricted, told
from nasvit.search.samplers import make_sampler
from nasvit.search.screen import make_screen
from nasvit.search.workers import Workers, check_workers, joined, open_workers
from nasvit.search.zero_cost import Scores
from nasvit.space import SearchSpace
from nasvit.training import Recipe
from nasvit.whole_file import read_json

if TYPE_CHECKING:  # SQLAlchemy stands behind it
    from nasvit.search.mirror import Mirror

SUMMARY_EVERY = 5.0
"""Seconds between summaries while a search goes on, so that a killed one has left its figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An experiment with its space bound to its data and its device calibrated; nothing in it is left to choose.

    drifted: what differs from earlier sessions. network: from a record to what its trial was built from. observe: hears every record.
    due: as the Proposer's.
    notes: what the user must know of the space.
    """

    space: Any
    settings: Settings
    env: dict[str, Any]
    experiment: Experiment
    drifted: tuple[str, ...] = ()
    network: Callable[[TrialRecord], Any] = TrialRecord.network
    observe: Callable[[TrialRecord], object] = lambda record: None
    due: Callable[[int], Sequence[Mapping[str, Any]]] = lambda left: ()
    notes: tuple[str, ...] = ()


def run(experiment: Experiment, *, out: Path, resume: bool = False, allow_drift: bool = False, progress: Progress | None = None,
        evaluate: Callable[[Job], TrialRecord] = evaluate, reference_ms: float | None = None,
        storage: str | None = None, workers: Workers | None = None, data_fingerprint: str | None = None) -> dict[str, Any]:
    """Search into the run directory `out` and return its summary. `evaluate` is what a worker does with a job.

    reference_ms: the scale of another run whose latencies shall be comparable; without it the device is calibrated.
    data_fingerprint: of the data of another run whose accuracies shall be.
    storage: URL of an Optuna storage that is given a copy of the trials (`mirror`). It may hold a password, so it is written nowhere.
    workers: of `open_workers(experiment)`, where they have been begun already; the caller shuts them down where this raises early.

    Raises ConfigError before the first trial for anything wrong in the experiment; RunError for a directory that holds
    another run, for drift on `resume` without `allow_drift`, and where every trial fails.
    """
    out = Path(out).absolute()
    check(experiment)
    with directory.claimed(out, resume=resume):
        if storage is not None:
            from nasvit.search.mirror import check_storage

            check_storage(storage, name=out.name, objectives=experiment.objectives, records=read(out / directory.RECORDS))
        with joined(experiment, workers) as ready:
            bound = bind(experiment, out=out, resume=resume, allow_drift=allow_drift, reference_ms=reference_ms, progress=progress)
            experiment, records = bound.experiment, read(out / directory.RECORDS, mend=True)
            if data_fingerprint is not None and bound.env["data"]["fingerprint"] != data_fingerprint:
                raise RunError(f"{experiment.data} has changed since the search that this is to stand beside (fingerprint "
                               f"{bound.env['data']['fingerprint']}, was {data_fingerprint}); restore it and resume")
            if resume:  # what drifted is marked before it replaces what it drifted from
                directory.write_json(out / "env.json", bound.env)
            directory.write(out / "experiment.yaml", experiment.to_yaml())
            directory.write(out / "space.yaml", bound.space.to_yaml())
            directory.write_json(out / "env.json", bound.env)  # last: from here on there is a run to resume
            summary = search_bound(experiment, bound, out=out, records=records, evaluate=evaluate, progress=progress, storage=storage,
                                   workers=ready)
    if str(summary["stopped_because"]).startswith("the first "):
        raise RunError(f"{summary['stopped_because']}; nothing can be searched until this is mended")
    gone = gone_of(read(out / directory.RECORDS), experiment)
    if summary["stopped_because"] != "interrupted" and "random" in experiment.baselines and "latency_ms" not in gone:
        plain: dict[str, Any] = {"sampler": "random", "baselines": (), "stop": "budget", "scores": (), "truth": 0.0,
                                 "minutes": _without_truth(experiment).minutes}
        twin = experiment.model_copy(update=plain | ({"budget": summary["evaluated"]} if experiment.stop == "plateau" else {}))
        twin = left(twin, gone) if gone else twin
        place = out / "baselines" / "random"

        def of_random(now: Snapshot) -> None:
            if progress is not None:
                progress(replace(now, of="random baseline"))

        other = run(twin, out=place, resume=(place / "env.json").exists(), allow_drift=allow_drift, progress=of_random, evaluate=evaluate,
                    reference_ms=bound.settings.reference_ms, data_fingerprint=bound.settings.data_fingerprint)
        if other["stopped_because"] == "interrupted":
            summary = {**summary, "stopped_because": "interrupted"}
    return summary


def check(experiment: Experiment) -> None:
    """Raises ConfigError for names and settings that only the search can judge, before anything is spent."""
    make_sampler(experiment.sampler, seed=0)
    ENGINES[experiment.engine]
    check_workers(experiment)
    Recipe.of(experiment.recipe)
    baselines.check(experiment.baselines)
    zero_cost.check(experiment.scores)
    if experiment.scores and experiment.sampler != "surrogate":
        raise ConfigError(f"scores are learned from by the sampler surrogate alone, not by {experiment.sampler}; choose it, or leave "
                          "scores empty")


def bind(experiment: Experiment, *, out: Path, resume: bool, allow_drift: bool, reference_ms: float | None = None,
         progress: Progress | None = None) -> Bound:
    """Load the data, fit the space to it, open and calibrate the device, and compare with the run's earlier sessions."""
    info = describe(experiment.data)
    natural = experiment.image_size or SearchSpace.load(experiment.space).fit_image_size(info.natural_size)
    space = SearchSpace.load(experiment.space, image_size=natural, in_channels=info.in_channels, num_classes=info.num_classes)
    check_space(space)
    data = load(experiment.data, seed=experiment.seed, image_size=natural)
    experiment = experiment.absolute(data=rooted)
    before = directory.earlier(out, resume=resume)
    gone = gone_of(read(out / directory.RECORDS), experiment)
    device = open_device(experiment.device, threads=1)
    fingerprint = str(before["fingerprint"]) if "latency_ms" in gone else device.fingerprint  # one that is gone is not asked who it is
    if before and before["fingerprint"] != fingerprint:
        raise RunError(f"{out} cannot be resumed on this device: its fingerprint was {before['fingerprint']}, is {fingerprint}, and "
                       "latencies of two devices never stand in one column; resume it where it began, or choose another --out")
    scale = float(before["reference_ms"]) if before else reference_ms
    if scale is None:
        device.calibrate()
    else:
        device.reference_ms = scale
    env: dict[str, Any] = {**directory.versions(), "host": directory.host(), "fingerprint": fingerprint,
           "device": before["device"] if "latency_ms" in gone else device.describe(),
           "reference_ms": device.reference_ms, "data": _about(data, kind=info.kind),
           "space": {"name": space.name, "size": space.size()}, "sessions": int(before.get("sessions", 0)) + 1}
    space, env["excluded"] = restricted(space, device=device, found=before.get("excluded"))
    env["space"]["size"] = space.size()
    device.close()  # the workers have their own
    others, space = _others(experiment, space, before=before, gone=gone, env=env)
    experiment = _with_rungs(experiment, space, data, before=before, out=out, env=env, train_on=device.torch_device,
                             progress=progress)
    drifted = list(before.get("drift", []))
    if before:
        found = directory.drift(before, env, old=Experiment.load(out / "experiment.yaml"), new=experiment,
                                spaces=((out / "space.yaml").read_text(encoding="utf-8"), space.to_yaml()))
        if found and not allow_drift:
            raise RunError(f"{out} cannot be resumed, because it differs in " + "; ".join(found)
                           + ": restore it, choose another --out, or add --allow-drift, which marks the further records")
        drifted += [text for text in found if text not in drifted]
    if drifted:
        env["drift"] = drifted
    settings = Settings(run=str(out), data=experiment.data, device=experiment.device, reference_ms=float(device.reference_ms or 0.0),
                        image_size=natural, seed=experiment.seed, rungs=experiment.rungs or (), recipe=dict(experiment.recipe),
                        limits=dict(experiment.limits), versions=directory.versions(),
                        fingerprint=fingerprint, data_fingerprint=data.fingerprint, others=others,
                        memory="peak_memory_mb" in (*experiment.objectives, *experiment.limits))
    return Bound(space=space, settings=settings, env=env, experiment=experiment, drifted=tuple(drifted),
                 notes=(*data.notes, *told(env["excluded"]), *env.get("pilot", {}).get("told", ())))


def _with_rungs(experiment: Experiment, space: SearchSpace, data: DataSet, *, before: dict[str, Any], out: Path,
                env: dict[str, Any], train_on: str, progress: Progress | None) -> Experiment:
    """The experiment with its rungs: as given, else those of the run's earlier sessions, else what a first network says, which
    `env["pilot"]` then describes."""
    if before.get("pilot"):
        env["pilot"] = before["pilot"]
    if experiment.rungs is not None:
        return experiment
    if before:
        return experiment.model_copy(update={"rungs": Experiment.load(out / "experiment.yaml").rungs})
    recipe = Recipe.of(experiment.recipe)
    base = pilot.two_epochs(len(data.train), batch_size=recipe.batch_size)
    if base >= pilot.LONGEST:
        return experiment.model_copy(update={"rungs": pilot.ladder(base)})
    seconds = None if experiment.minutes is None else 60 * experiment.minutes / (1 + experiment.truth) * pilot.SHARE
    began = time.monotonic()

    def told(text: str) -> None:
        if progress is not None:
            now = snapshot([], budget=experiment.budget, rungs=0, names=experiment.objectives, running=0,
                           elapsed_s=time.monotonic() - began, before=0)
            progress(replace(now, notes=(text,)))

    flown = pilot.fly(space, data, base=base, seed=experiment.seed, recipe=recipe, device=train_on, seconds=seconds,
                      step_guard=machine_lock.training, told=told)
    env["pilot"] = flown.to_dict()
    return experiment.model_copy(update={"rungs": pilot.ladder(flown.steps)})


def _others(experiment: Experiment, space: SearchSpace, *, before: dict[str, Any], gone: Container[str],
            env: dict[str, Any]) -> tuple[dict[str, tuple[str, float, str]], SearchSpace]:
    """The further devices, opened and calibrated: spec, scale and fingerprint by name; and the space without what one of them cannot
    take. `env["devices"]` describes them. One whose latency is `gone` is not asked.

    Raises RunError where a resumed run had another device under a name.
    """
    found: dict[str, tuple[str, float, str]] = {}
    known, about = before.get("devices", {}), {}
    for name, spec in experiment.others.items():
        if f"latency_ms@{name}" in gone:
            about[name] = known[name]
            found[name] = (spec, float(known[name]["reference_ms"]), known[name]["fingerprint"])
            continue
        device = open_device(spec, threads=1)
        if name in known and known[name]["fingerprint"] != device.fingerprint:
            raise RunError(f"the device {name!r} is not the one that the run began with (fingerprint {known[name]['fingerprint']}, now "
                           f"{device.fingerprint}); resume where it is, or choose another --out")
        device.reference_ms = float(known[name]["reference_ms"]) if name in known else device.calibrate()
        about[name] = {**device.describe(), "fingerprint": device.fingerprint, "reference_ms": device.reference_ms, "spec": spec}
        found[name] = (spec, device.reference_ms, device.fingerprint)
        if not before:  # what was left out then is left out already
            space, more = restricted(space, device=device)
            env["excluded"] |= more
            env["space"]["size"] = space.size()
        device.close()
    if about:
        env["devices"] = about
    return found, space


def _about(data: DataSet, *, kind: str) -> dict[str, Any]:
    return {"name": data.name, "kind": kind, "fingerprint": data.fingerprint, "train": len(data.train), "val": len(data.val),
            "classes": data.num_classes, "image_size": list(data.image_size), "notes": list(data.notes)}


def _without_truth(experiment: Experiment) -> Experiment:
    """What the loop sees: of the minutes, those that the truth's trainings leave."""
    if experiment.minutes is None:
        return experiment
    return experiment.model_copy(update={"minutes": experiment.minutes / (1 + experiment.truth)})


def search_bound(experiment: Experiment, bound: Bound, *, out: Path, records: list[TrialRecord], evaluate: Callable[[Job], TrialRecord],
                 progress: Progress | None, storage: str | None = None, workers: Workers | None = None) -> dict[str, Any]:
    """The loop and the named baselines of a bound experiment; returns the summary."""
    directory.check_objectives(records, without(experiment, gone_of(records, experiment)).objectives)
    pruning = isinstance(experiment, PruneExperiment)
    started, earlier = time.monotonic(), read_json(out / "summary.json")
    written, latest, notes = started, None, [*bound.notes, *precision.told(precisions(bound.env), pruning=pruning)]
    learned = Scores(experiment.scores, settings=bound.settings) if experiment.scores else None
    searching = _without_truth(experiment)

    def mark(record: TrialRecord) -> TrialRecord:
        bound.observe(record)
        return replace(record, details={**record.details, "drift": list(bound.drifted)}) if bound.drifted else record

    def write_summary(stopped_because: str) -> dict[str, Any]:
        figures = directory.summary(loop.records, loop.experiment, stopped_because=stopped_because, sessions=bound.env["sessions"],
                                    seconds=time.monotonic() - started, before=earlier)
        figures |= {"gone": summed(loop.gone, experiment)} if loop.gone else {}
        figures |= {"scores": learned.summary()} if learned is not None else {}
        directory.write_json(out / "summary.json", figures)
        return figures

    def tell(text: str) -> None:
        if progress is not None and latest is not None:
            progress(replace(latest, notes=(*notes, text), stopped_because=None))

    def watch(snapshot: Snapshot) -> None:
        nonlocal written, latest
        latest = snapshot
        if time.monotonic() - written > SUMMARY_EVERY:
            written = time.monotonic()
            write_summary("still searching, or killed")
        if progress is not None:
            progress(replace(snapshot, notes=tuple(notes), nodes=engine.nodes()))

    mirror = open_mirror(storage, experiment=experiment, bound=bound, name=out.name, records=records, told=notes.append)
    engine = engine_of(experiment, workers or open_workers(experiment), settings=bound.settings)
    cancel = True  # whatever ends this early does not wait for what is running
    try:
        loop = Loop(searching, settings=bound.settings, space=bound.space, engine=engine, path=out / directory.RECORDS,
                    evaluate=evaluate, records=records, on_record=mark, progress=watch, network=bound.network, scores=learned,
                    screen=make_screen(experiment, settings=bound.settings), due=bound.due,
                    settled=mirror.add if mirror else lambda record: None, told=notes.append)
        stopped = loop.run()
        summary = write_summary(stopped)
        cancel = stopped == "interrupted"
        if not cancel:
            try:
                others = {} if pruning else precisions(bound.env)  # a pruning's result is asked when it is written
                if others and summary["evaluated"]:
                    summary["precision"] = precision.measure_front(loop.records, settings=loop.settings, names=loop.experiment.objectives,
                                                                   precisions=others, path=out / PRECISION_FILE, told=tell)
                    directory.write_json(out / "summary.json", summary)
                if experiment.truth and loop.lost is None:
                    remaining = None if experiment.minutes is None else 60 * experiment.minutes - (time.monotonic() - started)
                    summary["truth"] = truth.run_truth(
                        loop.records, settings=loop.settings, names=loop.experiment.objectives, share=experiment.truth, engine=engine,
                        path=out / truth.FILE, evaluate=evaluate, seconds=remaining, told=tell)
                    directory.write_json(out / "summary.json", summary)
                seen = tokens.draw_front(loop.records, settings=loop.settings, names=loop.experiment.objectives, folder=out)
                if seen is not None:
                    summary["tokens"] = seen
                    directory.write_json(out / "summary.json", summary)
                baselines.run_timm(experiment.baselines, settings=loop.settings, engine=engine, path=out / "baselines.jsonl",
                                   told=tell)
            except KeyboardInterrupt:
                cancel, summary = True, {**summary, "stopped_because": "interrupted"}
    except BaseException:
        cancel = True
        raise
    finally:
        engine.shutdown(cancel=cancel)
        if mirror is not None:
            mirror.close()
            if progress is not None and latest is not None and len(notes) > len(latest.notes):
                progress(replace(latest, notes=tuple(notes)))
    return summary


def engine_of(experiment: Experiment, workers: Workers, *, settings: Settings) -> Engine | Elsewhere:
    """What the loop gives its jobs to: the workers' engine, with the one that measures before it where there is one."""
    if workers.measuring is None:
        return workers.engine
    return Elsewhere(workers.engine, measuring=workers.measuring, settings=settings, gpus=experiment.gpus_per_worker)


def open_mirror(storage: str | None, *, experiment: Experiment, bound: Bound, name: str, records: Sequence[TrialRecord],
                told: Callable[[str], object]) -> Mirror | None:
    """The copy of the trials in the storage; None without one."""
    if storage is None:
        return None
    from nasvit.search.mirror import Mirror

    return Mirror(storage, name=name, objectives=experiment.objectives, space=bound.space, records=records, told=told)
