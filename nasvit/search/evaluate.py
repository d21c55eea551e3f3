"""One evaluation, in a worker: build, count, gate, measure, gate, train, keep. Everything here can be sent to a process.

A worker gets a Job and gives back a TrialRecord; it writes nothing but the checkpoint. A failure becomes a record with
status "failed" and the reason, so that one bad architecture never ends a search.
"""

from __future__ import annotations

import atexit
import hashlib
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasvit.arch import Arch
from nasvit.cost import count
from nasvit.data import DataSet, load, unpacked
from nasvit.devices import Device, DeviceFault, machine_lock, open_device
from nasvit.engines import NoRoomError, parcels
from nasvit.errors import (
    DataError,
    DeviceLostError,
    MeasurementError,
    NasvitError,
    ResourceError,
    RunError,
    StorageError,
    TrainingError,
    UnstableError,
)
from nasvit.models.build import build
from nasvit.models.weight_file import read_weights, write_weights
from nasvit.proxies import Score, short_train
from nasvit.proxies.zero_cost import ZERO_COST, ZeroCost, probe_images, score_arch
from nasvit.results.record import TrialRecord
from nasvit.search.gone import BLAMELESS, FAULTY, UNSETTLED, blamed
from nasvit.search.objectives import judged, passed
from nasvit.training import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all jobs of a run share. rungs: cumulative steps. memory: whether peak memory is asked for. run: the run directory.
    fingerprint: of the run's device; a worker on another one refuses to measure (empty: any). data_fingerprint: of the data, which a worker
    that finds others refuses to train on (empty: any). others: further devices that every
    network is measured on, by name: spec, reference_ms and fingerprint. gone: the names of latencies whose devices have left the search.
    prune: what pruning adds. train_on: where workers train that do
    not measure (empty: where the device's host trains)."""

    run: str
    data: str
    device: str
    reference_ms: float
    image_size: tuple[int, int]
    seed: int
    rungs: tuple[int, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    memory: bool = False
    fingerprint: str = ""
    data_fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    others: dict[str, tuple[str, float, str]] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    prune: dict[str, Any] = field(default_factory=dict)
    train_on: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial to bring to one rung. earlier: its record at the rung below, None for a new trial. truth: not a trial of the search, but
    so many steps of training to hold its proxies against (0: a trial). only_gate: end before the training; gated: the record of such a job,
    to go on from."""

    settings: Settings
    trial: int
    arch: Arch
    rung: int = 1
    params: dict[str, Any] = field(default_factory=dict)
    earlier: TrialRecord | None = None
    truth: int = 0
    only_gate: bool = False
    gated: TrialRecord | None = None


def derive_seed(seed: int, *parts: object) -> int:
    """A seed in [0, 2**31) that follows from the run's seed and the parts alone, whatever worker runs it and when."""
    text = ":".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


Step = Callable[["Job", TrialRecord], TrialRecord]
"""From a job and its blank record to the record of what was done."""
Evaluate = Callable[["Job"], TrialRecord]
_TWOFOLD: set[str] = set()


def twofold(fn: Evaluate) -> Evaluate:
    """Mark a function that understands `only_gate` and `gated`: its measuring and its training may be on two machines."""
    _TWOFOLD.add(f"{fn.__module__}.{fn.__qualname__}")
    return fn


def in_two_steps(fn: Callable[..., Any]) -> bool:
    """Whether the function is marked so."""
    return f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', '')}" in _TWOFOLD


@twofold
def evaluate(job: Job) -> TrialRecord:
    """Bring the trial to its rung by training. Never raises for what happens to the network: the record then says failed, and why."""
    return evaluated(job, first=train_truth if job.truth else prepare, further=promote)


def evaluated(job: Job, *, first: Step, further: Step) -> TrialRecord:
    """The record of a job: of `first` for a new trial, of `further` for a known one. What they raise makes a failed record, but for
    StorageError, which ends the search."""
    started, clock = time.time(), time.perf_counter()
    settings = job.settings
    blank = TrialRecord(trial=job.trial, status="failed", rung=job.rung, arch=job.arch.to_dict(), arch_id=job.arch.id, params=job.params,
                        seed=derive_seed(settings.seed, job.arch.id), versions=settings.versions, started=started)
    try:
        record = first(job, blank) if job.earlier is None else further(job, blank)
    except StorageError:  # the network is not at fault: nothing is recorded, and a resumed search evaluates it
        raise
    except Exception as error:  # recorded whole below: a search must outlive any single network
        record = replace(blank, **failure(error))
    before = 0.0 if job.gated is None else job.gated.seconds.get("total", 0.0)
    seconds = {"train": 0.0, "measure": 0.0, "wait": 0.0, **record.seconds, "total": before + time.perf_counter() - clock}
    return replace(record, seconds=seconds)


def failure(error: BaseException) -> dict[str, Any]:
    """The fields of a failed record: our own errors by their message, any other with its traceback in the details."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, DeviceFault | DeviceLostError) and error.latency:
        return {"status": "failed", "reason": reason, "details": {FAULTY: error.latency}}
    if isinstance(error, NoRoomError | ResourceError):
        return {"status": "failed", "reason": reason, "details": dict(BLAMELESS)}
    if isinstance(error, UnstableError):
        return {"status": "failed", "reason": reason, "details": dict(UNSETTLED), "seconds": {"measure": error.seconds}}
    if isinstance(error, NasvitError):
        return {"status": "failed", "reason": reason}
    trace = "".join(traceback.format_exception(error))  # with the notes that an error from a worker carries
    return {"status": "failed", "reason": reason.strip()[:500], "details": {"traceback": trace[-8000:]}}


def prepare(job: Job, blank: TrialRecord) -> TrialRecord:
    """A new trial: params and MACs, gate, latency (and peak memory), gate, then the first rung's training."""
    settings = job.settings
    gated = job.gated or gate(build(job.arch, seed=blank.seed), shape=(1, job.arch.in_channels, *job.arch.image_size), settings=settings,
                              record=blank)
    if gated.status == "rejected" or job.only_gate:
        return gated
    # built anew: the measured module went through the device's runtime
    module = build(job.arch, seed=blank.seed)
    score = short_train.fit(module, dataset(settings), budget=settings.rungs[0], seed=blank.seed, recipe=Recipe.of(settings.recipe),
                            device=train_on(settings), step_guard=machine_lock.training)
    return finished(gated, score=score, checkpoint=keep(module, job))


def gate(module: nn.Module, *, shape: tuple[int, ...], settings: Settings, record: TrialRecord) -> TrialRecord:
    """The record with everything known before training; status "rejected" at rung 0 where a limit is passed, cheap before dear.

    shape: (1, C, H, W).
    """
    asked = time.perf_counter()
    with machine_lock.training():  # counting is work too: it would disturb another worker's measurement
        wait = time.perf_counter() - asked
        begun = time.perf_counter()
        cost = count(module, input_shape=shape)
        counting = time.perf_counter() - begun
    values = {"params_m": cost.params / 1e6, "macs_g": cost.macs / 1e9}
    seconds = {"wait": wait, "measure": counting}
    latency: dict[str, Any] | None = None
    latencies: dict[str, Any] = {}
    reason, fingerprint = passed(values, settings.limits), ""
    if "latency_ms" not in settings.gone:
        with blamed("latency_ms"):
            target = device(settings)
            fingerprint = _same_device(target, settings.fingerprint)
    if reason is None:
        begun = time.perf_counter()
        if fingerprint:
            with blamed("latency_ms"), target.prepared(module, input_shape=shape) as ready:
                asked = time.perf_counter()
                with target.alone():
                    wait += time.perf_counter() - asked
                    if settings.memory:  # first: whether the network fits the device at all
                        values["peak_memory_mb"] = float(ready.peak_memory_mb())
                        reason = passed(values, settings.limits)
                    if reason is None:
                        stats = ready.measure()
                        latency, values["latency_ms"] = stats.to_dict(), float(stats.median_ms)
        reason = reason or passed(judged(values, latency), settings.limits)
        for name, (spec, reference_ms, own) in settings.others.items():
            if reason is not None or f"latency_ms@{name}" in settings.gone:
                continue
            with blamed(f"latency_ms@{name}"):
                other = _device(spec, reference_ms)
                _same_device(other, own)
                measured = other.measure(module, input_shape=shape)
            latencies[name], values[f"latency_ms@{name}"] = measured.to_dict(), float(measured.median_ms)
            reason = passed(judged(values, latency, latencies), settings.limits)
        seconds = {"wait": wait, "measure": counting + time.perf_counter() - begun - (wait - seconds["wait"])}
    details = {**record.details, "latencies": latencies} if latencies else record.details
    known = replace(record, objectives=values, latency=latency, seconds=seconds, fingerprint=fingerprint, details=details)
    return replace(known, status="complete") if reason is None else replace(known, status="rejected", rung=0, reason=reason)


def _same_device(target: Device, fingerprint: str) -> str:
    """Its fingerprint. Raises MeasurementError for a device that is not the run's; without a fingerprint any is."""
    if fingerprint and target.fingerprint != fingerprint:
        raise MeasurementError(f"this worker's device has fingerprint {target.fingerprint}, the run's {fingerprint}: their "
                               "latencies cannot be compared; use workers of one kind")
    return target.fingerprint


def promote(job: Job, blank: TrialRecord) -> TrialRecord:
    """A known trial: from its checkpoint, the further steps of the next rung as a new cosine cycle (a warm restart)."""
    settings, earlier = job.settings, job.earlier
    if earlier is None or earlier.checkpoint is None:
        raise RunError(f"trial {job.trial} has no checkpoint at rung {job.rung - 1} to go on from")
    module = trained(earlier, settings)
    before, steps = settings.rungs[job.rung - 2 : job.rung]
    score = short_train.fit(module, dataset(settings), budget=steps - before, seed=derive_seed(settings.seed, job.arch.id, job.rung),
                            recipe=Recipe.of(settings.recipe), device=train_on(settings), step_guard=machine_lock.training,
                            steps_before=before)
    known = replace(blank, status="complete", objectives=earlier.objectives, latency=earlier.latency, fingerprint=earlier.fingerprint,
                    details={key: value for key, value in earlier.details.items() if key == "latencies"})
    return finished(known, score=score, checkpoint=keep(module, job))


def train_truth(job: Job, blank: TrialRecord) -> TrialRecord:
    """A known network trained anew, longer than at any rung and in one cycle, with all its zero-cost scores in the details."""
    settings, seed = job.settings, derive_seed(job.settings.seed, job.arch.id, "truth")
    with machine_lock.training():
        try:
            found = scored(job.arch, ZERO_COST.names(), settings=settings)
            scores: dict[str, Any] = {"scores": found.values, "scores_seconds": found.seconds}
        except MeasurementError as error:
            scores = {"scores": {}, "scores_reason": str(error)}
    score = short_train.fit(build(job.arch, seed=seed), dataset(settings), budget=job.truth, seed=seed, recipe=Recipe.of(settings.recipe),
                            device=train_on(settings), step_guard=machine_lock.training)
    return finished(replace(blank, status="complete", seed=seed, details=scores), score=score, checkpoint=None)


def scored(arch: Arch, names: Sequence[str], *, settings: Settings) -> ZeroCost:
    """Zero-cost scores with the run's data and seed; the network's weights are those that its trial begins with.

    Raises MeasurementError where one is not finite.
    """
    images, labels = probe_images(dataset(settings), seed=settings.seed)
    return score_arch(arch, images=images, labels=labels, seed=derive_seed(settings.seed, arch.id), names=names)


def finished(record: TrialRecord, *, score: Score, checkpoint: str | None) -> TrialRecord:
    """The record with the score of its training. Raises TrainingError where a figure of it is not finite."""
    odd = [name for name, value in {"score": score.value, **score.details}.items() if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        raise TrainingError(f"the training gave {', '.join(odd)} that is not finite; lower the recipe's lr or set clip_grad")
    return replace(record, objectives={**record.objectives, "accuracy": score.value}, checkpoint=checkpoint,
                   seconds={**record.seconds, "train": score.seconds, "wait": record.seconds.get("wait", 0.0) + score.waited},
                   details={**record.details, **score.details})


def keep(module: nn.Module, job: Job) -> str:
    """Write the weights. Returns the path relative to the run directory."""
    relative = f"checkpoints/{job.arch.id}-r{job.rung}.safetensors"
    write_weights(Path(job.settings.run) / relative, module.state_dict())
    return relative


def trained(record: TrialRecord, settings: Settings) -> nn.Module:
    """The network of a record with the weights that `keep` wrote. Raises RunError where they are gone."""
    if record.checkpoint is None:
        raise RunError(f"trial {record.trial} has no checkpoint")
    path = Path(settings.run) / record.checkpoint
    if not path.exists():
        raise RunError(f"the checkpoint {record.checkpoint} is gone")
    module = build(record.network(), seed=record.seed)
    module.load_state_dict(read_weights(path))
    return module


# ---- per process caches: what a worker would otherwise load again for every job ---------------------------------------


def dataset(settings: Settings) -> DataSet:
    """The run's training and validation images, as they were sent here, else loaded once in a process. Raises DataError where they are not
    those that the run began with: another split would train on what is validated."""
    data = _sent(parcel_of(settings)) or _dataset(settings.data, settings.seed, settings.image_size)
    if settings.data_fingerprint and data.fingerprint != settings.data_fingerprint:
        raise DataError(f"{settings.data} has changed since the run began (fingerprint {data.fingerprint}, was "
                        f"{settings.data_fingerprint}); restore it and resume")
    return data


def parcel_of(settings: Settings) -> str:
    """The name under which the run's data are sent to workers."""
    return f"data {settings.data} (seed {settings.seed}, {settings.image_size[0]}x{settings.image_size[1]})"


def train_on(settings: Settings) -> str:
    """What `Tensor.to` takes for a training."""
    return settings.train_on or device(settings).torch_device


def device(settings: Settings) -> Device:
    """The run's device with the run's reference latency, opened once in a process."""
    return _device(settings.device, settings.reference_ms)


@lru_cache(maxsize=1)
def _sent(name: str) -> DataSet | None:
    parcel = parcels.fetched(name)
    return None if parcel is None else unpacked(parcel)


@lru_cache(maxsize=1)
def _dataset(spec: str, seed: int, image_size: tuple[int, int]) -> DataSet:
    return load(spec, seed=seed, image_size=image_size)


@lru_cache(maxsize=8)
def _device(spec: str, reference_ms: float) -> Device:
    torch.set_num_threads(1)  # workers stand beside each other: more threads make every one of them slower
    device = open_device(spec, threads=1, reference_ms=reference_ms)
    atexit.register(device.close)  # of another machine it leaves files there
    return device
