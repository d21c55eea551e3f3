"""How well latency is predicted: of new networks on one device, of another device after ten measurements, and what a rejection costs.

    python experiments/predictor.py --measure test.jsonl --space hybrid_tiny --seed 1 --count 200 --seconds 220   (resumes; made in pieces)
    python experiments/predictor.py --measure test.jsonl --device cpu/onnxruntime --exports FOLDER   (exported once; --only-export)
    python experiments/predictor.py --profile profile.json --test test.jsonl           (profile: of nasvit profile, or a .jsonl as above)
    python experiments/predictor.py --cross test.jsonl --folds 10                       (each network predicted from the other nine tenths)
    python experiments/predictor.py --transfer ../shared/benchmarks --seeds 10
    python experiments/predictor.py --limits RUN                                       (a finished search with --max-latency)

Goals: mean absolute error at most 5 %, 95 % of networks within 10 %, Spearman at least 0.98, the 90 % interval holds 85 to 95 %; after
ten measurements of a new device at most 6 % where a fit from scratch has twice that; a rejection by prediction costs at most 5 % of a
trial. Errors are against one measurement each, whose own noise is part of them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from torch import Tensor, nn

from nasvit.arch import Arch
from nasvit.errors import MeasurementError
from nasvit.latency import LatencyModel, Prediction
from nasvit.latency.transfer import Transfer

TEN = 10
LEAST_ERROR = 0.06
"""Goal of a transfer."""


# ---- new networks on one device ----------------------------------------------------------------------------------------


class Kept:
    """Takes the place of a file runtime's `export`: what was exported under a name is kept, because exporting takes so much longer than
    measuring. `name` is the next network's."""

    def __init__(self, folder: Path, *, export: Callable[[nn.Module, Tensor, Path], Path]) -> None:
        self.folder, self.export, self.name = folder, export, "reference"

    def __contains__(self, name: str) -> bool:
        return (self.folder / name).is_dir()

    def __call__(self, module: nn.Module, image: Tensor, path: Path) -> Path:
        place = self.folder / self.name
        if self.name not in self:
            unfinished = self.folder / f".{self.name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            self.export(module, image, unfinished / path.name)
            unfinished.rename(place)
        for file in place.iterdir():
            shutil.copy(file, path.parent)
        return next(file for file in path.parent.iterdir() if file.stem == path.name and file.suffix != ".bin")


def measure(path: Path, *, space: str, device: str, seed: int, count: int, seconds: float, exports: Path | None, only_export: bool) -> None:
    """Append measurements of the first `count` networks of a seed, those not yet in the file."""
    from nasvit.devices import open_device
    from nasvit.devices.base import example
    from nasvit.devices.form import inference_form
    from nasvit.models.build import build
    from nasvit.runtimes import FileRuntime
    from nasvit.space import SearchSpace

    loaded, rng, archs = SearchSpace.load(space), random.Random(seed), {}
    while len(archs) < count:
        arch = loaded.sample(rng)
        archs[arch.id] = arch
    done = {one["id"] for one in lines(path)}
    target, ends = open_device(device), time.monotonic() + seconds
    kept = None
    if exports is not None:
        assert isinstance(target.runtime, FileRuntime)
        kept = Kept(exports, export=target.runtime.export)
        target.runtime.export = kept  # type: ignore[method-assign, assignment]
    if not only_export:
        target.calibrate()
    for arch in archs.values():
        shape = (1, arch.in_channels, *arch.image_size)
        if arch.id in done or time.monotonic() > ends:
            continue
        if kept is not None:
            kept.name = arch.id
            if only_export:
                if arch.id not in kept:
                    form = inference_form(build(arch, seed=0))
                    with tempfile.TemporaryDirectory() as folder:
                        kept(form, example(form, shape=shape), Path(folder) / "model")
                continue
            if arch.id not in kept:
                continue
        begun = time.monotonic()
        try:
            stats = target.measure(nn.Identity() if kept else build(arch, seed=0), input_shape=shape)
        except MeasurementError as error:
            print(f"{arch.id}: {error}", flush=True)
            continue
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": arch.id, "arch": arch.to_dict(), "ms": stats.median_ms, "half": stats.half_width,
                                   "verdict": stats.verdict, "ref": stats.reference_ms, "slowness": stats.slowness,
                                   "seconds": time.monotonic() - begun, "fingerprint": stats.fingerprint}) + "\n")
    target.close()
    print(f"{len(lines(path))} of {count} measured")


