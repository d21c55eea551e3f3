"""What a search survives: each fault with the figure that shows it. Kills are in fault_kills.py, broken data sets in fault_data.py.

    python experiments/faults.py records --times 1000          # truncations and byte flips of records and checkpoints
    python experiments/faults.py disk                          # no space left at every write of a search of 10 trials
    python experiments/faults.py full                          # real searches on file systems that are too small (needs the right to mount)
    python experiments/faults.py metrics | jobs | clock | resume | seeds

Every search is a real one with stand-in evaluations (stand_in.py); `full` and `seeds` train.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import stand_in
import torch
from fault_search import HERE, Row, search

from nasvit.errors import CheckpointError, NasvitError, RunError
from nasvit.models.weight_file import read_weights, write_weights
from nasvit.results.front import pareto
from nasvit.results.record import read, repair
from nasvit.search.evaluate import evaluate
from nasvit.search.progress import counts

NAMES = ["accuracy", "latency_ms"]


def records(*, times: int, seed: int) -> list[Row]:
    """Truncations and byte flips of a record file and of a checkpoint: what reading, mending and repairing make of them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        search(out, stand_in.nothing, engine="inline", budget=20)
        return _of_records(out / "records.jsonl", times=times, rng=random.Random(seed)) + _of_weights(
            Path(folder) / "weights.safetensors", times=times, rng=random.Random(seed))


def flipped(whole: bytes, place: int, rng: random.Random) -> bytes:
    """One bit of one byte changed."""
    changed = bytearray(whole)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _of_records(path: Path, *, times: int, rng: random.Random) -> list[Row]:
    traces, bad_mend, unfound, bad_repair = 0, 0, 0, 0
    whole, known = path.read_bytes(), read(path)
    for _ in range(times):
        cut = rng.randrange(len(whole))
        path.write_bytes(whole[:cut])
        try:
            bad_mend += read(path, mend=True) != known[: whole[:cut].count(b"\n")]
        except RunError:
            bad_mend += 1
        except Exception:
            traces += 1
    for _ in range(times):
        place = rng.randrange(len(whole))
        path.write_bytes(flipped(whole, place, rng))
        line = whole[:place].count(b"\n") + 1
        try:
            unfound += read(path) != known  # a flip outside of the checked text must change nothing
        except RunError as error:
            unfound += f"{path}, line {line}:" not in str(error) and place + 1 != len(whole)
        except Exception:
            traces += 1
        try:
            kept, _ = repair(path)
            bad_repair += kept < len(known) - 2 or any(r not in known for r in read(path))
        except Exception:
            traces += 1
        path.with_name("records.jsonl.damaged").unlink(missing_ok=True)
    return [("truncations of records", times), ("  not resumed with all whole records", bad_mend), ("byte flips in records", times),
            ("  not found, or with the wrong line", unfound), ("  repairs that lost an intact record", bad_repair),
            ("  tracebacks", traces)]


def _of_weights(path: Path, *, times: int, rng: random.Random) -> list[Row]:
    """Half of the places lie in the header, which is a small part of the file."""
    torch.manual_seed(0)
    tensors = {f"blocks.{n}.weight": torch.randn(8, 8) for n in range(20)}
    write_weights(path, tensors, metadata={"about": "a fault experiment"})
    whole, traces, unfound, unnamed = path.read_bytes(), 0, 0, 0
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(2 * times):
        place = rng.randrange(header if number % 4 >= 2 else len(whole))
        path.write_bytes(whole[:place] if number % 2 else flipped(whole, place, rng))
        try:
            read_weights(path)
            unfound += 1
        except CheckpointError as error:
            unnamed += str(path) not in str(error)
        except Exception:
            traces += 1
    return [("truncations and flips of checkpoints", 2 * times), ("  not found", unfound), ("  found but the file not named", unnamed),
            ("  tracebacks in reading checkpoints", traces)]


@contextlib.contextmanager
def full_disk(folder: Path, *, at: int) -> Iterator[list[int]]:
    """The at-th write under `folder` and all later ones meet a full disk. Yields [writes so far]."""
    calls = [0]
    real_write, real_open, real_replace = os.write, io.open, Path.replace

    def spend() -> None:
        calls[0] += 1
        if calls[0] >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def inside(path: Any) -> bool:
        return not isinstance(path, int) and str(path).startswith(str(folder))

    def write(descriptor: int, data: Any) -> int:
        if inside(os.readlink(f"/proc/self/fd/{descriptor}")):
            spend()
        return real_write(descriptor, data)

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if inside(path) and set(mode) & set("wax+"):
            spend()
        return real_open(path, mode, *args, **kwargs)

    def replace(self: Path, target: Any) -> Path:
        if inside(self):
            spend()
        return real_replace(self, target)

    with mock.patch("os.write", write), mock.patch("io.open", opened), mock.patch.object(Path, "replace", replace):
        yield calls


