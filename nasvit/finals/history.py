"""The course of a full training: history.csv always, TensorBoard's event files where it is installed."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nasvit.training import Moment
from nasvit.whole_file import whole

COLUMNS = tuple(field.name for field in fields(Moment))
TENSORBOARD = "tensorboard"


class History:
    """`history.report(moment)` appends a row; rows that a kill left behind the state on disk are replaced. then: who else is told."""

    def __init__(self, folder: Path, *, then: Callable[[Moment], None] | None = None) -> None:
        self.path, self.then = folder / "history.csv", then
        self._begun = False
        self._writer: Any = None
        self._events = folder / TENSORBOARD

    def report(self, moment: Moment) -> None:
        if not self._begun:
            self._begin(moment.step)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(["" if value is None else value for value in asdict(moment).values()])
        if self._writer is not None:
            for name in ("loss", "lr", "val_accuracy", "val_loss"):
                if getattr(moment, name) is not None:
                    self._writer.add_scalar(name, getattr(moment, name), moment.step)
        if self.then is not None:
            self.then(moment)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _begin(self, step: int) -> None:
        """Keep the rows before `step`: what follows comes again."""
        rows = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit() and int(row["step"]) < step]
        with whole(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        if importlib.util.find_spec(TENSORBOARD) is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events), purge_step=step)  # type: ignore[no-untyped-call]
        self._begun = True
