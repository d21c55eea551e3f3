"""A run directory to files that people open: front.csv, trials.parquet, front.png, report.md, report.html.

The page is one file that makes no request. Everything in it that came from a run is hostile input: text is escaped by the template,
chart data stands in blocks that no browser executes, and the page's policy names the two scripts that may run by their hash.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from tabulate import tabulate

from nasvit.report.cells import plain_cells
from nasvit.report.devices import DEVICE_HEAD, columns, device_fronts, devices_chart, devices_section
from nasvit.report.embed import page_scripts, png_of
from nasvit.report.page import (
    baseline_rows,
    front_rows,
    made_rows,
    notes,
    page,
    reason_rows,
    truth_lead,
    truth_rows,
    verified_rows,
    verified_words,
)
from nasvit.report.plots import front_chart, headline, hypervolume_chart, picture
from nasvit.report.precision import columns as precision_columns
from nasvit.report.pruned import RECOVERY_WORDS, pruned_section
from nasvit.report.tables import Run, load
from nasvit.report.tokens import tokens_of
from nasvit.report.truth import truth_of, verdict
from nasvit.report.verified import verify
from nasvit.whole_file import whole

_FRONT_KEYS = ("latency", "interval", "macs", "params", "rung", "arch", "arch_id")
_VERIFIED_KEYS = ("label", "mark", "proxy", "test", "val", "searched", "predicted", "now", "drift", "inside", "epochs")
_BASELINE_KEYS = ("label", "accuracy", "latency", "params", "gain", "speed")


def render(run_dir: Path | str) -> list[Path]:
    """Write the report of a run, finished or not, into the run directory; returns the files. Raises RunError as `load` does."""
    run = load(run_dir)
    writers: dict[str, Callable[[Path], object]] = {
        **({"fronts.csv": lambda p: plain_cells(device_fronts(run)).to_csv(p, index=False)} if columns(run) else {}),
        "front.csv": lambda p: plain_cells(run.front).to_csv(p, index=False),
        "trials.parquet": lambda p: run.trials.to_parquet(p, index=False),
        "front.png": lambda p: p.write_bytes(png_of(picture(run))),
        "report.md": lambda p: p.write_text(markdown(run), encoding="utf-8"),
        "report.html": lambda p: p.write_text(html(run), encoding="utf-8"),
    }
    for name, write in writers.items():
        with whole(run.path / name) as temporary:
            write(temporary)
    return [run.path / name for name in writers]


def html(run: Run) -> str:
    """The page: one self-contained file."""
    specs: dict[str, Any] = {}
    if len(run.front):
        specs = {"front-by-mixer": front_chart(run), "front-by-keep": front_chart(run, colour="keep"),
                 "hypervolume": hypervolume_chart(run)}
    devices = devices_section(run)
    if devices is not None:
        specs["fronts"] = devices_chart(run)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "template.html").read_text(encoding="utf-8"))
    pruned = pruned_section(run)
    shown = page(run) | ({"tiles": pruned["tiles"]} if pruned is not None and pruned["tiles"] else {})
    return template.render(**shown, pruned=pruned, devices=devices, tokens=tokens_of(run), **page_scripts(specs))


def markdown(run: Run) -> str:
    """The same in a page of Markdown, for a terminal or a pull request."""
    title, subtitle = headline(run)
    parts = [f"# {_cell(title)}", _cell(subtitle) + ".", "![The front](front.png)"]
    front, baselines, reasons, remarks = front_rows(run), baseline_rows(run), reason_rows(run), notes(run)
    if front:
        rows = [[r["mark"], r["accuracy"], *r["precise"], *(r[k] for k in _FRONT_KEYS)] for r in front]
        head = ["", "accuracy", *precision_columns(run.env).values(), "latency", "interval (ms)", "MACs", "params", "rung", "architecture",
                "arch id"]
        parts += ["## Front", _table(rows, head)]
    else:
        parts.append("**No complete trial yet**: there is no front to show.")
    verified = verify(run)
    truth = truth_of(run)
    if verdict(run, truth):
        parts += ["## Does the short training rank as a longer one", _cell(verdict(run, truth))]
        if truth is not None:
            rows = [[r["name"], r["tau"], r["interval"], r["networks"]] for r in truth_rows(truth)]
            parts += [_cell(truth_lead(truth)), _table(rows, ["proxy", "tau", "90 % interval", "networks"])]
    if len(verified.table):
        rows = [[r[k] for k in _VERIFIED_KEYS] for r in verified_rows(verified)]
        head = ["network", "", "in the search", "test", "validation", "latency then", "predicted", "latency now", "change",
                "inside its interval", "epochs"]
        parts += ["## After full training", _cell(verified_words(verified)), _table(rows, head)]
    devices = devices_section(run)
    if devices is not None:
        parts += ["## The devices", _cell(devices["words"]), _table([list(row.values()) for row in devices["rows"]], list(DEVICE_HEAD))]
    cut = pruned_section(run)
    if cut is not None:
        rows = [list(row.values()) for row in cut["rows"]]
        said = (cut["words"], cut["verdict"] and f"{cut['verdict']}.", cut["checks"])
        parts += ["## Dense, pruned, and the siblings", _cell(" ".join(filter(None, said))),
                  _table(rows, ["model", "accuracy", "latency", "interval", "MACs", "params"])]
        if cut["curve"]:
            parts += [_cell(RECOVERY_WORDS), _table([list(row.values()) for row in cut["curve"]],
                                                    ["steps", "share of the dense training", "accuracy"])]
    tokens = tokens_of(run)
    if tokens is not None:
        parts += ["## Which tokens each block keeps", _cell(tokens.words), f"![The tokens of each block]({tokens.file})"]
    if baselines:
        rows = [[r[k] for k in _BASELINE_KEYS] for r in baselines]
        head = ["baseline", "accuracy", "latency", "params", "front at no more latency", "front at no less accuracy"]
        parts += ["## Without a search", _table(rows, head)]
    if reasons:
        rows = [[r["count"], r["status"], r["example"]] for r in reasons]
        parts += ["## Rejected and failed", _table(rows, ["trials", "status", "for example"])]
    if remarks:
        parts += ["## Read with care", "\n".join(f"- {_cell(n)}" for n in remarks)]
    parts += ["## How this run was made", _table([list(r) for r in made_rows(run)], ["", ""])]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[list[Any]], head: list[str]) -> str:
    return str(tabulate([[_cell(c) for c in row] for row in rows], headers=head, tablefmt="github", disable_numparse=True))


def _cell(value: Any) -> str:
    """Text that stays in its Markdown cell: no markup, no new line, no column of its own."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "\\|").replace("`", "'").replace("](", "]\\(")