def disk() -> list[Row]:
    """No space left at the n-th write of a search of 10 trials, for every n; then the space is freed and the run resumed."""
    unnamed, lost, unresumed, at = 0, 0, 0, 0
    while True:
        at += 1
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            with full_disk(Path(folder), at=at) as calls:
                try:
                    search(out, stand_in.nothing, engine="inline", budget=10)
                except NasvitError as error:
                    unnamed += "No space left" not in str(error)
                except Exception:
                    unnamed += 1
            if calls[0] < at:
                break
            before = read(out / "records.jsonl", mend=True)
            try:
                search(out, stand_in.nothing, engine="inline", budget=10, resume=(out / "env.json").exists())
                after = read(out / "records.jsonl")
                lost += after[: len(before)] != before
                unresumed += counts(after).evaluated != 10
            except Exception:
                unresumed += 1
    return [("write calls tried", at - 1), ("not named as a full disk", unnamed), ("records lost", lost), ("runs not resumed", unresumed)]


def full() -> list[Row]:
    """Real searches, with trainings and checkpoints, on file systems that fill up; then these grow, and the runs are resumed."""
    sizes_kb, unnamed, lost, unresumed, blamed, filled = (64, 128, 192, 256, 384, 512, 640, 768), 0, 0, 0, 0, 0
    for kilobytes in sizes_kb:
        with tempfile.TemporaryDirectory() as folder:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], check=False).returncode:
                raise SystemExit("this experiment mounts file systems, which needs the right to")
            try:
                out = Path(folder) / "run"
                try:
                    search(out, evaluate, engine="processes", budget=10)
                except RunError as error:
                    filled += 1
                    unnamed += "o space left" not in str(error)
                before = read(out / "records.jsonl", mend=True)
                subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
                search(out, evaluate, engine="processes", budget=10, resume=(out / "env.json").exists())
                after = read(out / "records.jsonl")
                lost += after[: len(before)] != before
                unresumed += counts(after).evaluated != 10
                blamed += sum(r.status == "failed" for r in after)
            finally:
                subprocess.run(["umount", folder], check=True)
    return [("file systems", len(sizes_kb)), ("  that were full before the end", filled), ("  not named as full", unnamed),
            ("  records lost", lost), ("  trials blamed for it", blamed), ("  runs not resumed to their budget", unresumed)]


def metrics() -> list[Row]:
    """NaN, infinities, 1e308, negative numbers and text in each metric."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        summary = search(out, stand_in.odd, engine="processes", budget=20)
        records = read(out / "records.jsonl")
        tried = len(stand_in.METRICS) * len(stand_in.ODD)
        failed = [r for r in records if r.status == "failed"]
        on_front = [r for r in pareto(records, NAMES) if stand_in.SOUND <= r.trial < stand_in.SOUND + tried]
        return [("odd values", tried), ("failed with a reason", sum(bool(r.reason) for r in failed)), ("on the front", len(on_front)),
                ("the search ended by", summary["stopped_because"])]


def jobs(engine: str, *, hang_seconds: float) -> list[Row]:
    """Trials that hang, take 3 GB where 1 GB is allowed, or crash their process."""
    rows: list[Row] = []
    for name, limits in (("hangs", {"job_minutes": hang_seconds / 60}), ("swells", {"job_memory_gb": 1.0}), ("crashes", {})):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            summary = search(out, getattr(stand_in, name), engine=engine, budget=8, **limits)
            ended = [r for r in read(out / "records.jsonl") if r.status == "failed"]
            begun = [json.loads(line) for line in (out / stand_in.ATTEMPTS).read_text().splitlines()]
            first = {trial: [start for other, start in begun if other == trial] for trial, _ in begun}
            failed = [r for r in ended if r.trial in first]  # of a very busy machine's others the worker was not up in time
            over = max(r.started - max(first[r.trial]) for r in failed) - (hang_seconds if name == "hangs" else 0)
            rows += [(f"{name}: evaluated, failed", f"{summary['evaluated']}, {len(ended)}"),
                     ("  attempts, most for one trial", max(map(len, first.values()))),
                     (f"  s from {'its time-out' if name == 'hangs' else 'its start'} to its record, most", round(over, 1)),
                     ("  reason", str(failed[0].reason)[:110])]
    return rows


def clock() -> list[Row]:
    """The wall clock jumps by an hour or a day between trials."""
    rng, real = random.Random(0), time.time
    with tempfile.TemporaryDirectory() as folder, mock.patch("time.time", lambda: real() + rng.choice((0, 3600, -3600, 86400, -86400))):
        out = Path(folder) / "run"
        summary = search(out, stand_in.nothing, engine="inline", budget=30)
        found = read(out / "records.jsonl")
        negative = sum(value < 0 for r in found for value in r.seconds.values())
    return [("evaluated", summary["evaluated"]), ("failed", summary["failed"]), ("negative durations", negative),
            ("wall_seconds", round(summary["wall_seconds"], 1))]


DRIFTS: dict[str, Any] = {
    "space": {"space": str(HERE.parent / "search_spaces" / "catm_only.yaml")}, "data": {"data": ""}, "seed": {"seed": 8},
    "device": {"device": "cpu/compile?noise=keep"}, "version": {}, "objectives": {"objectives": ("accuracy", "macs_g")},
    "limits": {"limits": {"params_m": 5}}, "rungs": {"rungs": (2, 5)}, "recipe": {"recipe": {"lr": 0.01}},
    "objectives, not measured so far": {"objectives": ("accuracy", "peak_memory_mb")}}


def other_digits(path: Path) -> Path:
    """A data set of the digits' shape, but not the digits."""
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (200, 16, 16, 1), dtype=np.uint8), labels=np.arange(200) % 10)
    return path


