"""A network as the search left it: a short training's checkpoint, with what a user of the weights must know."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasvit.data import DataSet, load
from nasvit.errors import CheckpointError, ConfigError, DataError, RunError
from nasvit.finals.pruned import load_member
from nasvit.finals.subject import Subject
from nasvit.finals.trained import METRICS, Trained, load_trained
from nasvit.models.build import build
from nasvit.models.weight_file import read_weights
from nasvit.results.record import TrialRecord

SHORT = "a short training of the search"
"""How far a network of a search was trained, in the words of its export."""


def run_data(run: Path, experiment: Mapping[str, Any], env: Mapping[str, Any], *, image_size: tuple[int, int]) -> DataSet:
    """The images that a run was searched on, split as there. Raises ConfigError where they are gone or others."""
    spec = str(experiment["data"])
    again = f"restore it or, where it has moved, write its full path behind `data:` in {run / 'experiment.yaml'}"
    try:
        data = load(spec, seed=int(experiment.get("seed", 0)), image_size=image_size)
    except DataError as error:
        raise DataError(f"{error}; the run needs its own data: {again}") from None
    known = (env.get("data") or {}).get("fingerprint")
    if known and known != data.fingerprint:
        raise ConfigError(f"{spec} is not the data that {run} was searched on (fingerprint {data.fingerprint}, was {known}); {again}")
    return data


def load_searched(run: Path, record: TrialRecord, experiment: Mapping[str, Any], env: Mapping[str, Any]) -> Trained:
    """The network of a record from its checkpoint, of a pruning by `load_member`. The run's data is read for normalisation and class names.

    Raises RunError where the checkpoint is gone, CheckpointError where it does not fit, ConfigError where the data is gone or another.
    """
    if record.arch is not None and not record.has_arch:
        return load_member(run, record)
    arch = record.network()
    if record.checkpoint is None or not (run / record.checkpoint).exists():
        raise RunError(f"the checkpoint of trial {record.trial} is gone; `nasvit train {shlex.quote(str(run))} --pick {record.arch_id}` "
                       "makes its weights")
    module = build(arch, seed=record.seed)
    try:
        module.load_state_dict(read_weights(run / record.checkpoint))
    except RuntimeError as error:
        raise CheckpointError(f"{run / record.checkpoint} does not fit trial {record.trial}: {str(error)[:300]}") from None
    data = run_data(run, experiment, env, image_size=arch.image_size)
    about = {"name": data.name, "image_size": list(arch.image_size), "mean": list(data.mean), "std": list(data.std),
             "class_names": list(data.class_names)}
    return Trained(module=module.eval(), subject=Subject.of_arch(arch), metrics={"data": about, "model": None, "test_accuracy": None,
                                                                                "trained": SHORT})


def load_best(run: Path, record: TrialRecord, experiment: Mapping[str, Any], env: Mapping[str, Any]) -> Trained:
    """The network trained in full where it was, else `load_searched`."""
    folder = run / "train" / record.arch_id
    return load_trained(folder) if (folder / METRICS).exists() else load_searched(run, record, experiment, env)