def lines(path: Path) -> list[dict[str, Any]]:
    """The measurements of a file; none where there is no file."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def model_of(path: Path) -> LatencyModel:
    """A profile, or the model of measurements."""
    if path.suffix == ".json":
        return LatencyModel.load(path)
    found = LatencyModel()
    for one in lines(path):
        found.observe(Arch.from_dict(one["arch"]), one["ms"], error=one["half"])
    return found


HEAD = ("learned from", "tested on", "mean error", "within 10 %", "Spearman", "in the 90 % interval", "half width", "ms a prediction")


def accuracy_table(profile: Path, test: Path) -> str:
    """One row for each number of networks that the model learned from."""
    whole = model_of(profile)
    known = {o.arch.id for o in whole.observations}
    held = [one for one in lines(test) if one["id"] not in known]
    archs, truth = [Arch.from_dict(one["arch"]) for one in held], np.array([one["ms"] for one in held])
    rows = []
    for count in sorted({n for n in (20, 50, 100, 150, 200) if n < len(whole.observations)} | {len(whole.observations)}):
        model = LatencyModel(whole.observations[:count])
        found = model.predict_many(archs)
        begun = time.perf_counter()
        model.predict(archs[0])
        rows.append((count, *accuracy(found, truth), f"{1e3 * (time.perf_counter() - begun):.2f}"))
    return f"{markdown(HEAD, rows)}\n\n{noise_of(held)}"


def cross_table(test: Path, *, folds: int) -> str:
    """One row: every network predicted by a model that learned from the other folds, which hold networks at random."""
    held = lines(test)
    order = np.random.default_rng(0).permutation(len(held))
    found: dict[int, Prediction] = {}
    for fold in range(folds):
        apart = set(order[fold::folds].tolist())
        model = LatencyModel()
        for i in order:
            if i not in apart:
                model.observe(Arch.from_dict(held[i]["arch"]), held[i]["ms"], error=held[i]["half"])
        found |= dict(zip(apart, model.predict_many([Arch.from_dict(held[i]["arch"]) for i in apart]), strict=True))
    row = (len(held) * (folds - 1) // folds, *accuracy([found[i] for i in range(len(held))], np.array([one["ms"] for one in held])))
    return f"{markdown(HEAD[:-1], [row])}\n\n{noise_of(held)}"


def accuracy(found: Sequence[Prediction], truth: np.ndarray) -> tuple[Any, ...]:
    """The columns from `tested on` to `half width`."""
    middle = np.array([p.median_ms for p in found])
    error = np.abs(middle / truth - 1)
    inside = np.mean([p.low_ms <= t <= p.high_ms for p, t in zip(found, truth, strict=True)])
    return (len(truth), f"{error.mean():.1%}", f"{(error < 0.1).mean():.1%}", f"{spearmanr(middle, truth)[0]:.3f}", f"{inside:.0%}",
            f"{median((p.high_ms - p.low_ms) / 2 / p.median_ms for p in found):.1%}")


def noise_of(held: Sequence[dict[str, Any]]) -> str:
    """What the measurements themselves are like."""
    ms = sorted(one["ms"] for one in held)
    return (f"{ms[0]:.2f} to {ms[-1]:.2f} ms; half width of a measurement's own 90 % interval: {median(one['half'] for one in held):.1%} "
            f"(median); {sum(one.get('seconds', 0.0) for one in held):.0f} s of building and measuring in all.")


# ---- another device ----------------------------------------------------------------------------------------------------


def chip(device: str) -> str:
    """The device without its batch size: one chip is never known from itself."""
    return re.sub(r"_(1|32|64|256)$", "", device)


def cells(folder: Path, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features and latencies by device of a table of categorical choices."""
    table = pd.read_parquet(folder / name / f"{name}.parquet")
    if "disconnected" in table:
        table = table[~table["disconnected"].astype(bool)]
    choices = [c for c in table if re.fullmatch(r"(edge|block)\d+", c)]
    hot = pd.get_dummies(table[choices].astype("category"))
    counts = pd.concat([(table[choices] == value).sum(axis=1) for value in range(int(table[choices].max().max()) + 1)], axis=1)
    latencies = {c.removeprefix("lat_ms_"): np.maximum(table[c].to_numpy(float), 1e-2) for c in table if c.startswith("lat_ms_")}
    return np.column_stack([hot.to_numpy(float), counts.to_numpy(float)]), latencies


