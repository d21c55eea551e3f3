"""A run directory as pandas frames: `load(run_dir).front`. Needs neither torch nor a live study.

Every frame has one row per thing and units in the column names. `trials` stands at each trial's highest rung.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nasvit.arch import Arch
from nasvit.errors import ArchError, ConfigError, RunError
from nasvit.registry import unknown
from nasvit.report.precision import with_precision
from nasvit.report.run_files import read_mapping
from nasvit.report.shorthand import arch_text, block_text, main_mixer, mean_keep_ratio, plan_facts
from nasvit.results.front import Points, hypervolume, knee, non_dominated, pareto, reference_point, to_minimised
from nasvit.results.objectives import OBJECTIVES, objective
from nasvit.results.record import TrialRecord, latest, read

DEFAULT_OBJECTIVES = ("accuracy", "latency_ms")
TRIAL_COLUMNS = ("trial", "arch_id", "status", "rung", *OBJECTIVES, "ci_low_ms", "ci_high_ms", "verdict", "seconds", "depth", "widths",
                 "mixers", "main_mixer", "keep_ratio", "on_front", "reason", "label")
CHOICE_COLUMNS = ("order", "trial", "arch_id", "stage", "block", "choice", "value")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A loaded run directory.

    objectives: names, in the experiment's order. trials: one row per trial. front: the non-dominated complete trials, cheapest
    first, with a `knee` flag. hypervolume: `evaluated` (complete trials so far) and `hypervolume` so far, against `reference`.
    choices: long frame, one row per front point, place and choice. baselines: named networks under the same protocol.
    random: the random search of equal budget, or None.
    """

    path: Path
    experiment: Mapping[str, Any]
    env: Mapping[str, Any]
    summary: Mapping[str, Any]
    records: tuple[TrialRecord, ...]
    objectives: tuple[str, ...]
    reference: Points | None
    trials: pd.DataFrame
    front: pd.DataFrame
    hypervolume: pd.DataFrame
    choices: pd.DataFrame
    baselines: pd.DataFrame
    random: Run | None

    @property
    def axes(self) -> tuple[str, str]:
        """The two objectives that are drawn: (cost on x, quality on y). The rest are in the tables."""
        cost = "latency_ms" if "latency_ms" in self.objectives else next(
            (n for n in self.objectives if objective(n).direction == "minimize"), self.objectives[0])
        rest = [n for n in self.objectives if n != cost]
        return cost, next((n for n in rest if objective(n).direction == "maximize"), rest[0] if rest else "accuracy")

    @property
    def fingerprint(self) -> str:
        """The device that the latencies belong to; empty where none was measured."""
        return str(self.env.get("fingerprint") or next((r.fingerprint for r in self.records if r.fingerprint), ""))

    def best(self, *, max_latency_ms: float = math.inf, device: str = "") -> TrialRecord:
        """The most accurate complete trial within the limit (the faster one of two equals).

        device: the name of one of several that the run measured on; empty, the first. Raises ConfigError for another name, RunError
        where no trial is within the limit.
        """
        done = [r for r in latest(self.records).values() if r.status == "complete" and "accuracy" in r.objectives]
        names = list(part(self.experiment, "devices")) or [str(self.experiment.get("device", ""))]
        if device and device not in names:
            raise ConfigError(unknown("device of the run", device, names))
        name = f"latency_ms@{device}" if device and device != names[0] else "latency_ms"
        within = [r for r in done if max_latency_ms == math.inf or r.objectives.get(name, math.inf) <= max_latency_ms]
        if not within:
            fastest = min((r.objectives[name] for r in done if name in r.objectives), default=None)
            hint = f"the fastest takes {fastest:.3g} ms" if fastest is not None else "no complete trial has an accuracy and a latency yet"
            raise RunError(f"{self.path}: no trial within {max_latency_ms:g} ms; {hint}")
        return max(within, key=lambda r: (r.objectives["accuracy"], -r.objectives.get(name, 0.0)))


def load(run_dir: Path | str) -> Run:
    """Read a run directory, finished or not. Raises ConfigError where it is missing, RunError where it is damaged."""
    path = Path(run_dir)
    if not path.is_dir():
        raise ConfigError(f"{path} is not a directory; give the folder that `nasvit search --out` wrote")
    if not (path / "experiment.yaml").exists() and not (path / "records.jsonl").exists():
        raise ConfigError(f"{path} is not a run directory: it has neither experiment.yaml nor records.jsonl")
    experiment, env, summary = (read_mapping(path / name) for name in ("experiment.yaml", "env.json", "summary.json"))
    records = tuple(read(path / "records.jsonl"))
    names = _objectives(summary, experiment, path)
    points = _points(latest(records).values(), names)
    reference = reference_point(points) if len(points) else None
    front = pareto(records, names)
    further = _further(names, experiment, records)
    table = with_precision(_with_devices(_trials(records, front, path), latest(records), further), path, records=records, env=env)
    random = load(path / "baselines" / "random") if (path / "baselines" / "random" / "records.jsonl").exists() else None
    front_table = _front(table, front, names)
    return Run(path=path, experiment=experiment, env=env, summary=summary, records=records, objectives=names, reference=reference,
               trials=table, front=front_table, hypervolume=hypervolume_so_far(records, names, reference=reference),
               choices=_choices(front), random=random,
               baselines=_compared(_baselines(path, further), front_table, names))


