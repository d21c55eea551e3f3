"""Records as trials of an Optuna study, for those who look at them with Optuna's tools. A study made here is a picture: nothing reads it.

A trial is entered at its highest rung, with its values as measured. A rejected one has no values and is entered as pruned; a failed one as
failed. What else a record knows stands in the trial's user attributes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from nasvit.errors import RunError
from nasvit.results.objectives import objective
from nasvit.results.record import TrialRecord, latest, read
from nasvit.search import directory
from nasvit.yaml_file import read_yaml

STATES = {"complete": TrialState.COMPLETE, "rejected": TrialState.PRUNED, "failed": TrialState.FAIL}
TRIAL, ARCH = "trial", "arch_id"
"""Names of user attributes: the record's trial number and its network."""


def create_study(names: Sequence[str], *, storage: optuna.storages.BaseStorage | None = None, study_name: str = "nasvit",
                 load_if_exists: bool = False) -> optuna.Study:
    """An empty study with these objectives (in memory without a storage)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would write into the search's display
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(directions=[objective(name).direction for name in names], storage=storage, study_name=study_name,
                                    load_if_exists=load_if_exists, sampler=optuna.samplers.RandomSampler(seed=0))
        study.set_metric_names(list(names))
    return study


def study_of(records: Sequence[TrialRecord], names: Sequence[str], *, study_name: str = "nasvit") -> optuna.Study:
    """A study in memory of all trials, each at its highest rung, in their order."""
    study, known = create_study(names, study_name=study_name), distributions_of(records)
    for record in sorted(latest(records).values(), key=lambda r: r.trial):
        study.add_trial(frozen(record, names, distributions={name: known[name] for name in record.params}))
    return study


def study_of_run(run: Path) -> tuple[optuna.Study, int]:
    """The study of a run directory, in memory, and how many trials it has; raises RunError where there is no run."""
    if not (run / directory.RECORDS).is_file() or not (run / "experiment.yaml").is_file():
        raise RunError(f"there is no run in {run}; give the directory of a search")
    written = read_yaml(run / "experiment.yaml")[0]
    names = written.get("objectives") if isinstance(written, dict) else None
    if not isinstance(names, list) or not names:
        raise RunError(f"{run / 'experiment.yaml'} names no objectives")
    study = study_of(read(run / directory.RECORDS), [str(name) for name in names], study_name=run.absolute().name)
    return study, len(study.get_trials(deepcopy=False))


def frozen(record: TrialRecord, names: Sequence[str], *, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """The record as a finished trial. distributions: of its parameters, by name."""
    whole = record.status == "complete" and all(name in record.objectives for name in names)
    state = STATES[record.status] if whole or record.status != "complete" else TrialState.FAIL
    trial = create_trial(state=state, values=[record.objectives[name] for name in names] if whole else None, params=record.params,
                         distributions=dict(distributions), user_attrs=_attributes(record, names))
    trial.datetime_start = datetime.fromtimestamp(record.started)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=max(0.0, record.seconds.get("total", 0.0)))
    return trial


def distributions_of(records: Sequence[TrialRecord]) -> dict[str, BaseDistribution]:
    """A distribution for each parameter that holds all values seen: the space itself is not needed."""
    seen: dict[str, dict[Any, None]] = {}
    for record in records:
        for name, value in record.params.items():
            seen.setdefault(name, {})[value] = None
    return {name: _holding(list(values)) for name, values in seen.items()}


def _holding(values: list[Any]) -> BaseDistribution:
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return IntDistribution(low=min(values), high=max(values))
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return FloatDistribution(low=min(values), high=max(values))
    return CategoricalDistribution(sorted(values, key=lambda value: (str(type(value)), str(value))))


def _attributes(record: TrialRecord, names: Sequence[str]) -> dict[str, Any]:
    also = {name: value for name, value in record.objectives.items() if name not in names}
    seconds = {f"{name}_seconds": round(value, 3) for name, value in record.seconds.items()}
    return {TRIAL: record.trial, "rung": record.rung, "status": record.status, ARCH: record.arch_id,
            **({"reason": record.reason} if record.reason else {}), **also, **seconds}
