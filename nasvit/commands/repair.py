"""`nasvit repair`: what can be saved of a damaged run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def repair(run: Annotated[Path, typer.Argument(help="A run directory whose records are damaged.")]) -> None:
    """Keep all intact records of a damaged run; the damaged lines are set aside."""
    from nasvit.errors import RunError
    from nasvit.results.record import repair as mend
    from nasvit.search.directory import RECORDS, claimed

    if not (run / RECORDS).is_file():
        raise RunError(f"there are no records in {run} to repair; give the directory of a run")
    with claimed(run):
        for name in (RECORDS, "baselines.jsonl", "truth.jsonl"):
            path = run / name
            if name == RECORDS or path.exists():
                kept, damaged = mend(path)
                lines = f"; damaged: line {', '.join(map(str, damaged))}, kept in {name}.damaged" if damaged else ", none damaged"
                typer.echo(f"{path}: {kept} records intact{lines}")
