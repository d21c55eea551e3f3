"""The networks of a run after full training, picks beside baselines, with their latency in several runtimes.

    nasvit train RUN --pick knee,best,max-latency:2ms --minutes 5 --baselines
    python experiments/product_table.py RUN --devices cpu,cpu/onnxruntime --out reports/published/NAME

Prints the table, for every baseline the pick that is at least as accurate at no more latency, and the hypervolume of the picks' front over
that of the baselines' (accuracy against latency, one reference point); with --out also as table.md and table.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from nasvit.devices import open_device
from nasvit.errors import ConfigError
from nasvit.finals import load_trained
from nasvit.report import load
from nasvit.report.verified import verify
from nasvit.results.front import hypervolume, reference_point, to_minimised

NAMES = ("accuracy", "latency_ms")
Row = dict[str, Any]


def gather(run: Path, *, devices: Sequence[str]) -> list[Row]:
    """A row per full training: label, origin, accuracy, params_m, latency and verdict by device. Raises ConfigError without any."""
    table = verify(load(run)).table
    if not len(table):
        raise ConfigError(f"{run} has no full training; run `nasvit train {run} --pick knee,best --baselines` first")
    opened = {spec: open_device(spec) for spec in devices}
    rows = []
    for known in table.to_dict("records"):
        trained = load_trained(run / "train" / str(known["id"]))
        shape = (1, trained.in_channels, *trained.image_size)
        stats = {spec: device.measure(trained.module, input_shape=shape, patient=True) for spec, device in opened.items()}
        rows.append({"label": known["label"], "origin": known["origin"], "accuracy": known["final_accuracy"],
                     "tested": bool(known["test_images"]), "params_m": known["params_m"],
                     "epochs": known["epochs"], "latency_ms": {spec: s.median_ms for spec, s in stats.items()},
                     "verdict": {spec: s.verdict for spec, s in stats.items()}})
    return rows


def answers(rows: Sequence[Row], *, device: str) -> list[Row]:
    """For each baseline the most accurate searched network at no more latency, if it is at least as accurate; else None."""
    picks = [row for row in rows if row["origin"] == "search"]
    found = []
    for row in rows:
        if row["origin"] == "baseline":
            within = [p for p in picks if p["latency_ms"][device] <= row["latency_ms"][device] and p["accuracy"] >= row["accuracy"]]
            best = max(within, key=lambda p: p["accuracy"], default=None)
            found.append({"baseline": row["label"], "pick": None if best is None else best["label"]})
    return found


def volume_ratio(rows: Sequence[Row], *, device: str) -> float:
    """Hypervolume of the searched networks over that of the baselines; NaN where one of them is empty."""
    parts = {origin: [{"accuracy": r["accuracy"], "latency_ms": r["latency_ms"][device]} for r in rows if r["origin"] == origin]
             for origin in ("search", "baseline")}
    if not all(parts.values()):
        return math.nan
    search, named = (to_minimised(parts[origin], NAMES) for origin in ("search", "baseline"))
    reference = reference_point(np.concatenate([search, named]))
    below = hypervolume(named, reference)
    return hypervolume(search, reference) / below if below > 0 else math.inf


def text(rows: Sequence[Row], *, devices: Sequence[str]) -> str:
    """The table and the two answers as Markdown."""
    lines = [[row["label"], row["origin"], f"{row['accuracy']:.2%}", *(_ms(row, d) for d in devices),
              f"{row['params_m']:.3g}", f"{row['epochs']:.3g}"] for row in sorted(rows, key=lambda r: r["latency_ms"][devices[0]])]
    accuracy = "test accuracy" if all(row["tested"] for row in rows) else "accuracy (validation: the data have no test part)"
    head = ["network", "origin", accuracy, *(f"ms, {d}" for d in devices), "params (M)", "epochs"]
    parts = [tabulate(lines, headers=head, tablefmt="github", disable_numparse=True)]
    for device in devices:
        beaten = answers(rows, device=device)
        held = sum(a["pick"] is not None for a in beaten)
        parts.append(f"On {device}: {held} of {len(beaten)} baselines have a pick at least as accurate at no more latency"
                     + "".join(f"; {a['baseline']}: {a['pick'] or 'none'}" for a in beaten)
                     + f". Hypervolume of the picks over the baselines' {volume_ratio(rows, device=device):.2f}.")
    return "\n\n".join(parts) + "\n"


def _ms(row: Row, device: str) -> str:
    verdict = row["verdict"][device]
    return f"{row['latency_ms'][device]:.3g}{'' if verdict == 'stable' else f', {verdict}'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--devices", default="cpu,cpu/onnxruntime")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    devices = given.devices.split(",")
    rows = gather(given.run, devices=devices)
    print(text(rows, devices=devices))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "table.md").write_text(text(rows, devices=devices), encoding="utf-8")
        (given.out / "table.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
