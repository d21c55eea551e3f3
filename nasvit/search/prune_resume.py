"""What a pruning that goes on must have in common with the run: the model, and its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from nasvit.errors import RunError
from nasvit.experiment import PruneExperiment
from nasvit.pruning.dense import Dense


def check_same_model(experiment: PruneExperiment, *, out: Path) -> None:
    """Raises RunError where `out` is a run of another model, before the one is opened with settings of the other. A file may have moved:
    its weights tell, once it is opened."""
    kept = PruneExperiment.load(out / "experiment.yaml").model
    if kept != experiment.model and any(name.startswith("timm:") for name in (kept, experiment.model)):
        raise RunError(f"{out} holds a pruning of {kept}, not of {experiment.model}; leave the model away to go on with it, or begin a run "
                       "of the other: another --out, without --resume")


def weights_id(dense: Dense) -> str:
    """12 hexadecimal digits over plan and weights."""
    digest = hashlib.sha256(dense.plan.id.encode())
    for name, value in sorted(dense.state.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
