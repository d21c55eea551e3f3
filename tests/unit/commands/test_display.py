from __future__ import annotations

import io

import pytest
from rich.console import Console

from nasvit.commands.display import PREPARING, Display, duration, line, picture, plot
from nasvit.engines import Node
from nasvit.search.progress import Snapshot


def snap(**changes: object) -> Snapshot:
    given: dict[str, object] = {"budget": 60, "evaluated": 12, "rejected": 3, "failed": 1, "running": 2, "per_rung": (12, 4, 1),
                                "best": (("<= 1 ms", 0.8), ("<= 2 ms", 0.9)), "hypervolume": 0.5, "front": ((0.7, 0.8), (1.9, 0.9)),
                                "elapsed_s": 61.0, "eta_s": 250.0}
    return Snapshot(**{**given, **changes})  # type: ignore[arg-type]


def test_the_line_has_every_figure() -> None:
    text = line(snap())
    for part in ("12/60 evaluated", "3 rejected", "1 failed", "rungs 12/4/1", "front 2", "best 90.00%", "hypervolume 0.5", "1m01s",
                 "left 4m10s"):
        assert part in text
    assert "stopped: budget" in line(snap(stopped_because="budget"))
    assert "best -" in line(snap(front=(), best=(), eta_s=None))


def test_the_figures_of_a_baseline_are_said_to_be_its_own() -> None:
    assert line(snap()).startswith("12/60") and line(snap(of="random baseline")).startswith("random baseline: 12/60 evaluated")
    console = Console(file=io.StringIO(), width=110)
    console.print(picture(snap(of="random baseline"), title="t"))
    assert "t: random baseline" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("seconds", "text"), [(None, "?"), (float("inf"), "?"), (0.4, "0s"), (59.6, "1m00s"), (3725, "1h02m"), (-3, "0s")])
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("front", [(), ((1.0, 0.5),), ((1.0, 0.5), (1.0, 0.5)), ((0.1, 0.2), (100.0, 0.99)), ((0.0, 0.0),)])
def test_the_plot_keeps_its_size_whatever_the_front(front: tuple[tuple[float, float], ...]) -> None:
    lines = plot(front, width=30, height=5)
    assert len(lines) == (7 if front else 1)
    assert sum(text.count("●") for text in lines) == len(set(front))


def test_faster_is_left_and_better_is_up() -> None:
    rows = [text.split("│")[1] for text in plot(((1.0, 0.5), (8.0, 0.9)), width=30, height=5)[:5]]
    assert rows[0].index("●") == 29 and rows[4].index("●") == 0


def test_without_a_terminal_there_are_plain_lines_and_the_last_one_is_never_dropped() -> None:
    file = io.StringIO()
    with Display(title="a search", console=Console(file=file, width=40)) as display:
        for evaluated in range(50):
            display(snap(evaluated=evaluated))
        display(snap(stopped_because="budget"))
    lines = file.getvalue().splitlines()
    assert len(lines) == 4 and lines[:2] == ["a search", PREPARING] and lines[-1].endswith("stopped: budget")
    assert "\x1b" not in file.getvalue()


def test_on_a_terminal_there_is_the_live_picture() -> None:
    file = io.StringIO()
    with Display(title="a search", console=Console(file=file, width=110, force_terminal=True)) as display:
        display(snap())
    assert "●" in file.getvalue() and "12/60" in file.getvalue()
    text = io.StringIO()
    Console(file=text, width=110).print(picture(snap(), title="t"))
    assert "best accuracy" in text.getvalue() and "90.00%" in text.getvalue()


def test_a_title_with_brackets_is_shown_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(picture(snap(), title="search on data[/b] [red]"))
    assert "data[/b] [red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_nodes_of_a_cluster_are_named_with_their_workers_at_work() -> None:
    nodes = (Node(name="10.0.0.5-ab12", workers=4, busy=3), Node(name="10.0.0.6-cd34", workers=2, busy=0))
    assert "nodes 10.0.0.5-ab12 3/4, 10.0.0.6-cd34 0/2" in line(snap(nodes=nodes)) and "nodes" not in line(snap())
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    console.print(picture(snap(nodes=nodes), title="t"))
    assert "10.0.0.6-cd34 0/2" in console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_terminal_a_note_is_printed_when_it_comes_and_once() -> None:
    console = Console(file=io.StringIO(), width=140)
    with Display(title="t", console=console) as display:
        for notes in ((), ("the storage is lost",), ("the storage is lost", "the storage is back")):
            display(snap(notes=notes))
            display(snap(notes=notes))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("the storage is lost") == text.count("the storage is back") == 1
