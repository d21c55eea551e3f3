"""Several devices in one search: a front for each, and one network for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import altair as alt
import pandas as pd

from nasvit.report.plots import INK, scale_of, styled
from nasvit.report.tables import Run, part, xy_front
from nasvit.results.front import knee, to_minimised

DEVICE_HEAD = ("device", "spec", "fingerprint", "on its front", "its own knee", "the network for all", "lost against its own front")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00", "#5B3F8C")


def columns(run: Run) -> dict[str, str]:
    """Device name to the column of its latency, in the experiment's order; empty where a search measured on one device alone."""
    named = run.experiment.get("devices")
    if not isinstance(named, Mapping) or len(named) < 2:
        return {}
    found = {str(name): f"latency_ms@{name}" if i else "latency_ms" for i, name in enumerate(named)}
    return {name: column for name, column in found.items() if column in run.trials.columns}


def device_fronts(run: Run) -> pd.DataFrame:
    """Long frame: device, trial, arch_id, accuracy, latency_ms on it, knee: each device's own front, cheapest first."""
    parts = []
    for name, column in columns(run).items():
        rows = xy_front(run.trials[run.trials["status"] == "complete"], (column, "accuracy"))
        if not len(rows):
            continue
        points = to_minimised([{"accuracy": a, "latency_ms": ms} for a, ms in zip(rows["accuracy"], rows[column], strict=True)],
                              ("accuracy", "latency_ms"))
        chosen = knee(points)
        parts.append(pd.DataFrame({"device": name, "trial": rows["trial"], "arch_id": rows["arch_id"], "accuracy": rows["accuracy"],
                                   "latency_ms": rows[column], "knee": [i == chosen for i in range(len(rows))]}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(
        columns=["device", "trial", "arch_id", "accuracy", "latency_ms", "knee"])


def for_all(run: Run) -> dict[str, Any] | None:
    """The network for all devices: the knee of accuracy against the worst slowness.

    A network's slowness on a device is the logarithm of its latency over that of the fastest one, as a share of the front's range there;
    the worst over the devices counts. None where nothing is measured on several devices.
    """
    named = columns(run)
    done = run.trials[run.trials["status"] == "complete"].dropna(subset=["accuracy", *named.values()])
    if len(named) < 2 or not len(done):
        return None
    fronts = device_fronts(run)
    worst = pd.Series(0.0, index=done.index)
    for name, column in named.items():
        own = fronts.loc[fronts["device"] == name, "latency_ms"]
        low, high = float(own.min()), float(own.max())
        span = math.log(high / low) if high > low else 1.0
        worst = pd.concat([worst, (done[column] / low).map(math.log) / span], axis=1).max(axis=1)
    # slowness stands where a latency does: both are costs above 0
    rows = xy_front(done[["trial", "accuracy"]].assign(latency_ms=1 + worst), ("latency_ms", "accuracy"))
    points = to_minimised([{"accuracy": a, "latency_ms": w} for a, w in zip(rows["accuracy"], rows["latency_ms"], strict=True)],
                          ("accuracy", "latency_ms"))
    row = done.loc[rows.index[knee(points)]]
    return {"trial": int(row["trial"]), "arch_id": str(row["arch_id"]), "accuracy": float(row["accuracy"]),
            "latency_ms": {name: float(row[column]) for name, column in named.items()}}


def devices_section(run: Run) -> dict[str, Any] | None:
    """What the page says of the devices; None where there is one."""
    chosen = for_all(run)
    if chosen is None:
        return None
    fronts, rows = device_fronts(run), []
    others = part(run.env, "devices")
    for name in columns(run):
        own = fronts[fronts["device"] == name]
        best = own.loc[own["knee"]].iloc[0]
        about = others.get(name, run.env.get("device"))
        about = about if isinstance(about, Mapping) else {}
        ms = chosen["latency_ms"][name]
        within = own.loc[own["latency_ms"] <= ms, "accuracy"].max()
        rows.append({"device": name, "spec": str(dict(run.experiment["devices"])[name]), "fingerprint": str(about.get("fingerprint", "")),
                     "front": f"{len(own)}", "knee": f"{100 * best['accuracy']:.1f} % at {best['latency_ms']:.3g} ms",
                     "all": f"{ms:.3g} ms", "loss": f"{100 * (chosen['accuracy'] - float(within)):+.1f} points"})
    words = (f"Trial {chosen['trial']} ({chosen['arch_id']}) is the one network for all {len(rows)} devices: "
             f"{100 * chosen['accuracy']:.1f} % accuracy, at the knee of accuracy against its slowness on the device that suits it least.")
    return {"rows": rows, "words": words, "chosen": chosen}


def devices_chart(run: Run) -> dict[str, Any]:
    """Each device's front as a step line over its own latency; the network for all is ringed on each."""
    fronts, chosen = device_fronts(run), for_all(run)
    names = list(columns(run))
    drawn = pd.concat([fronts["latency_ms"], pd.Series([] if chosen is None else list(chosen["latency_ms"].values()), dtype=float)])
    x = alt.X("latency_ms:Q", title="measured latency on the device (ms)", scale=scale_of(drawn), axis=alt.Axis(tickCount=8))
    y = alt.Y("accuracy:Q", title="validation accuracy", axis=alt.Axis(format=".1%", tickCount=6), scale=alt.Scale(zero=False))
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    paint = alt.Color("device:N", title="device", scale=alt.Scale(domain=names, range=colours))
    tips = [alt.Tooltip("device:N"), alt.Tooltip("trial:Q"), alt.Tooltip("accuracy:Q", format=".2%"),
            alt.Tooltip("latency_ms:Q", title="latency (ms)", format=".3~g"), alt.Tooltip("arch_id:N", title="arch id")]
    base = alt.Chart(alt.NamedData(name="fronts")).encode(x=x, y=y, color=paint)
    ring = alt.Chart(alt.NamedData(name="chosen")).encode(x=x, y=y)
    layers = [base.mark_line(interpolate="step-after", strokeWidth=1.8), base.mark_circle(size=90, opacity=1).encode(tooltip=tips),
              ring.mark_point(size=300, color=INK, strokeWidth=1.6, filled=False)]
    spec: dict[str, Any] = styled(alt.layer(*layers).properties(width="container", height=360)).to_dict()
    spec["datasets"] = {"fronts": fronts.to_dict("records"), "chosen": [] if chosen is None else [
        {"accuracy": chosen["accuracy"], "latency_ms": ms} for ms in chosen["latency_ms"].values()]}
    return spec