def hypervolume_so_far(records: Sequence[TrialRecord], names: Sequence[str], *, reference: Points | None) -> pd.DataFrame:
    """Columns evaluated, hypervolume: after each complete trial, in the order of the records, against one fixed reference point.

    A promotion replaces the trial's value and counts towards the row that is current when it lands.
    """
    rows: dict[int, float] = {}
    current: dict[int, TrialRecord] = {}
    value = 0.0
    for record in records:
        known = current.get(record.trial)
        if reference is None or (known is not None and latest([known, record])[record.trial] is not record):
            continue  # a promotion that failed leaves the value it had
        new = _points([record], names)
        others = _points(current.values(), names)
        current[record.trial] = record
        covered = len(new) and len(others) and np.any(np.all(others <= new, axis=1))
        if known is not None or (len(new) and not covered):  # otherwise nothing changed, and exact hypervolume is not free
            value = hypervolume(_points(current.values(), names), reference)
        done = len(_points(current.values(), names))
        if done:
            rows[done] = value
    return pd.DataFrame({"evaluated": list(rows), "hypervolume": list(rows.values())}).astype({"evaluated": int, "hypervolume": float})


# ---- files ------------------------------------------------------------------------------------------------------------


def _objectives(summary: Mapping[str, Any], experiment: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    given = summary.get("objectives") or experiment.get("objectives") or DEFAULT_OBJECTIVES
    if not isinstance(given, (list, tuple)):
        raise RunError(f"{path}: objectives must be a list of names, not {given!r}")
    try:
        return tuple(objective(str(n)).name for n in given)
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from None


# ---- frames -----------------------------------------------------------------------------------------------------------


def _points(records: Any, names: Sequence[str]) -> Points:
    """(n, m) minimised objectives of the complete records that have all of them."""
    return to_minimised([r.objectives for r in records if r.status == "complete" and all(n in r.objectives for n in names)], names)


def _network(record: TrialRecord, path: Path) -> Arch | None:
    if not record.has_arch:
        return None
    try:
        return record.network()
    except ArchError as error:
        raise RunError(f"{path}, trial {record.trial}: the record's network is damaged: {error}") from None


def _row(record: TrialRecord, *, seconds: float, on_front: bool, path: Path) -> dict[str, Any]:
    arch = _network(record, path)
    latency = record.latency or {}
    structure: dict[str, Any] = {"depth": pd.NA, "widths": None, "mixers": None, "main_mixer": None, "keep_ratio": math.nan}
    if record.arch is not None and not record.has_arch:
        structure |= plan_facts(record.arch)
    if arch is not None:
        structure = {"depth": sum(len(s.blocks) for s in arch.stages), "widths": "-".join(str(s.embed_dim) for s in arch.stages),
                     "mixers": arch_text(arch), "main_mixer": main_mixer(arch), "keep_ratio": mean_keep_ratio(arch)}
    return {"trial": record.trial, "arch_id": record.arch_id, "status": record.status, "rung": record.rung,
            **{n: float(record.objectives.get(n, math.nan)) for n in OBJECTIVES},
            "ci_low_ms": float(latency.get("ci_low_ms", math.nan)), "ci_high_ms": float(latency.get("ci_high_ms", math.nan)),
            "verdict": latency.get("verdict"), "seconds": seconds, **structure, "on_front": on_front,
            "reason": record.reason, "label": record.label}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    types = {"trial": "int64", "rung": "int64", "depth": "Int64", "on_front": "bool", **dict.fromkeys(OBJECTIVES, "float64"),
             **dict.fromkeys(("ci_low_ms", "ci_high_ms", "seconds", "keep_ratio"), "float64"),
             **dict.fromkeys(("arch_id", "status", "verdict", "widths", "mixers", "main_mixer", "reason", "label"), "string")}
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS)).astype(types)


def _trials(records: Sequence[TrialRecord], front: Sequence[TrialRecord], path: Path) -> pd.DataFrame:
    """One row per trial at its highest rung; seconds are the sum over its rungs."""
    spent: dict[int, float] = {}
    for record in records:
        spent[record.trial] = spent.get(record.trial, 0.0) + float(record.seconds.get("total", sum(record.seconds.values())))
    members = {r.trial for r in front}
    return _frame([_row(r, seconds=spent[t], on_front=t in members, path=path) for t, r in sorted(latest(records).items())])


