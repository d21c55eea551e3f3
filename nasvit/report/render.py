"""A run directory to files that people open: front.csv, trials.parquet, front.png, report.md, report.html.

The page is one file that makes no request. Everything in it that came from a run is hostile input: text is escaped by the template,
chart data stands in blocks that no browser executes, and the page's policy names the two scripts that may run by their hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import pandas as pd
import vl_convert
from markupsafe import Markup
from tabulate import tabulate

from nasvit.report.page import baseline_rows, front_rows, made_rows, notes, page, reason_rows
from nasvit.report.plots import front_chart, headline, hypervolume_chart, picture
from nasvit.report.tables import Run, load

_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_KNEE = "knee"
_FRONT_KEYS = ("accuracy", "latency", "interval", "macs", "params", "rung", "arch", "arch_id")
_BASELINE_KEYS = ("label", "accuracy", "latency", "params", "gain", "speed")
_START = """
const specs = JSON.parse(document.getElementById("specs").textContent);
const drawn = new Set();
function draw(name) {
  if (drawn.has(name)) return;
  drawn.add(name);
  vegaEmbed("#" + name, specs[name], {ast: true, renderer: "svg", downloadFileName: name,
    actions: {export: true, source: false, compiled: false, editor: false}}).catch(error => {
      document.getElementById(name).textContent = "This chart could not be drawn: " + error.message; });
}
for (const button of document.querySelectorAll("button[data-chart]")) button.addEventListener("click", () => {
  for (const other of document.querySelectorAll("button[data-chart]")) {
    other.setAttribute("aria-pressed", String(other === button));
    document.getElementById(other.dataset.chart).hidden = other !== button;
  }
  draw(button.dataset.chart);
});
for (const name of Object.keys(specs)) if (!document.getElementById(name).hidden) draw(name);
"""


def render(run_dir: Path | str) -> list[Path]:
    """Write the report of a run, finished or not, into the run directory; returns the files. Raises RunError as `load` does."""
    run = load(run_dir)
    writers: dict[str, Callable[[Path], object]] = {
        "front.csv": lambda p: _plain_cells(run.front).to_csv(p, index=False),
        "trials.parquet": lambda p: run.trials.to_parquet(p, index=False),
        "front.png": lambda p: p.write_bytes(vl_convert.vegalite_to_png(picture(run), vl_version=_VEGA_LITE, scale=2)),
        "report.md": lambda p: p.write_text(markdown(run), encoding="utf-8"),
        "report.html": lambda p: p.write_text(html(run), encoding="utf-8"),
    }
    for name, write in writers.items():
        half_done = run.path / f".{name}.{os.getpid()}.tmp"
        try:
            write(half_done)
            os.replace(half_done, run.path / name)
        finally:
            half_done.unlink(missing_ok=True)
    return [run.path / name for name in writers]


def html(run: Run) -> str:
    """The page: one self-contained file."""
    specs: dict[str, Any] = {}
    if len(run.front):
        specs = {"front-by-mixer": front_chart(run), "front-by-keep": front_chart(run, colour="keep"),
                 "hypervolume": hypervolume_chart(run)}
    library, start = (_script(text) for text in (_bundle(), _START))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "template.html").read_text(encoding="utf-8"))
    return template.render(**page(run), specs=_data_block(specs), library=Markup(library), start=Markup(start),
                           script_hashes=Markup(" ".join(_hash(s) for s in (library, start))))


def markdown(run: Run) -> str:
    """The same in a page of Markdown, for a terminal or a pull request."""
    title, subtitle = headline(run)
    parts = [f"# {_cell(title)}", _cell(subtitle) + ".", "![The front](front.png)"]
    front, baselines, reasons, remarks = front_rows(run), baseline_rows(run), reason_rows(run), notes(run)
    if front:
        rows = [[_KNEE if r["knee"] else "", *(r[k] for k in _FRONT_KEYS)] for r in front]
        head = ["", "accuracy", "latency", "interval (ms)", "MACs", "params", "rung", "architecture", "arch id"]
        parts += ["## Front", _table(rows, head)]
    else:
        parts.append("**No complete trial yet**: there is no front to show.")
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


def _plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Text cells that a spreadsheet would run as a formula get a leading apostrophe."""
    def plain(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

    return table.assign(**{name: table[name].map(plain) for name in table.columns if isinstance(table[name].dtype, pd.StringDtype)})


def _data_block(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no character in it can end the block."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _VEGA_LITE))


def _script(text: str) -> str:
    """A script as it may stand inline: its text cannot close its element, and line ends are those the browser hashes."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
