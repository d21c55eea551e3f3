"""The picture of the tokens: what each block of a network keeps, merges or clusters of the run's own validation images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasvit.data import Images
from nasvit.devices import machine_lock
from nasvit.errors import CheckpointError, RunError
from nasvit.pruning.kept import kept_tokens
from nasvit.pruning.token_sheet import token_picture
from nasvit.results.front import knee, pareto, to_minimised
from nasvit.results.record import TrialRecord
from nasvit.search.evaluate import Settings, dataset, trained
from nasvit.whole_file import whole

FILE = "tokens.png"
SHOWN = 3
"""Validation images in a picture, spread over all."""


def draw(module: nn.Module, val: Images, folder: Path, *, mean: Iterable[float], std: Iterable[float]) -> dict[str, Any] | None:
    """Write FILE; returns its name, how many images it shows and how many blocks of each. None, and no file, where every block sees every
    token on its own."""
    chosen = torch.linspace(0, len(val) - 1, SHOWN).round().long().unique()
    drawn = token_picture(module, val.images[chosen], mean=mean, std=std, one_head=True)
    if drawn is None:
        return None
    with whole(folder / FILE) as temporary:
        drawn[0].save(temporary, format="PNG")
    return {"file": FILE, "images": len(chosen), "panels": drawn[1]}


def draw_front(records: Sequence[TrialRecord], *, settings: Settings, names: Sequence[str], folder: Path) -> dict[str, Any] | None:
    """The picture of the front's knee or, where that selects nothing, of the most accurate member that does, for summary.json; None
    where none does of those that have weights. Images are read only where there is something to show."""
    (folder / FILE).unlink(missing_ok=True)  # of another front, before a resume
    front = [r for r in pareto(records, names) if r.has_arch]
    if not front:
        return None
    middle = front[knee(to_minimised([r.objectives for r in front], names))]
    for record in sorted(front, key=lambda r: (r is not middle, -r.objectives.get("accuracy", 0.0))):
        arch = record.network()
        with suppress(RunError, CheckpointError), machine_lock.training():  # computing is work too: it would disturb a measurement
            module = trained(record, settings)
            if kept_tokens(module, torch.zeros(arch.in_channels, *arch.image_size)):
                data = dataset(settings)
                return {**(draw(module, data.val, folder, mean=data.mean, std=data.std) or {}), "arch_id": record.arch_id,
                        "knee": record is middle}
    return None
