"""The charts of a report, as altair charts turned into Vega-Lite specifications (plain dicts).

Colours: see `nasvit.drawing`; a mixer has the same one in every picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from nasvit.drawing import mixer_colour
from nasvit.report.prune_file import is_pruning, mark, reference_points
from nasvit.report.shorthand import mixer_rank, stage_line
from nasvit.report.tables import Run, foreign, hypervolume_so_far, part, xy_front
from nasvit.results.objectives import objective
from nasvit.results.record import latest

Spec = dict[str, Any]
ColourBy = Literal["mixer", "keep"]

INK, MUTED, GRID = "#1b2430", "#66707d", "#e7eaee"
_FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
_LOG_FROM = 5.0  # a span larger than this is drawn on a log scale


def front_chart(run: Run, *, colour: ColourBy = "mixer", width: int | Literal["container"] = "container", height: int = 470) -> Spec:
    """The cloud of trials, the front as steps, latency intervals, baselines, random search's front and the limit."""
    x, y = run.axes
    table, baselines, rivals = _points(run), _comparable(run), _rivals(run)
    marked = _marked(run, table)
    limit, (low, high) = _limit(run, x), _y_span(run)
    ends = [rows[name] for rows in (run.front, baselines) for name in ("ci_low_ms", "ci_high_ms")] if x == "latency_ms" else []
    spread = pd.concat([table[x], baselines[x], rivals[x], *ends]).dropna()
    if limit is not None and spread.max() < limit <= 1.05 * spread.max():
        spread = pd.concat([spread, pd.Series([limit])])  # or its line would stand outside the picture
    at_x = alt.X(f"{x}:Q", title=objective(x).label, scale=scale_of(spread), axis=axis_of(x, _ticks(spread)))
    at_y = alt.Y(f"{y}:Q", title=objective(y).label, axis=axis_of(y), scale=alt.Scale(domain=[low, high], zero=False, nice=False))
    layers: list[Any] = []
    if limit is not None and spread.min() <= limit <= spread.max():
        layers += _limit_layers(x)
    if len(rivals):
        layers += _rival_layers(at_x, at_y)
    layers += _trial_layers(run, at_x, at_y, colour=colour, present=sorted(set(table["main_mixer"].dropna()), key=mixer_rank))
    if len(marked):
        (place,), (value,) = _places(marked[x], spread=spread), marked[y]
        layers += _mark_layers(at_x, at_y, left=place > 0.9, above=value < low + 0.1 * (high - low))
    if len(baselines):
        layers += _baseline_layers(x, at_x, at_y)
    spec: Spec = styled(alt.layer(*layers).properties(width=width, height=height)).to_dict()
    spec["datasets"] = {
        "trials": _values(table), "marked": _values(marked), "steps": _values(xy_front(table, run.axes)[[x, y]]),
        "baselines": _values(_with_side(baselines, at=x, spread=spread)),
        "rivals": _values(_with_first(rivals[[x, y]], inside=rivals[y].between(low + 0.06 * (high - low), high))),
        "limit": [{x: limit, "text": f"limit {limit:.4g} {_unit(x)}".strip()}] if limit is not None else []}
    return spec


def below_picture(run: Run) -> int:
    """How many complete trials lie outside the drawn range of y, all of them dominated."""
    if not len(run.front):
        return 0
    low, high = _y_span(run)
    return int((~_points(run)[run.axes[1]].between(low, high)).sum())


def hypervolume_chart(run: Run, *, width: int | Literal["container"] = "container", height: int = 230) -> Spec:
    """Hypervolume over complete trials; the random search's curve against the same reference point."""
    curves = [run.hypervolume.assign(search="this search")]
    if run.random is not None and not foreign(run, run.random.fingerprint):
        rival = hypervolume_so_far(run.random.records, run.objectives, reference=run.reference)
        curves.append(rival.assign(search="random search"))
    kinds = ["this search", "random search"][:len(curves)]
    legend = alt.Legend(orient="bottom-right", symbolType="stroke") if len(curves) > 1 else None
    chart = alt.Chart(alt.NamedData(name="curves")).mark_line(interpolate="step-after", strokeWidth=2.2).encode(
        x=alt.X("evaluated:Q", title="complete trials", axis=alt.Axis(tickMinStep=1, tickCount=12), scale=alt.Scale(nice=False)),
        y=alt.Y("hypervolume:Q", title="hypervolume", axis=alt.Axis(tickCount=5)),
        color=alt.Color("search:N", title=None, scale=alt.Scale(domain=kinds, range=["#0072B2", "#8a929c"][:len(kinds)]), legend=legend),
        strokeDash=alt.StrokeDash("search:N", title=None, legend=legend,
                                  scale=alt.Scale(domain=kinds, range=[[1, 0], [5, 4]][:len(kinds)])),
        tooltip=[alt.Tooltip("search:N"), alt.Tooltip("evaluated:Q", title="complete trials"), alt.Tooltip("hypervolume:Q", format=".4g")])
    spec: Spec = styled(chart.properties(width=width, height=height)).to_dict()
    spec["datasets"] = {"curves": _values(pd.concat(curves))}
    return spec


