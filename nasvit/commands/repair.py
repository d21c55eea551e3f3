"""`nasvit repair`: what can be saved of a damaged run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def repair(run: Annotated[Path, typer.Argument(help="A run directory whose records are damaged.")]) -> None:
    """Keep all intact records of a damaged run; the damaged lines are set aside, and damaged checkpoints named."""
    from nasvit.errors import ConfigError
    from nasvit.results.record import repair as mend
    from nasvit.search.directory import RECORDS, claimed

    if not (run / RECORDS).is_file():
        raise ConfigError(f"there are no records in {run} to repair; give the directory of a run")
    with claimed(run):
        for name in (RECORDS, "baselines.jsonl", "truth.jsonl"):
            path = run / name
            if name == RECORDS or path.exists():
                kept, damaged = mend(path)
                lines = f"; damaged: line {', '.join(map(str, damaged))}, kept in {name}.damaged" if damaged else ", none damaged"
                typer.echo(f"{path}: {kept} records intact{lines}")
        checkpoints(run)


def checkpoints(run: Path) -> None:
    """Hold the checkpoints of the search against their checksums; those that are damaged go to `NAME.damaged`, and are named."""
    from nasvit.errors import CheckpointError
    from nasvit.models.weight_file import verify

    found, damaged = sorted((run / "checkpoints").glob("*.safetensors")), 0
    for path in found:
        try:
            verify(path)
        except CheckpointError as error:
            damaged += 1
            path.replace(path.with_name(path.name + ".damaged"))
            typer.echo(f"{error}; kept as {path.name}.damaged")
    if found:
        typer.echo(f"{run / 'checkpoints'}: {len(found) - damaged} of {len(found)} files intact")