def transformers(folder: Path, part: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By task and device: features (log sizes and their products) and latencies of the encoder or decoder; 2,000 networks each."""
    table = pd.read_parquet(folder / "hat_latency" / "hat_latency.parquet")
    columns = [c for c in table if c.startswith(("encoder_", "decoder_"))]
    logs = np.log(table[columns].to_numpy(float))
    logs = (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-9)
    pairs = [logs[:, i] * logs[:, j] for i in range(logs.shape[1]) for j in range(i, logs.shape[1])]
    features, found = np.column_stack([logs, *pairs]), {}
    for (task, device), rows in table.groupby(["task", "device"]).indices.items():
        found[f"{task} {device}"] = (features[rows], table[f"latency_mean_{part}"].to_numpy(float)[rows])
    return found


def fitted(features: np.ndarray, ms: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Ridge regression of log latency on one device's networks, at the networks of another."""
    weights = np.ones(len(ms))
    x, y = np.column_stack([np.ones(len(ms)), features]), np.log(ms)
    for _ in range(5):  # measurements far out (a busy board) count less
        left = x.T @ (weights[:, None] * x) + 1e-1 * np.eye(x.shape[1])
        solution = np.linalg.solve(left, x.T @ (weights * y))
        residual = np.abs(y - x @ solution)
        weights = 1 / np.maximum(residual, np.median(residual))
        weights /= weights.mean()
    return np.asarray(np.exp(np.column_stack([np.ones(len(at)), at]) @ solution))


def carried(known: np.ndarray, features: np.ndarray, ms: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Mean absolute relative error on all other networks after ten measurements, and the share inside the 90 % interval."""
    transfer = Transfer(known, features=features)
    rows = transfer.choose(TEN, seed=seed)
    transfer.fit(rows, ms[rows])
    found, deviation = transfer.predict()
    rest = np.setdiff1d(np.arange(len(ms)), rows)
    inside = np.abs(np.log(ms[rest] / found[rest])) <= 1.645 * deviation[rest]
    return float(np.mean(np.abs(found[rest] / ms[rest] - 1))), float(inside.mean())


def transfer_table(folder: Path, *, seeds: int) -> str:
    """One row for each target device: error with the other chips known, and from scratch with the same number of measurements."""
    rows: list[tuple[Any, ...]] = []
    problems: list[tuple[str, str, np.ndarray, np.ndarray, np.ndarray]] = []
    for name in ("fbnet_latency", "nb201_hw"):
        features, latencies = cells(folder, name)
        for target, ms in latencies.items():
            known = np.column_stack([v for k, v in latencies.items() if chip(k) != chip(target)])
            problems.append((name, target, known, features, ms))
    for part in ("encoder", "decoder"):
        pairs = transformers(folder, part)
        for target, (features, ms) in pairs.items():
            known = np.column_stack([fitted(f, m, features) for k, (f, m) in pairs.items() if k.split()[1] != target.split()[1]])
            problems.append((f"hat_latency {part}", target, known, features, ms))
    for name, target, known, features, ms in problems:
        every = [carried(known, features, ms, seed=seed) for seed in range(seeds)]
        scratch = [carried(known[:, :0], features, ms, seed=seed)[0] for seed in range(seeds)]
        floor = float(np.mean(np.abs(fitted(np.column_stack([features, np.log(known)]), ms, np.column_stack([features, np.log(known)]))
                                     / ms - 1)))
        rows.append((name, target, float(np.mean([e for e, _ in every])), float(np.mean(scratch)), floor,
                     float(np.mean([inside for _, inside in every]))))
    means = [(name, "MEAN", *np.mean([r[2:] for r in rows if r[0] == name], axis=0)) for name in dict.fromkeys(r[0] for r in rows)]
    head = ("benchmark", "target", f"{TEN} measurements, other chips known", f"{TEN} measurements, from scratch",
            "fit with all measurements", "in the 90 % interval")
    return markdown(head, [(r[0], r[1], *(f"{v:.1%}" for v in r[2:])) for r in (*rows, *means)]) + f"\n\n{goal_of_transfer(means)}"


def goal_of_transfer(means: list[tuple[Any, ...]]) -> str:
    """Whether the goal is met, benchmark by benchmark; means: (benchmark, .., error with other chips known, error from scratch, ..)."""
    words = []
    for name, _, known, scratch, *_ in means:
        missed = [f"over {LEAST_ERROR:.0%}"] if round(known, 3) > LEAST_ERROR else []
        missed += [f"{scratch / known:.1f} times less than from scratch, not twice"] if scratch < 2 * known else []
        words.append(f"{name} {'missed (' + ', '.join(missed) + ')' if missed else 'met'}")
    return f"Goal: at most {LEAST_ERROR:.0%}, and half of the error from scratch, by the mean of a benchmark: {'; '.join(words)}."


# ---- limits ------------------------------------------------------------------------------------------------------------


def limits_table(run: Path) -> str:
    """What candidates of a finished search cost: trained, rejected after measuring, rejected by prediction."""
    from nasvit.experiment import Experiment
    from nasvit.results.record import append, read
    from nasvit.search.screen import Screen
    from nasvit.search.study import Proposer
    from nasvit.space import SearchSpace

    experiment, records = Experiment.load(run / "experiment.yaml"), read(run / "records.jsonl")
    spent: dict[int, float] = {}
    for record in records:
        spent[record.trial] = spent.get(record.trial, 0.0) + record.seconds.get("train", 0.0) + record.seconds.get("measure", 0.0)
    measured = [r for r in records if r.status == "rejected" and r.latency is not None]
    complete = {r.trial for r in records if r.status == "complete"}
    trained = sum(spent[t] for t in complete) / len(complete)
    screen = Screen(limits=experiment.limits or {"latency_ms": 1.0}, records=records)
    size = read_size(records)
    space = SearchSpace.load(run / "space.yaml", image_size=size[:2], in_channels=size[2], num_classes=size[3])
    proposer = Proposer(space, sampler=experiment.sampler, seed=1, objectives=experiment.objectives, limits=experiment.limits,
                        records=records)
    timed = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(30):
            begun = time.perf_counter()
            proposal = proposer.propose()
            if proposal is None:
                break
            screen.judge(proposal.arch)
            append(Path(folder) / "records.jsonl", records[0])
            timed.append(time.perf_counter() - begun)
    rows = [("trained and measured", len(complete), f"{trained:.2f} s", "100 %")]
    if measured:
        cost = median(spent[r.trial] for r in measured)
        rows.append(("rejected after measuring", len(measured), f"{cost:.3f} s", f"{cost / trained:.1%}"))
    cost = median(timed)
    turned = sum("predicted" in r.details for r in records)
    rows.append((f"rejected by prediction, proposal by {experiment.sampler} and record included", turned, f"{cost:.3f} s",
                 f"{cost / trained:.1%}"))
    return markdown(("candidate", "in this run", "costs", "of a trial"), rows)


def read_size(records: Sequence[Any]) -> tuple[int, int, int, int]:
    """Height, width, channels and classes of a run's networks."""
    arch = records[0].network()
    return (*arch.image_size, arch.in_channels, arch.num_classes)


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
                      *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--space", default="hybrid_tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=220)
    parser.add_argument("--exports", type=Path)
    parser.add_argument("--only-export", action="store_true")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--cross", type=Path)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--transfer", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--limits", type=Path)
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.measure, space=given.space, device=given.device, seed=given.seed, count=given.count, seconds=given.seconds,
                exports=given.exports, only_export=given.only_export)
    if given.profile is not None and given.test is not None:
        print(accuracy_table(given.profile, given.test))
    if given.cross is not None:
        print(cross_table(given.cross, folds=given.folds))
    if given.transfer is not None:
        print(transfer_table(given.transfer, seeds=given.seeds))
    if given.limits is not None:
        print(limits_table(given.limits))


if __name__ == "__main__":
    main()
