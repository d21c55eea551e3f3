"""How long recovery trains: the steps of its rungs, and its curve as shares of the dense model's own training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nasvit.data import DataSet
from nasvit.errors import ConfigError
from nasvit.experiment import PruneExperiment
from nasvit.pruning.opening import trained_steps
from nasvit.results.record import TrialRecord
from nasvit.training import Recipe

SHARES = (0.1, 0.3, 1.0)
"""Of the recovery's steps, at the rungs behind the first, which trains nothing."""
OF_DENSE = 0.1
"""Of the dense training's steps, where they are known: the whole recovery, so that the rungs are at 1, 3 and 10 % of them."""
EPOCHS = 3.0
"""The whole recovery where they are not."""

RECIPE = {"warmup": 0.1, "distill_weight": 0.9}
"""What recovery changes of the usual recipe, beside the learning rate (`prune_rate.py`). More of the dense model's word than usual: on
small models trained here it brought back as much or more (experiments/LOG.md)."""


def steps_per_epoch(experiment: PruneExperiment, data: DataSet) -> int:
    """Of a recovery on these data."""
    return max(1, len(data.train) // Recipe.of({**RECIPE, **experiment.recipe}).batch_size)


def dense_training(experiment: PruneExperiment, *, per_epoch: int) -> tuple[int | None, str]:
    """Steps of the dense model's training, None where nobody says, and in words who does."""
    if experiment.dense_steps is not None:
        return experiment.dense_steps, f"the dense training had {experiment.dense_steps} steps, as the experiment says"
    if experiment.dense_epochs is not None:
        steps = max(1, round(experiment.dense_epochs * per_epoch))
        return steps, f"the dense training had {steps} steps, {experiment.dense_epochs:g} epochs of {per_epoch}"
    return trained_steps(name=experiment.model, checkpoint=experiment.checkpoint)


def rungs_of(experiment: PruneExperiment, *, per_epoch: int, dense_steps: int | None) -> tuple[int, ...]:
    """Training steps at each rung, the first none: up to `recover_epochs`, else to a tenth of the dense training, else to EPOCHS."""
    if experiment.recover_epochs is None and dense_steps is not None:
        top = max(1, round(OF_DENSE * dense_steps))
    else:
        top = round((EPOCHS if experiment.recover_epochs is None else experiment.recover_epochs) * per_epoch)
    return (0, *sorted({max(1, round(share * top)) for share in SHARES})) if top else (0,)


def check_rungs(experiment: PruneExperiment, rungs: Sequence[int]) -> None:
    """Raises ConfigError for rungs that the experiment names beside what they follow from."""
    if experiment.rungs is not None and tuple(experiment.rungs) != tuple(rungs):
        raise ConfigError(f"rungs {list(experiment.rungs)} are not those of this recovery, {list(rungs)}: they follow from recover_epochs, "
                          "or from dense_steps or dense_epochs; leave rungs away")


def curve(records: Sequence[TrialRecord], chosen: TrialRecord, *, rungs: Sequence[int], dense_steps: int | None) -> list[dict[str, Any]]:
    """Accuracy of the chosen plan after each rung's steps; the share of the dense training where its length is known."""
    points = []
    for record in sorted((r for r in records if r.trial == chosen.trial and r.status == "complete"), key=lambda r: r.rung):
        steps = rungs[record.rung - 1]
        share = {} if dense_steps is None else {"share_of_dense": steps / dense_steps}
        points.append({"steps": steps, **share, "accuracy": record.objectives["accuracy"]})
    return points
