"""Runs side by side: their fronts in one picture, their hypervolumes against one reference point. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import altair as alt
import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from nasvit.errors import ConfigError
from nasvit.report.cells import plain_cells
from nasvit.report.embed import page_scripts, png_of, svg_of
from nasvit.report.figures import number, percent, shown
from nasvit.report.plots import axis_of, scale_of, styled
from nasvit.report.tables import Run, foreign, part, xy_front
from nasvit.results.front import Points, hypervolume, non_dominated, reference_point, to_minimised
from nasvit.results.objectives import objective
from nasvit.results.record import latest
from nasvit.whole_file import whole

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#6E6E6E")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs against one reference point: the worst of all their complete trials, with a margin of a tenth of the range.

    table: one row per run: run, trials, front, hypervolume, ratio (to the first run's), share_of_common_front (of the points of the
    front of all runs together), best accuracy and least cost. notes: what a reader must know.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    objectives: tuple[str, ...]
    reference: Points
    table: pd.DataFrame
    notes: tuple[str, ...]

    def _repr_html_(self) -> str:
        """The picture and the table, in a notebook."""
        return f"<div>{svg_of(chart(self, width=560, height=330))}{html_table(self)}</div>"


def compare(runs: Sequence[Run]) -> Comparison:
    """Raises ConfigError for fewer than two runs, and for figures that cannot stand in one picture: other data, device or objectives."""
    if len(runs) < 2:
        raise ConfigError(f"comparing needs at least two runs, not {len(runs)}")
    first = runs[0]
    for other in runs[1:]:
        _check(first, other)
    names = tuple(n for n in first.objectives if all(n in r.objectives for r in runs))
    if len(names) < 2:
        raise ConfigError(f"the {len(runs)} runs have fewer than two objectives in common ({', '.join(names) or 'none'}); compare pairs")
    points = [_points(run, names) for run in runs]
    empty = [str(run.path) for run, p in zip(runs, points, strict=True) if not len(p)]
    if empty:
        raise ConfigError(f"{empty[0]} has no complete trial yet; let its search go on")
    reference = reference_point(np.concatenate(points))
    every = np.concatenate(points)
    common = {tuple(row) for row in every[non_dominated(every)]}
    volumes = [hypervolume(p, reference) for p in points]
    labels = _labels(runs)
    rows = []
    for label, run, own, volume in zip(labels, runs, points, volumes, strict=True):
        done = {tuple(row) for row in own}
        rows.append({"run": label, "trials": len(own), "front": int(non_dominated(own).sum()), "hypervolume": volume,
                     "ratio": volume / volumes[0] if volumes[0] > 0 else float("nan"),
                     "share_of_common_front": len(done & common) / len(common), **{n: float(_best(run, n)) for n in names}})
    return Comparison(runs=tuple(runs), names=labels, objectives=names, reference=reference, table=pd.DataFrame(rows), notes=_notes(runs))


def _check(a: Run, b: Run) -> None:
    data = [str(part(run.env, "data").get("fingerprint", "")) for run in (a, b)]
    if all(data) and data[0] != data[1]:
        raise ConfigError(f"{a.path} and {b.path} were searched on different data (fingerprints {data[0]} and {data[1]}): their accuracies "
                          "cannot be compared")
    if "latency_ms" in a.objectives and "latency_ms" in b.objectives and foreign(a, b.fingerprint):
        raise ConfigError(f"{a.path} was measured on device {a.fingerprint}, {b.path} on {b.fingerprint}: latencies of two devices never "
                          "stand in one picture; search again on one of them")
    for name in set(a.objectives) & set(b.objectives):
        device = name.partition("@")[2]
        prints = [str(part(part(run.env, "devices"), device).get("fingerprint", "")) for run in (a, b)] if device else []
        if any(prints) and prints[0] != prints[1]:
            raise ConfigError(f"in {a.path} and {b.path} {device} is not the same device (fingerprints {prints[0]} and {prints[1]}): "
                              "latencies of two devices never stand in one picture")
    if len(set(a.objectives) & set(b.objectives)) < 2:
        raise ConfigError(f"{a.path} has the objectives {', '.join(a.objectives)}, {b.path} {', '.join(b.objectives)}: fewer than two in "
                          "common")


def _points(run: Run, names: Sequence[str]) -> Points:
    done = [r.objectives for r in latest(run.records).values() if r.status == "complete" and all(n in r.objectives for n in names)]
    return to_minimised(done, names)


def _best(run: Run, name: str) -> float:
    values = run.trials.loc[run.trials["status"] == "complete", name]
    return float(values.max() if objective(name).direction == "maximize" else values.min())


def _labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """Folder names, with as much of the path as tells them apart."""
    paths = [run.path.resolve() for run in runs]
    for depth in range(1, max(len(p.parts) for p in paths) + 1):
        labels = [Path(*p.parts[-depth:]).as_posix() for p in paths]
        if len(set(labels)) == len(labels):
            return tuple(labels)
    return tuple(f"{label} ({n})" for n, label in enumerate(labels, start=1))


def _notes(runs: Sequence[Run]) -> tuple[str, ...]:
    notes = ["The hypervolume is that of all complete trials against one reference point, the worst of all runs with a tenth of the range "
             "as margin."]
    scales = {run.env.get("reference_ms") for run in runs}
    if len(scales) > 1:
        notes.append("The runs were calibrated apart: differences of several percent in latency mean nothing.")
    if len({tuple(run.experiment.get("rungs") or ()) for run in runs}) > 1 or len({str(run.experiment.get("recipe")) for run in runs}) > 1:
        notes.append("The runs trained differently (rungs or recipe): their accuracies are those of different trainings.")
    if len({len(run.trials) for run in runs}) > 1:
        notes.append("The runs have different numbers of trials; a longer search has the advantage.")
    return tuple(notes)


def chart(comparison: Comparison, *, width: int | Literal["container"] = "container", height: int = 440) -> dict[str, Any]:
    """The fronts as steps with their points, one colour per run, over all complete trials, as a Vega-Lite specification."""
    x, y = comparison.runs[0].axes
    if x not in comparison.objectives or y not in comparison.objectives:
        x, y = comparison.objectives[1], comparison.objectives[0]
    clouds, fronts = [], []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        done = run.trials[run.trials["status"] == "complete"].dropna(subset=[x, y])
        clouds.append(done[["trial", x, y]].assign(run=name))
        fronts.append(xy_front(done, (x, y))[["trial", "arch_id", x, y]].assign(run=name))
    cloud, front = pd.concat(clouds), pd.concat(fronts)
    low = float(front[y].min() if objective(y).direction == "maximize" else cloud[y].min())
    room = 0.15 * (float(front[y].max()) - float(front[y].min()) or 1.0)
    high = float(front[y].max())
    at_x = alt.X(f"{x}:Q", title=objective(x).label, scale=scale_of(front[x]), axis=axis_of(x))
    span = alt.Scale(domain=[low - room, high + room], zero=False, nice=False)
    at_y = alt.Y(f"{y}:Q", title=objective(y).label, axis=axis_of(y), scale=span)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(comparison.names))]
    paint = alt.Color("run:N", title=None, scale=alt.Scale(domain=list(comparison.names), range=colours))
    base = alt.Chart(alt.NamedData(name="fronts")).encode(x=at_x, y=at_y, color=paint)
    faint = alt.Chart(alt.NamedData(name="clouds")).mark_circle(size=26, opacity=0.2, clip=True).encode(x=at_x, y=at_y, color=paint)
    tips = [alt.Tooltip("run:N"), alt.Tooltip("trial:Q"), alt.Tooltip("arch_id:N"), alt.Tooltip(f"{x}:Q", format=".3~g"),
            alt.Tooltip(f"{y}:Q", format=".2%" if y == "accuracy" else ".3~g")]
    layers = alt.layer(faint, base.mark_line(interpolate="step-after", strokeWidth=1.8, clip=True),
                       base.mark_circle(size=85, stroke="white", opacity=1, clip=True).encode(tooltip=tips))
    spec: dict[str, Any] = styled(layers.properties(width=width, height=height)).to_dict()
    spec["datasets"] = {"clouds": _values(cloud), "fronts": _values(front)}
    return spec


def _values(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in table.to_dict("records")]


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """The table as text."""
    named = [(n, objective(n).label.partition(" (")[0]) for n in comparison.objectives]
    return [{"run": str(row["run"]), "trials": str(row["trials"]), "front": str(row["front"]),
             "hypervolume": number(row["hypervolume"], digits=4), "ratio to the first": number(row["ratio"], digits=3),
             "of the common front": percent(row["share_of_common_front"], digits=0),
             **{f"best {label}": shown(n, row[n]) for n, label in named}} for row in comparison.table.to_dict("records")]


def html_table(comparison: Comparison) -> str:
    """The table as HTML, escaped."""
    lines = rows(comparison)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        "<table><tr>{% for h in head %}<th>{{ h }}</th>{% endfor %}</tr>"
        "{% for row in rows %}<tr>{% for cell in row.values() %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>")
    return template.render(head=list(lines[0]), rows=lines)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src {{ script_hashes }}; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{{ title }} · nasvit</title>
<style>
body { margin: 0; color: #1b2430; font: 15px/1.55 Inter, "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif }
main { max-width: 1140px; margin: 0 auto; padding: 40px 28px 80px } h1 { font-size: 27px; font-weight: 650; margin: 0 0 18px }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; margin-top: 26px; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500; color: #66707d; padding: 6px 14px 6px 0; border-bottom: 1px solid #cdd3da }
td { padding: 7px 14px 7px 0; border-bottom: 1px solid #e3e7ec } .chart { width: 100% } li { margin: 6px 0 } .scroll { overflow-x: auto }
</style></head><body><main><h1>{{ title }}</h1><div id="comparison" class="chart"></div><div class="scroll">{{ table }}</div>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul></main>
<script type="application/json" id="specs">{{ specs }}</script><script>{{ library }}</script><script>{{ start }}</script></body></html>
"""


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """compare.html (one file that opens offline), compare.png and compare.csv; returns them."""
    scripts = page_scripts({"comparison": chart(comparison)})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    title = " against ".join(comparison.names) if len(comparison.names) < 4 else f"{len(comparison.names)} runs compared"
    html = environment.from_string(_PAGE).render(title=title, table=Markup(html_table(comparison)), notes=comparison.notes, **scripts)
    picture = chart(comparison, width=820, height=460)
    writers: dict[str, Callable[[Path], object]] = {
        "compare.html": lambda p: p.write_text(html, encoding="utf-8"),
        "compare.png": lambda p: p.write_bytes(png_of(picture)),
        "compare.csv": lambda p: plain_cells(comparison.table).to_csv(p, index=False)}
    for name, put in writers.items():
        with whole(folder / name) as temporary:
            put(temporary)
    return [folder / name for name in writers]
