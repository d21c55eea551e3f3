"""Verified winners: what full trainings (train/*/metrics.json of a run) say of what the search promised. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nasvit.errors import RunError
from nasvit.report.tables import Run, foreign
from nasvit.results.correlation import Correlation, kendall_interval
from nasvit.results.front import non_dominated, to_minimised

_PREDICTED = ("predicted_ms", "predicted_low_ms", "predicted_high_ms")
COLUMNS = ("id", "label", "origin", "trial", "proxy_accuracy", "rung", "test_accuracy", "val_accuracy", "final_accuracy",
           "search_latency_ms", "ci_low_ms", "ci_high_ms", *_PREDICTED, "latency_ms", "verdict", "same_device", "inside", "promised",
           "on_search_front", "fell_off", "params_m", "epochs", "seconds", "test_images")
_SEED = 0  # of the bootstrap, so that a report says the same twice


@dataclass(frozen=True, kw_only=True)
class Verified:
    """table: one row per full training, the most accurate first. tau: proxy against final accuracy
    over the pairs that the search trained to one rung (accuracies of two rungs do not compare), None for too few.

    predicted_ms: by the latency predictor after the run's other measurements, with its interval. final_accuracy is that of the test
    split where there is one, else the validation part's. fell_off: a point of the search's front that another
    fully trained network of this run beats in both final accuracy and remeasured latency.
    """

    table: pd.DataFrame
    tau: Correlation | None


def verify(run: Run) -> Verified:
    """Read the run's full trainings; without any the table is empty. Raises RunError for a damaged file."""
    front = set(run.front["arch_id"])
    rows = [_row(_read(path), run, front=front) for path in sorted((run.path / "train").glob("*/metrics.json"))]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if len(table):
        table["fell_off"] = _fallen(table)
        table = table.sort_values("final_accuracy", ascending=False, kind="stable").reset_index(drop=True)
    known = table.dropna(subset=["proxy_accuracy", "final_accuracy"])
    tau = kendall_interval(list(known["proxy_accuracy"]), list(known["final_accuracy"]), seed=_SEED,
                           groups=list(known["rung"]))
    return Verified(table=table, tau=tau)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict) or "id" not in data or not isinstance(data.get("searched"), dict):
        raise RunError(f"{path} is damaged: it must be what `nasvit train` wrote")
    return data


def _row(metrics: Mapping[str, Any], run: Run, *, front: set[str]) -> dict[str, Any]:
    searched, latency = metrics["searched"], metrics.get("latency") or {}
    tested, checked = _number(metrics.get("test_accuracy")), _number(metrics.get("val_accuracy"))
    same = bool(latency) and not foreign(run, str(latency.get("fingerprint", "")))
    now, low, high = _number(latency.get("median_ms")), _number(searched.get("ci_low_ms")), _number(searched.get("ci_high_ms"))
    origin = str(searched.get("origin") or "given")
    return {"id": str(metrics["id"]), "label": str(metrics.get("label") or metrics["id"]), "origin": origin, "trial": searched.get("trial"),
            "proxy_accuracy": _number(searched.get("accuracy")), "rung": searched.get("rung"),
            "test_accuracy": tested, "val_accuracy": checked,
            "final_accuracy": checked if math.isnan(tested) else tested, "search_latency_ms": _number(searched.get("latency_ms")),
            "ci_low_ms": low, "ci_high_ms": high, **{name: _number(searched.get(name)) for name in _PREDICTED}, "latency_ms": now,
            "verdict": latency.get("verdict"), "same_device": same,
            "inside": same and low <= now <= high, "promised": same and math.isfinite(low),
            "on_search_front": origin == "search" and str(metrics["id"]) in front, "fell_off": False,
            "params_m": _number(metrics.get("params_m")), "epochs": _number(metrics.get("epochs")),
            "seconds": _number(metrics.get("seconds")), "test_images": int(metrics.get("test_images") or 0)}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _fallen(table: pd.DataFrame) -> list[bool]:
    """Whether each row was on the search's front and is dominated now, among the search's own networks on the same device."""
    rivals = table[(table["origin"] == "search") & table["same_device"]].dropna(subset=["final_accuracy", "latency_ms"])
    values = [{"accuracy": float(a), "latency_ms": float(ms)} for a, ms in zip(rivals["final_accuracy"], rivals["latency_ms"], strict=True)]
    kept = dict(zip(rivals.index, non_dominated(to_minimised(values, ("accuracy", "latency_ms"))), strict=True)) if values else {}
    return [bool(table.at[i, "on_search_front"]) and i in kept and not kept[i] for i in table.index]