def resume() -> list[Row]:
    """A run gone on with under other conditions: what is said, and what `--allow-drift` makes of it."""
    rows: list[Row] = []
    for name, values in DRIFTS.items():
        with tempfile.TemporaryDirectory() as folder:
            out, changed = Path(folder) / "run", dict(values)
            search(out, stand_in.nothing, engine="inline", budget=3)
            if name == "data":
                changed = {"data": str(other_digits(Path(folder) / "other.npz"))}
            env = json.loads((out / "env.json").read_text())
            if name == "version":
                (out / "env.json").write_text(json.dumps({**env, "torch": "1.0.0"}))
            try:
                search(out, stand_in.nothing, engine="inline", budget=5, resume=True, **changed)
                said = "resumed without a word"
            except RunError as error:
                said = "refused, named" if re.search(rf"(differs in|this|;).* ?{name.partition(',')[0]}\b", str(error)) else str(error)
            try:
                search(out, stand_in.nothing, engine="inline", budget=5, resume=True, allow_drift=True, **changed)
                marked = [bool(r.details.get("drift")) for r in read(out / "records.jsonl")]
                said += f"; with --allow-drift {sum(marked)} of {len(marked)} records marked"
            except NasvitError as error:
                said += f"; with --allow-drift refused: {str(error).removeprefix(str(out))[:90].strip()}"
            rows.append((f"another {name}", said))
    return rows


SEEDED: dict[str, dict[str, Any]] = {
    "random": {}, "tpe": {"objectives": ("accuracy", "macs_g")}, "surrogate": {"objectives": ("accuracy", "macs_g")}}
"""Samplers, and objectives that no clock decides: where latency is one, what is proposed follows from what was measured."""


def seeds(*, times: int, samplers: tuple[str, ...] = tuple(SEEDED)) -> list[Row]:
    """The same seed with real trainings, so many times: architectures and accuracies, and with exact objectives every promotion."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for sampler in samplers:
        found, values = [], SEEDED[sampler]
        for _ in range(times):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                search(out, evaluate, engine="inline", budget=4, seed=3, sampler=sampler, **values)
                done = read(out / "records.jsonl")
                kept = [r for r in done if values or r.rung == 1]
                found.append(json.dumps([(r.trial, r.rung, r.arch_id, r.objectives.get("accuracy")) for r in kept]))
        rows.append((f"{sampler}: alike, of {times}", found.count(found[0])))
    return rows


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=["records", "disk", "full", "metrics", "jobs", "clock", "resume", "seeds"])
    parser.add_argument("--engine", default="processes", choices=["processes", "ray"], help="for jobs")
    parser.add_argument("--times", type=int, default=20, help="truncations and flips; runs of one seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang-seconds", type=float, default=30, help="for jobs; a worker that imports torch needs a part of it")
    parser.add_argument("--sampler", choices=sorted(SEEDED), action="append", help="for seeds")
    given = parser.parse_args()
    tables: dict[str, Callable[[], list[Row]]] = {
        "records": lambda: records(times=given.times, seed=given.seed), "disk": disk, "full": full, "metrics": metrics,
        "jobs": lambda: jobs(given.engine, hang_seconds=given.hang_seconds), "clock": clock, "resume": resume,
        "seeds": lambda: seeds(times=given.times, samplers=tuple(given.sampler or SEEDED))}
    for what, figure in tables[given.fault]():
        print(f"{what:<55} {figure}")


if __name__ == "__main__":
    main()