def picture(run: Run) -> Spec:
    """The front as a still picture with a title, for front.png."""
    title, subtitle = headline(run)
    if not len(run.front):
        text = alt.Chart(alt.NamedData(name="none")).mark_text(fontSize=16, color=MUTED).encode(text="text:N")
        spec: Spec = styled(text.properties(width=820, height=460, title=_title(title, subtitle))).to_dict()
        spec["datasets"] = {"none": [{"text": "no complete trial yet"}]}
        return spec
    spec = front_chart(run, width=820, height=460)
    spec["title"] = _title(title, subtitle).to_dict()
    return spec


def headline(run: Run) -> tuple[str, str]:
    """Title and subtitle of a report, from what the run knows about itself."""
    x, y = run.axes
    data, space, device, host = (part(run.env, k) for k in ("data", "space", "device", "host"))
    name = str(data.get("name") or run.experiment.get("data") or run.path.name)
    done = int((run.trials["status"] == "complete").sum())
    measured = "measured latency" if x == "latency_ms" else objective(x).label
    pruning = is_pruning(run)
    parts = [f"{done} {'plans evaluated' if pruning else 'networks trained'}, {len(run.front)} on the front"]
    if space.get("name"):
        parts.append(str(space["name"]) if pruning else f"search space {space['name']}")
    place = device.get("gpu") or device.get("cpu") or host.get("cpu") or run.experiment.get("device")
    if place:
        parts.append(f"on {place}" + (f" ({device['runtime']})" if "runtime" in device else ""))
    return f"{name}: {objective(y).label} against {measured}", ", ".join(parts)


# ---- layers -----------------------------------------------------------------------------------------------------------


def _trial_layers(run: Run, at_x: Any, at_y: Any, *, colour: ColourBy, present: Sequence[str]) -> list[Any]:
    x, _ = run.axes
    if colour == "mixer":
        title = "token operator" if is_pruning(run) else "main mixer"
        paint = alt.Color("main_mixer:N", title=title, legend=alt.Legend(symbolOpacity=1, symbolStrokeWidth=0),
                          scale=alt.Scale(domain=list(present), range=[mixer_colour(m) for m in present]))
    else:
        paint = alt.Color("keep_ratio:Q", title="mean keep ratio", legend=alt.Legend(format=".2f", gradientLength=150),
                          scale=alt.Scale(scheme="viridis", reverse=True))
    base = alt.Chart(alt.NamedData(name="trials")).encode(x=at_x, y=at_y, color=paint, tooltip=_tooltips(run))
    picked = alt.selection_point(name="picked", fields=["main_mixer"], bind="legend")
    zoom = alt.selection_interval(name="zoom", bind="scales", zoom="wheel![event.shiftKey]")
    shown = alt.condition(picked, alt.value(0.28), alt.value(0.04)) if colour == "mixer" else alt.value(0.3)
    strong = alt.condition(picked, alt.value(1.0), alt.value(0.12)) if colour == "mixer" else alt.value(1.0)
    dominated = base.transform_filter("!datum.on_front").mark_circle(size=42, clip=True).encode(opacity=shown)
    steps = alt.Chart(alt.NamedData(name="steps")).mark_line(interpolate="step-after", color=INK, strokeWidth=1.4, opacity=0.75, clip=True)
    layers = [dominated.add_params(zoom, picked) if colour == "mixer" else dominated.add_params(zoom), steps.encode(x=at_x, y=at_y)]
    on_front = base.transform_filter("datum.on_front")
    if x == "latency_ms":
        rule = on_front.transform_filter("isValid(datum.ci_low_ms)").mark_rule(strokeWidth=1.6, clip=True)
        layers.append(rule.encode(x=alt.X("ci_low_ms:Q", title=objective(x).label), x2="ci_high_ms:Q", opacity=strong,
                                  tooltip=alt.value(None)))
    layers.append(on_front.mark_circle(size=120, stroke="white", strokeWidth=1.2, clip=True).encode(opacity=strong))
    return layers


def _mark_layers(at_x: Any, at_y: Any, *, left: bool, above: bool) -> list[Any]:
    """The ring around the one trial that is singled out, and its word left or right of it, above or below."""
    ring = alt.Chart(alt.NamedData(name="marked")).encode(x=at_x, y=at_y)
    word = _label(ring, "word:N", dx=-12 if left else 12, dy=-19 if above else 19, align="right" if left else "left", fontWeight=600,
                  color=INK)
    return [ring.mark_point(size=330, color=INK, strokeWidth=1.6, filled=False, clip=True), *word]