def _further(names: Sequence[str], experiment: Mapping[str, Any], records: Sequence[TrialRecord]) -> list[str]:
    """The latencies on further devices: of the objectives, and of a device that any was measured on before it went away."""
    there = {name for record in records for name in record.objectives}
    return list(dict.fromkeys((*(name for name in names if name not in OBJECTIVES),
                               *(name for name in (f"latency_ms@{device}" for device in part(experiment, "devices")) if name in there))))


def _with_devices(table: pd.DataFrame, by_trial: Mapping[int, TrialRecord], further: Sequence[str]) -> pd.DataFrame:
    """The trials with a column for each of these latencies."""
    return table.assign(**{name: [float(by_trial[t].objectives.get(name, math.nan)) for t in table["trial"]] for name in further})


def _front(table: pd.DataFrame, front: Sequence[TrialRecord], names: Sequence[str]) -> pd.DataFrame:
    """The front's rows, cheapest first, with a `knee` flag in exactly one of them."""
    order = [r.trial for r in front]
    chosen = knee(_points(front, names)) if front else -1
    rows = table.set_index("trial", drop=False).loc[order].reset_index(drop=True)
    rows.insert(1, "knee", [i == chosen for i in range(len(rows))])
    return rows.drop(columns=["on_front", "status", "reason"])


def _choices(front: Sequence[TrialRecord]) -> pd.DataFrame:
    """Long frame along the front: per stage embed_dim and depth, per block mixers, keep_ratio and mlp_dim."""
    rows: list[tuple[Any, ...]] = []
    for order, record in enumerate(front):
        if not record.has_arch:
            continue
        for s, stage in enumerate(record.network().stages):
            place = (order, record.trial, record.arch_id, s)
            rows += [(*place, pd.NA, "embed_dim", str(stage.embed_dim)), (*place, pd.NA, "depth", str(len(stage.blocks)))]
            for b, block in enumerate(stage.blocks):
                rows += [(*place, b, "mixers", block_text(block).split("@")[0]), (*place, b, "keep_ratio", f"{block.keep_ratio:g}"),
                         (*place, b, "mlp_dim", str(block.mlp_dim))]
    return pd.DataFrame(rows, columns=list(CHOICE_COLUMNS)).astype({"block": "Int64", "value": "string", "choice": "string"})


def _baselines(path: Path, further: Sequence[str]) -> pd.DataFrame:
    """The named networks, one row each at its highest rung, in the order they were measured."""
    last: dict[str, TrialRecord] = {}
    for record in read(path / "baselines.jsonl"):
        name = record.label or record.arch_id
        if name not in last or record.rung >= last[name].rung:
            last[name] = record
    rows = [{**_row(r, seconds=float(r.seconds.get("total", 0.0)), on_front=False, path=path), "fingerprint": r.fingerprint}
            for r in last.values()]
    table = _frame(rows)
    table["fingerprint"] = pd.array([r["fingerprint"] for r in rows], dtype="string")
    table = _with_devices(table, {record.trial: record for record in last.values()}, further)
    return table.drop(columns=["on_front"])


def _compared(table: pd.DataFrame, front: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Beside each baseline: the front's best accuracy at no more latency, and its least latency at no less accuracy."""
    def at_most(latency: float) -> float:
        return float(front.loc[front["latency_ms"] <= latency, "accuracy"].max())

    def at_least(accuracy: float) -> float:
        return float(front.loc[front["accuracy"] >= accuracy, "latency_ms"].min())

    if not set(DEFAULT_OBJECTIVES) <= set(names):
        return table.assign(front_accuracy=math.nan, front_latency_ms=math.nan)
    return table.assign(front_accuracy=[at_most(v) for v in table["latency_ms"]],
                        front_latency_ms=[at_least(v) for v in table["accuracy"]])


def xy_front(table: pd.DataFrame, axes: tuple[str, str]) -> pd.DataFrame:
    """The rows that are non-dominated in the two drawn objectives, by rising x: the step line of a picture."""
    rows = table.dropna(subset=list(axes))
    points = to_minimised([{str(k): float(v) for k, v in row.items()} for row in rows[list(axes)].to_dict("records")], axes)
    return rows.loc[non_dominated(points)].sort_values(list(axes)) if len(rows) else rows


def foreign(run: Run, fingerprint: str) -> bool:
    """Whether a latency of that device may not stand beside the run's own: two fingerprints are never put in one column."""
    return bool(run.fingerprint and fingerprint and fingerprint != run.fingerprint)


def part(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping inside env.json; empty where it is absent or something else."""
    value = table.get(name)
    return value if isinstance(value, Mapping) else {}
