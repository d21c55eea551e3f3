"""What the networks of the front score in the precision of a device that does not compute in float32. Reads precision.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nasvit.errors import RunError
from nasvit.report.run_files import read_mapping
from nasvit.results.precision import FILE, column, precisions
from nasvit.results.record import TrialRecord, latest

Point = Mapping[str, Any]


def points_of(path: Path, records: Sequence[TrialRecord]) -> dict[tuple[str, int], Point]:
    """The run's points by latency and trial, those of the rung that the trial stands at. Raises RunError for a damaged file."""
    points = read_mapping(path / FILE).get("points", [])
    if not isinstance(points, list) or not all(_sound(point) for point in points):
        raise RunError(f"{path / FILE} is damaged: its points must each have latency, trial, rung, and accuracies between 0 and 1 or a "
                       "reason; remove it, and resume the search, which writes it anew")
    rungs = {trial: record.rung for trial, record in latest(records).items()}
    return {(p["latency"], p["trial"]): p for p in points if rungs.get(p["trial"]) == p["rung"]}


def _sound(point: Any) -> bool:
    if not isinstance(point, dict) or not isinstance(point.get("latency"), str):
        return False
    if not all(isinstance(point.get(name), int) for name in ("trial", "rung")):
        return False
    if "accuracy" not in point:
        return isinstance(point.get("reason"), str)
    shares = [point.get(name) for name in ("accuracy", "accuracy_fp32", "same_class")]
    return all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares) and isinstance(point.get("images"), int)


def with_precision(table: pd.DataFrame, path: Path, *, records: Sequence[TrialRecord], env: Mapping[str, Any]) -> pd.DataFrame:
    """The trials with a column `accuracy_int8`, `accuracy_int8@NAME` for each device that computes in another precision."""
    found = precisions(env)
    if not found:
        return table
    points = points_of(path, records)
    return table.assign(**{column(latency, precision): [float(points.get((latency, trial), {}).get("accuracy", math.nan))
                                                        for trial in table["trial"]] for latency, precision in found.items()})


def columns(env: Mapping[str, Any]) -> dict[str, str]:
    """Column to how it is headed: `accuracy in int8`, `accuracy in int8 on NAME`."""
    return {column(latency, precision): f"accuracy in {precision}" + (f" on {latency.partition('@')[2]}" if "@" in latency else "")
            for latency, precision in precisions(env).items()}


def precision_notes(path: Path, front: pd.DataFrame, *, records: Sequence[TrialRecord], env: Mapping[str, Any]) -> list[str]:
    """What a reader must know of each device that computes in another precision."""
    lines, points = [], points_of(path, records)
    for latency, precision in precisions(env).items():
        chosen = f"{latency} is of {precision}, and the accuracy by which networks were ranked is of fp32."
        own = {trial: points.get((latency, trial), {}) for trial in map(int, front["trial"])}
        done = [point for point in own.values() if "accuracy" in point]
        missing = {trial: str(point.get("reason", "the search did not come so far")) for trial, point in own.items()
                   if "accuracy" not in point}
        if done:
            worst = max(point["accuracy_fp32"] - point["accuracy"] for point in done)
            where = ", in the same runtime on the machine of the search, not on the device itself" if done[0].get("elsewhere") else ""
            chosen += (f" What {len(done)} of the front score in {precision} stands beside it, on {done[0]['images']} validation images"
                       f"{where}; against fp32 on the same images the worst lost {100 * worst:.1f} points.")
        if missing:
            trials = ", ".join(map(str, missing))
            chosen += (f" Not measured in {precision}, so that accuracy and latency are of two different functions: trial {trials} "
                       f"({next(iter(missing.values()))}).")
        if own:
            lines.append(chosen)
    return lines
