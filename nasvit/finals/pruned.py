"""A network of a pruning, its result or a member of its front, with what a user of the weights must know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nasvit.errors import CheckpointError, RunError
from nasvit.finals.subject import Subject
from nasvit.finals.trained import Trained
from nasvit.models.weight_file import read_weights
from nasvit.pruning.dense import build, input_shape, prepare, slice_weights
from nasvit.pruning.files import DENSE, RESULT, SCORES, Form, form_of, load
from nasvit.pruning.plan import Plan
from nasvit.results.record import TrialRecord
from nasvit.whole_file import read_json


def result_trial(run: Path) -> int | None:
    """The trial that became the result of a pruning; None for any other run, and before its end."""
    result = read_json(run / "prune.json").get("pruned")
    return None if result is None else int(result["trial"])


def load_result(run: Path) -> Trained:
    """What the pruning chose, from `pruned/`. Raises RunError or CheckpointError where it is damaged."""
    facts = read_json(run / "prune.json")
    module = load(run / RESULT / "arch.json", run / RESULT / "model.safetensors")
    return _told(module, form_of(module), facts, trained="the result of a pruning", test_accuracy=facts["pruned"].get("test_accuracy"))


def load_member(run: Path, record: TrialRecord) -> Trained:
    """The network of a record: as its recovery left it, or the dense model's slice where it was not recovered.

    Raises RunError where its weights are gone, CheckpointError where they do not fit.
    """
    plan, facts = Plan.from_dict(record.arch or {}), read_json(run / "prune.json")
    if record.checkpoint is None:
        dense = prepare(load(run / DENSE / "arch.json", run / DENSE / "model.safetensors"), name=facts.get("model"), check=False)
        module, trained = slice_weights(dense, plan, read_weights(run / DENSE / SCORES)), "a slice of the dense model without recovery"
    elif not (run / record.checkpoint).exists():
        raise RunError(f"the checkpoint of trial {record.trial} is gone; the result of the run is in {run / RESULT}, and a new "
                       "`nasvit prune` makes others")
    else:
        module, trained = build(plan).eval(), "recovered as far as the search went"
        try:
            module.load_state_dict(read_weights(run / record.checkpoint))
        except RuntimeError as error:
            raise CheckpointError(f"{run / record.checkpoint} does not fit trial {record.trial}: {str(error)[:300]}") from None
    return _told(module, plan, facts, trained=trained, test_accuracy=None)


def _told(module: nn.Module, form: Form, facts: Mapping[str, Any], **more: Any) -> Trained:
    """With the images as the dense model's own training saw them, which prune.json holds."""
    size = input_shape(form)[1:] if isinstance(form, Plan) else form.image_size
    try:
        data = {"name": str(facts["model"]), "image_size": list(size), "mean": facts["mean"], "std": facts["std"],
                "class_names": facts["class_names"]}
    except KeyError as error:
        raise RunError(f"prune.json has no {error}: it is damaged, or of an older nasvit; prune again with --resume, which writes it "
                       "anew") from None
    subject = Subject(id=form.id, plan=form) if isinstance(form, Plan) else Subject.of_arch(form)
    return Trained(module=module, subject=subject, metrics={"data": data, "model": None, **more})
