"""What commands share of the terminal: the consoles, the default place of a run, and a rendered report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

RUNS = Path("reports/runs")

out_console = Console(width=None if sys.stdout.isatty() else 140)  # a log has no width of its own
error_console = Console(stderr=True)


def fresh(name: str) -> Path:
    """A run directory that is not there yet."""
    path, number = RUNS / name, 1
    while path.exists():
        number += 1
        path = RUNS / f"{name}-{number}"
    return path


def render(run: Path) -> None:
    """Render the report and print its front and where it is."""
    from nasvit.report import load
    from nasvit.report import render as render_report
    from nasvit.report.devices import columns as device_columns
    from nasvit.report.precision import columns as precision_columns
    from nasvit.report.prune_file import is_pruning, mark
    from nasvit.report.truth import truth_of, verdict

    files = render_report(run)
    loaded = load(run)
    front = loaded.front
    devices = {column: name for name, column in device_columns(loaded).items()}
    known = ("accuracy", *precision_columns(loaded.env), *(devices or ("latency_ms",)), "macs_g", "params_m", "peak_memory_mb")
    shown = [name for name in known if name in front and front[name].notna().any()]
    heads = [f"latency_ms@{devices[name]}" if name in devices else name for name in shown]
    kind = "plan" if is_pruning(loaded) else "network"
    title = f"Pareto front: {len(front)} {kind}{'' if len(front) == 1 else 's'}"
    table = Table("trial", *heads, "rung", kind, title=title, title_justify="left", box=None, header_style="dim")
    marked = mark(loaded)
    for row in front.to_dict("records"):
        word = f" ({marked.word})" if row["trial"] == marked.trial else ""
        table.add_row(f"{row['trial']}{word}", *(_cell(name, row[name]) for name in shown), str(row["rung"]), str(row["mixers"]))
    out_console.print(table)
    truth = truth_of(loaded)
    words = verdict(loaded, truth)
    if words:
        poor = truth is not None and bool(truth.poor)
        out_console.print(words, style="bold red" if poor else None, markup=False, highlight=False, soft_wrap=True)
    page = next((file for file in files if file.suffix == ".html"), files[0])
    typer.echo(f"report: {page}")


def _cell(name: str, value: Any) -> str:
    return "-" if value != value else f"{value:.2%}" if name.startswith("accuracy") else f"{value:.4g}"
