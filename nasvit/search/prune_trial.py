"""One evaluation of a prune search, in a worker: slice, count, measure, evaluate without training; at higher rungs recover.

Recovery is short fine-tuning with distillation from the dense model (Hinton et al. 2015). The dense model and the importance of
its units are read from the run directory.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from nasvit.data import DataSet, Images
from nasvit.devices import machine_lock
from nasvit.errors import RunError
from nasvit.models.weight_file import read_weights
from nasvit.proxies import Score
from nasvit.pruning.dense import Dense, input_shape, prepare, slice_weights
from nasvit.pruning.files import DENSE, SCORES, load
from nasvit.pruning.plan import Plan
from nasvit.results.record import TrialRecord
from nasvit.search.evaluate import Job, Settings, dataset, derive_seed, evaluated, finished, gate, keep, train_on, twofold
from nasvit.training import Recipe, evaluate, train
from nasvit.whole_file import read_json


@twofold
def prune_evaluate(job: Job) -> TrialRecord:
    """Bring a plan to its rung; what happens to the network is on record, never raised."""
    return evaluated(job, first=cut, further=recover)


def cut(job: Job, blank: TrialRecord) -> TrialRecord:
    """A new plan: slice, gate as every search does, then the validation accuracy as it is."""
    settings, module = job.settings, sliced(job)
    gated = job.gated or gate(module, shape=(1, *input_shape(_plan(job))), settings=settings, record=blank)
    if gated.status == "rejected" or job.only_gate:
        return gated
    begun, data = time.perf_counter(), validation(settings)
    accuracy, loss = evaluate(module, data.val, data=data, device=train_on(settings), step_guard=machine_lock.training)
    score = Score(value=accuracy, seconds=time.perf_counter() - begun, details={"val_loss": loss, "steps": 0})
    return finished(gated, score=score, checkpoint=None)


def recover(job: Job, blank: TrialRecord) -> TrialRecord:
    """A known plan: from its weights so far, the further steps of the next rung, taught by the dense model."""
    settings, earlier = job.settings, job.earlier
    if earlier is None:
        raise RunError(f"trial {job.trial} has no record at rung {job.rung - 1} to go on from")
    module, place = sliced(job), train_on(settings)
    if earlier.checkpoint is not None:
        path = Path(settings.run) / earlier.checkpoint
        if not path.exists():
            raise RunError(f"the checkpoint {path} is gone")
        module.load_state_dict(read_weights(path))
    before, steps = settings.rungs[job.rung - 2 : job.rung]
    teacher = dense_of(settings.run).module.to(place)
    result = train(module, validation(settings), steps=steps - before, seed=derive_seed(settings.seed, job.arch.id, job.rung),
                   recipe=Recipe.of(settings.recipe), device=place, teacher=teacher, step_guard=machine_lock.training, steps_before=before)
    details = {"loss": result.loss, "val_loss": result.val_loss, "steps": steps, "epochs": result.epochs}
    known = replace(blank, status="complete", objectives=earlier.objectives, latency=earlier.latency, fingerprint=earlier.fingerprint)
    score = Score(value=result.accuracy, seconds=result.seconds - result.waited, waited=result.waited, details=details)
    return finished(known, score=score, checkpoint=keep(module, job))


def sliced(job: Job) -> nn.Module:
    """The job's network with the dense model's most important weights."""
    return slice_weights(dense_of(job.settings.run), _plan(job), scores_of(job.settings.run))


def plan_of(record: TrialRecord) -> Plan:
    """The plan of a record of a prune search."""
    if record.arch is None:
        raise RunError(f"trial {record.trial} has no plan")
    return Plan.from_dict(record.arch)


def _plan(job: Job) -> Plan:
    plan: object = job.arch
    if not isinstance(plan, Plan):
        raise RunError(f"a prune search evaluates plans, not {type(plan).__name__}")
    return plan


def validation(settings: Settings) -> DataSet:
    """The data as the dense model is shown them: normalised as in its own training, with the share of the validation images that
    trials are judged by (all of them where the dense model is fast)."""
    given = settings.prune
    return judged_by(dataset(settings), settings.seed, count=int(given["images"]), mean=tuple(given["mean"]), std=tuple(given["std"]))


@lru_cache(maxsize=1)
def dense_of(run: str) -> Dense:
    """The run's dense model, read once in a process."""
    folder = Path(run) / DENSE
    name = read_json(Path(run) / "prune.json").get("model")  # an Arch knows none
    return prepare(load(folder / "arch.json", folder / "model.safetensors"), name=name, check=False)


@lru_cache(maxsize=1)
def scores_of(run: str) -> dict[str, torch.Tensor]:
    """The importance of the dense model's units, read once in a process."""
    return read_weights(Path(run) / DENSE / SCORES)


@lru_cache(maxsize=1)
def judged_by(data: DataSet, seed: int, *, count: int, mean: tuple[float, ...], std: tuple[float, ...]) -> DataSet:
    """The data with `count` of its validation images, always the same ones, and this normalisation."""
    chosen = torch.randperm(len(data.val), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return replace(data, val=Images(data.val.images[chosen], data.val.labels[chosen]), mean=mean, std=std)