def _rival_layers(at_x: Any, at_y: Any) -> list[Any]:
    base = alt.Chart(alt.NamedData(name="rivals")).encode(x=at_x, y=at_y)
    line = base.mark_line(interpolate="step-after", strokeDash=[5, 4], color="#8a929c", strokeWidth=1.6, clip=True)
    return [line, *_label(base.transform_filter("datum.first"), alt.value("random search"), align="left", dy=14, color=MUTED)]


def _baseline_layers(x: str, at_x: Any, at_y: Any) -> list[Any]:
    base = alt.Chart(alt.NamedData(name="baselines")).encode(x=at_x, y=at_y)
    tips = [alt.Tooltip("label:N", title="baseline"), *(_tip(n) for n in ("accuracy", "latency_ms", "macs_g", "params_m"))]
    bars = [] if x != "latency_ms" else [base.transform_filter("isValid(datum.ci_low_ms)").mark_rule(color=INK, clip=True).encode(
        x=alt.X("ci_low_ms:Q"), x2="ci_high_ms:Q")]
    names = [layer for side, align in (("left", "left"), ("middle", "center"), ("right", "right")) for layer in _label(
        base.transform_filter(f"datum.side == '{side}'"), "label:N", align=align, dy=-14, color=INK)]
    return [*bars, base.mark_point(shape="diamond", size=130, filled=True, color=INK, opacity=1, clip=True).encode(tooltip=tips), *names]


def _limit_layers(x: str) -> list[Any]:
    base = alt.Chart(alt.NamedData(name="limit")).encode(x=alt.X(f"{x}:Q"))
    rule = base.mark_rule(color="#B3261E", strokeDash=[2, 3], strokeWidth=1.4, clip=True)
    text = base.mark_text(align="left", dx=6, color="#B3261E", fontSize=11.5, baseline="bottom", clip=True)
    return [rule, text.encode(y=alt.value(alt.expr("height - 6")), text="text:N")]


def _label(base: Any, text: Any, **style: Any) -> list[Any]:
    """A text over whatever lies below it: the same text twice, the lower one with a wide white edge."""
    style = {"fontSize": 12, "clip": True, **style}
    return [base.mark_text(**{**style, "color": "white", "stroke": "white", "strokeWidth": 4, "opacity": 0.85}).encode(text=text),
            base.mark_text(**style).encode(text=text)]


def _tooltips(run: Run) -> list[Any]:
    stages = max((len((r.arch or {}).get("stages", ())) for r in run.records), default=0)
    return [alt.Tooltip("trial:Q", title="trial"), *(_tip(n) for n in ("accuracy", "latency_ms")),
            alt.Tooltip("interval:N", title="latency interval"), *(_tip(n) for n in ("macs_g", "params_m")),
            alt.Tooltip("rung:Q", title="rung"), *(alt.Tooltip(f"stage{s}:N", title=f"stage {s + 1}") for s in range(stages)),
            alt.Tooltip("arch_id:N", title="arch id")]


def _tip(name: str) -> Any:
    label = objective(name).label
    return alt.Tooltip(f"{name}:Q", title=label, format=".2%" if name == "accuracy" else ".3~g")


# ---- data and scales --------------------------------------------------------------------------------------------------


def _points(run: Run) -> pd.DataFrame:
    """Complete trials with the text of each stage, ready to be drawn."""
    table = run.trials[run.trials["status"] == "complete"].dropna(subset=list(run.axes)).copy()
    table["interval"] = [f"{low:.3g} to {high:.3g} ms" if math.isfinite(low) else ""
                         for low, high in zip(table["ci_low_ms"], table["ci_high_ms"], strict=True)]
    archs = {t: r.network() for t, r in latest(run.records).items() if r.has_arch}
    deepest = max((len(a.stages) for a in archs.values()), default=0)
    for s in range(deepest):
        table[f"stage{s}"] = [stage_line(archs[t], stage=s) if t in archs and s < len(archs[t].stages) else "" for t in table["trial"]]
    return table.drop(columns=["reason", "label", "mixers", "widths", "status"])


