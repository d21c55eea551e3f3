"""`nasvit compare`: the fronts of several runs in one picture, their hypervolumes against one reference point."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nasvit.commands.terminal import out_console


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run directories, of the same data and device.")],
    out: Annotated[Path, typer.Option(help="Where compare.html, compare.png and compare.csv go.")] = Path("reports/comparison"),
) -> None:
    """Compare runs: fronts overlaid, hypervolumes against one reference point."""
    from nasvit.report import load
    from nasvit.report.comparison import compare as compare_runs
    from nasvit.report.comparison import rows, write

    comparison = compare_runs([load(path) for path in runs])
    lines = rows(comparison)
    table = Table(*lines[0], box=None, header_style="dim")
    for line in lines:
        table.add_row(*line.values())
    out_console.print(table)
    for note in comparison.notes[1:]:
        typer.echo(f"note: {note}")
    typer.echo(f"comparison: {write(comparison, out)[0]}")
