"""Named models of timm under the search's own protocol: same data, recipe, device and training steps at every rung.

They answer what one would have picked without a search. Random search as a baseline is a run of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from nasvit.data import DataSet
from nasvit.devices import machine_lock
from nasvit.errors import ConfigError
from nasvit.named import check_names, make_named
from nasvit.proxies import Score, short_train
from nasvit.results.record import TrialRecord, append, read
from nasvit.search.evaluate import Settings, dataset, derive_seed, failure, finished, gate, train_on
from nasvit.search.in_turn import Submits, in_turn
from nasvit.training import Recipe


def check(names: Iterable[str]) -> None:
    """Raises ConfigError for a model that timm does not have."""
    wanted = [name.removeprefix("timm:") for name in names if name.startswith("timm:")]
    if not wanted:
        return
    try:
        check_names(wanted)
    except ConfigError as error:
        raise ConfigError(f"baseline: {error}") from None


def make(name: str, *, data: DataSet, seed: int) -> nn.Module:
    """An untrained timm model for the data's channels, classes and, where the model accepts one, image size."""
    return make_named(name, image_size=data.image_size, in_channels=data.in_channels, num_classes=data.num_classes, seed=seed)


def evaluate_timm(settings: Settings, label: str, number: int) -> TrialRecord:
    """Measure and train one named model; a failure becomes a record with its reason. Limits do not apply to baselines."""
    clock, name = time.perf_counter(), label.removeprefix("timm:")
    seed = derive_seed(settings.seed, label)
    record = TrialRecord(trial=number, status="failed", rung=len(settings.rungs), arch=None, arch_id=label, label=label, seed=seed,
                         versions=settings.versions, started=time.time())
    try:
        data, recipe = dataset(settings), Recipe.of(settings.recipe)
        free = replace(settings, limits={})
        record = gate(make(name, data=data, seed=seed), shape=(1, data.in_channels, *data.image_size), settings=free, record=record)
        module, trained, scores = make(name, data=data, seed=seed), 0, list[Score]()
        for rung, steps in enumerate(settings.rungs, start=1):
            score = short_train.fit(module, data, budget=steps - trained, seed=derive_seed(settings.seed, label, rung), recipe=recipe,
                                    device=train_on(settings), step_guard=machine_lock.training,
                                    steps_before=trained)
            scores.append(score)
            trained = steps
        whole = replace(scores[-1], seconds=sum(s.seconds for s in scores), waited=sum(s.waited for s in scores))
        record = finished(record, score=whole, checkpoint=None)
    except Exception as error:  # recorded whole: a model that does not fit the data is an answer too
        record = replace(record, objectives={}, **failure(error))
    return replace(record, seconds={**record.seconds, "total": time.perf_counter() - clock})


def run_timm(names: Iterable[str], *, settings: Settings, engine: Submits, path: Path,
             told: Callable[[str], object] = lambda text: None) -> list[TrialRecord]:
    """Evaluate the named models that the file does not have yet, each appended as it comes; `told` hears how far it is."""
    records = read(path, mend=True)
    done = {r.label for r in records if r.status == "complete"}
    wanted, first = [name for name in dict.fromkeys(names) if name.startswith("timm:") and name not in done], len(records)

    def jobs() -> Iterator[tuple[Settings, str, int]]:
        for place, label in enumerate(wanted):
            told(f"baselines: {label}, {place + 1} of {len(wanted)}")
            yield settings, label, first + place

    for (_, label, number), future in in_turn(engine, evaluate_timm, jobs()):
        try:
            record = future.result()
        except Exception as error:  # the worker died: that the model does not fit this machine is an answer too
            record = replace(TrialRecord(trial=number, status="failed", rung=len(settings.rungs), arch=None, arch_id=label, label=label,
                                         versions=settings.versions, started=time.time()), **failure(error))
        append(path, record)
        records.append(record)
    return records