def _marked(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """The one trial that has a ring, with its word; nothing where there is none."""
    marked = mark(run)
    return table.loc[table["trial"] == marked.trial, list(run.axes)].assign(word=marked.word)


def _comparable(run: Run) -> pd.DataFrame:
    """What may stand in the picture beside the trials: baselines; of a pruning its dense model and the siblings."""
    rows = run.baselines[run.baselines["status"] == "complete"].dropna(subset=list(run.axes))
    keep = pd.Series([not foreign(run, "" if pd.isna(f) else str(f)) for f in rows["fingerprint"]], index=rows.index, dtype=bool)
    rows = rows[keep].drop(columns=["reason", "mixers", "widths", "main_mixer", "status"])
    known = reference_points(run)
    return pd.concat([rows, known], ignore_index=True) if len(rows) and len(known) else known if len(known) else rows


def _rivals(run: Run) -> pd.DataFrame:
    """The random search's own front in the two drawn objectives."""
    if run.random is None or foreign(run, run.random.fingerprint):
        return run.trials.iloc[:0]
    table = run.random.trials
    return xy_front(table[table["status"] == "complete"], run.axes)


def _with_first(rows: pd.DataFrame, *, inside: pd.Series[bool]) -> pd.DataFrame:
    """A flag on the first row inside the picture, where the label stands."""
    return rows.assign(first=inside & (inside.cumsum() == 1))


def _with_side(rows: pd.DataFrame, *, at: str, spread: pd.Series[float]) -> pd.DataFrame:
    """On which side of the picture a point lies, so that its label stays inside."""
    return rows.assign(side=["left" if p < 0.15 else "right" if p > 0.85 else "middle" for p in _places(rows[at], spread=spread)])


def _places(values: pd.Series[float], *, spread: pd.Series[float]) -> list[float]:
    """From 0, at the left of the picture, to 1."""
    low, high = (math.log(max(v, 1e-12)) for v in (spread.min(), spread.max()))
    return [(math.log(max(v, 1e-12)) - low) / ((high - low) or 1.0) for v in values]


def _limit(run: Run, name: str) -> float | None:
    limits = run.summary.get("limits") or run.experiment.get("limits") or {}
    value = limits.get(name) if isinstance(limits, dict) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _values(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values: numbers rounded to what a screen can show, missing ones as null."""
    def plain(value: Any) -> Any:
        if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
            return None
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return [{str(k): plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def scale_of(values: pd.Series[float]) -> alt.Scale:
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > _LOG_FROM:
        return alt.Scale(type="log", domain=[low / 1.12, high * 1.12], nice=False)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return alt.Scale(zero=False, domain=[low - pad, high + pad], nice=False)


def _y_span(run: Run) -> tuple[float, float]:
    """The drawn range of y: the front, the baselines and what has the ring always; what lies far behind the front is cut off."""
    y = run.axes[1]
    rising = objective(y).direction == "maximize"
    points = _points(run)
    cloud, kept = points[y], pd.concat([run.front[y], _comparable(run)[y], _marked(run, points)[y]])
    low, high = float(kept.min()), float(kept.max())
    room = max(0.6 * (high - low), 0.02 * abs(high))
    if rising:
        low = max(float(cloud.min()), low - room) if len(cloud) else low
    else:
        high = min(float(cloud.max()), high + room) if len(cloud) else high
    low, high = min(low, float(kept.min())), max(high, float(kept.max()))
    pad = 0.05 * (high - low) or 0.02 * abs(high) or 1.0
    return low - pad, high + pad


def _unit(name: str) -> str:
    return objective(name).label.partition("(")[2].rstrip(")")


def _ticks(values: pd.Series[float]) -> list[float] | None:
    """1, 2, 5 per decade on a log scale, where vega's own ticks would crowd; None leaves the choice to vega."""
    low, high = float(values.min()), float(values.max())
    if not (low > 0 and high / low > _LOG_FROM):
        return None
    steps = (1, 2, 5) if high / low > 20 else (1, 1.5, 2, 3, 4, 5, 7)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    return [float(f"{s * 10.0**d:.3g}") for d in decades for s in steps if low / 1.12 <= s * 10.0**d <= high * 1.12]


def axis_of(name: str, ticks: list[float] | None = None) -> alt.Axis:
    extra: dict[str, Any] = {"values": ticks} if ticks else {"tickCount": 10}
    return alt.Axis(format="~%" if name == "accuracy" else "~g", **extra)


def _title(title: str, subtitle: str) -> alt.TitleParams:
    return alt.TitleParams(title, subtitle=subtitle, anchor="start", offset=14, fontSize=18, subtitleFontSize=13, subtitlePadding=5)


def styled(chart: Any) -> Any:
    return (chart.configure(font=_FONT, background="white", padding={"left": 6, "right": 14, "top": 8, "bottom": 6})
            .configure_view(stroke=None).configure_title(color=INK, subtitleColor=MUTED, fontWeight=600)
            .configure_axis(gridColor=GRID, domainColor="#b8bfc8", tickColor="#b8bfc8", labelColor=MUTED, titleColor=INK, labelFontSize=12,
                            titleFontSize=12.5, titleFontWeight=500, titlePadding=10, labelPadding=5)
            .configure_legend(labelColor=INK, titleColor=MUTED, labelFontSize=12, titleFontSize=11.5, titleFontWeight=500, symbolSize=110,
                              orient="right", offset=14))
