"""What a search shows while it goes on: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # the search imports torch and optuna: a display must not
    from nasvit.search.progress import Snapshot

LINE_SECONDS = 10.0
PREPARING = "loading data, calibrating the device, once trying what its runtime takes of the space (a minute or two), starting workers"
PLOT_WIDTH, PLOT_HEIGHT = 56, 11

Point = tuple[float, float]


class Display:
    """Call it with every Snapshot; a context manager. console says whether this is a terminal, preparing what comes before the first."""

    def __init__(self, *, title: str, console: Console, preparing: str = PREPARING) -> None:
        self.title, self.console, self.preparing = title, console, preparing
        waiting = Panel(preparing, title=Text(title), title_align="left", border_style="dim")
        self._live = Live(waiting, console=console, refresh_per_second=4, transient=False) if console.is_terminal else None
        self._printed = -math.inf
        self._noted: set[str] = set()

    def __enter__(self) -> Self:
        if self._live is None:
            self.console.print(f"{self.title}\n{self.preparing}", markup=False, highlight=False, soft_wrap=True)
        else:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, snapshot: Snapshot) -> None:
        if self._live is not None:
            self._live.update(picture(snapshot, title=self.title))
            return
        for note in snapshot.notes:
            if note not in self._noted:
                self._noted.add(note)
                self.console.print(note, markup=False, highlight=False, soft_wrap=True)
        if snapshot.stopped_because is not None or time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            self.console.print(line(snapshot), markup=False, highlight=False, soft_wrap=True)


def line(snapshot: Snapshot) -> str:
    """The snapshot in one line, for a log."""
    best = max((accuracy for _, accuracy in snapshot.front), default=None)
    of = f"{snapshot.of}: " if snapshot.of else ""
    parts = [f"{of}{snapshot.evaluated}/{snapshot.budget} evaluated", f"{snapshot.rejected} rejected", f"{snapshot.failed} failed",
             "rungs " + "/".join(map(str, snapshot.per_rung)), f"front {len(snapshot.front)}",
             f"best {best:.2%}" if best is not None else "best -", f"hypervolume {snapshot.hypervolume:.4g}",
             f"elapsed {duration(snapshot.elapsed_s)}"]
    parts += [f"nodes {places(snapshot)}"] if snapshot.nodes else []
    parts.append(f"stopped: {snapshot.stopped_because}" if snapshot.stopped_because else f"left {duration(snapshot.eta_s)}")
    return "  ".join(parts)


def places(snapshot: Snapshot) -> str:
    """The nodes of a cluster, each with how many of its workers are at work: `10.0.0.5 3/4, 10.0.0.6 0/2`."""
    return ", ".join(f"{node.name} {node.busy}/{node.workers}" for node in snapshot.nodes)


def duration(seconds: float | None) -> str:
    """`1h02m`, `3m05s`, `12s`; `?` where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def picture(snapshot: Snapshot, *, title: str) -> Panel:
    """The live picture: progress, counts, the front, and the best accuracy of each latency band."""
    top = Table.grid(padding=(0, 2), expand=True)
    top.add_column(ratio=1)
    top.add_column(justify="right")
    left = f"stopped: {snapshot.stopped_because}" if snapshot.stopped_because else f"about {duration(snapshot.eta_s)} left"
    top.add_row(ProgressBar(total=snapshot.budget, completed=min(snapshot.evaluated, snapshot.budget)),
                f"{snapshot.evaluated}/{snapshot.budget}  {duration(snapshot.elapsed_s)}, {left}")
    facts = Table.grid(padding=(0, 2))
    for name, value in (("rejected", str(snapshot.rejected)), ("failed", str(snapshot.failed)), ("running", str(snapshot.running)),
                        *((f"rung {rung}", str(count)) for rung, count in enumerate(snapshot.per_rung, start=1)),
                        ("front", f"{len(snapshot.front)} networks"), ("hypervolume", f"{snapshot.hypervolume:.4g}")):
        facts.add_row(Text(name, style="dim"), value)
    bands = Table("latency", "best accuracy", box=None, header_style="dim")
    for band, accuracy in snapshot.best:
        bands.add_row(band, f"{accuracy:.2%}")
    body = Table.grid(padding=(0, 3))
    body.add_row(Text("\n".join(plot(snapshot.front)), no_wrap=True), Group(facts, Text(), bands))
    notes = [Text(note, style="yellow") for note in snapshot.notes]
    nodes = [Text(f"workers at work: {places(snapshot)}", style="dim")] if snapshot.nodes else []
    title = f"{title}: {snapshot.of}" if snapshot.of else title
    return Panel(Group(top, Text(), body, *nodes, *notes), title=Text(title), title_align="left", border_style="dim")


def plot(front: Sequence[Point], *, width: int = PLOT_WIDTH, height: int = PLOT_HEIGHT) -> list[str]:
    """The front, (latency_ms, accuracy) pairs, as lines of characters; latency on a logarithmic axis."""
    if not front:
        return ["accuracy against latency: nothing yet"]
    xs, ys = [math.log(max(x, 1e-9)) for x, _ in front], [y for _, y in front]
    low_x, high_x, low_y, high_y = min(xs), max(xs), min(ys), max(ys)
    cells = [[" "] * width for _ in range(height)]
    for x, y in zip(xs, ys, strict=True):
        column = round((x - low_x) / (high_x - low_x) * (width - 1)) if high_x > low_x else width // 2
        row = round((high_y - y) / (high_y - low_y) * (height - 1)) if high_y > low_y else height // 2
        cells[row][column] = "●"
    ends = {0: f"{high_y:7.2%}", height - 1: f"{low_y:7.2%}"}
    lines = [f"{ends.get(row, ''):>7} │{''.join(text)}" for row, text in enumerate(cells)]
    first, last = f"{math.exp(low_x):.3g} ms", f"{math.exp(high_x):.3g} ms"
    return [*lines, " " * 8 + "└" + "─" * width, " " * 9 + first + " " * max(1, width - len(first) - len(last)) + last]
