"""Can the latencies be trusted? The same network as two candidates on an idle machine, and with a competitor on its core.

    python experiments/latency_truth.py --runs 100 --condition idle --out truth.json
    python experiments/latency_truth.py --runs 100 --condition busy --out truth.json
    python experiments/latency_truth.py --out truth.json --summary

Results are appended, so the runs may be made in pieces. Every run takes the next of a few networks of different sizes. Idle: it is
built twice and measured twice; the goal is that the two differ by under 3 % in at least 95 of 100 runs. Busy: a process that never
rests is pinned to the same core, and one measurement is made; the goal is that at least 95 of 100 are called noisy or drifting.
The process is pinned to one core in both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from nasvit.errors import MeasurementError

GOAL, CLOSE = 0.95, 0.03


def networks(seed: int) -> list[tuple[str, Any, tuple[int, ...]]]:
    """(name, Arch, input shape) of sampled architectures from small to large."""
    from nasvit.space import SearchSpace

    rng = random.Random(seed)
    found = []
    for space, count in (("hybrid_tiny", 3), ("hybrid_mobile", 1)):
        loaded = SearchSpace.load(space)
        for number in range(count):
            arch = loaded.sample(rng)
            found.append((f"{space} {number}", arch, (1, arch.in_channels, *arch.image_size)))
    return found


@contextmanager
def competitor(core: int, *, wanted: bool) -> Iterator[None]:
    """A process that never rests on this core."""
    if not wanted:
        yield
        return
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def measured(device: Any, module: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """One measurement and how long it took; one that fails is unstable by its own word."""
    begun = time.perf_counter()
    try:
        stats = device.measure(module, input_shape=shape)
    except MeasurementError as error:
        return {"ms": math.nan, "verdict": "failed", "note": str(error), "waited": None, "seconds": time.perf_counter() - begun}
    return {"ms": stats.median_ms, "low": stats.ci_low_ms, "high": stats.ci_high_ms, "verdict": stats.verdict, "note": stats.note,
            "waited": stats.waited, "slowness": stats.slowness, "repeats": stats.repeats, "attempts": stats.attempts,
            "seconds": time.perf_counter() - begun}


def run(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Add the rows of this piece; each is on disk as soon as it is there."""
    from nasvit.devices import open_device
    from nasvit.models.build import build

    os.sched_setaffinity(0, {options.core})
    busy = options.condition == "busy"  # its verdict is what is asked: the measurement is not to fail for it
    device = open_device(f"{options.device}{'&' if '?' in options.device else '?'}noise=keep" if busy else options.device)
    device.calibrate()
    nets = networks(options.seed)
    with competitor(options.core, wanted=busy):
        for number in range(options.runs):
            name, arch, shape = nets[(options.first + number) % len(nets)]
            found = [measured(device, build(arch, seed=1), shape) for _ in range(1 if busy else 2)]
            rows.append({"condition": options.condition, "device": options.device, "network": name, "measured": found,
                         "fingerprint": device.fingerprint})
            options.out.write_text(json.dumps(rows))
    device.close()


def difference(row: dict[str, Any]) -> float:
    """Of the two figures of an idle run, relative to the smaller; not a number where one failed."""
    one, two = (m["ms"] for m in row["measured"])
    return abs(one - two) / min(one, two)


def summary(rows: list[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    lines: list[str] = []
    for device in sorted({r["device"] for r in rows}):
        mine = [r for r in rows if r["device"] == device]
        idle, busy = ([r for r in mine if r["condition"] == c] for c in ("idle", "busy"))
        lines += [f"## {device}", ""]
        if idle:
            lines += ["| network | ms | runs | A/A median | A/A largest | under 3 % | stable | s a measurement |", "|---|" + "---|" * 7]
            for name in [*sorted({r["network"] for r in idle}), "all"]:
                chosen = [r for r in idle if name in (r["network"], "all")]
                gaps, each = [difference(r) for r in chosen], [m for r in chosen for m in r["measured"]]
                stable = sum(m["verdict"] == "stable" for m in each) / len(each)
                known = sorted(g for g in gaps if g == g) or [math.nan]
                lines.append(f"| {name} | {median([m['ms'] for m in each if m['ms'] == m['ms']] or [math.nan]):.3f} | {len(chosen)} | "
                             f"{median(known):.2%} | {max(known):.2%} | "
                             f"{sum(g < CLOSE for g in gaps)} of {len(gaps)} | {stable:.0%} | "
                             f"{median(m['seconds'] for m in each):.2f} |")
            good = sum(difference(r) < CLOSE for r in idle)
            lines += ["", f"Idle: {good} of {len(idle)} pairs differ by under 3 % (goal {GOAL:.0%}).", ""]
        if busy:
            called = [r for r in busy if r["measured"][0]["verdict"] != "stable"]
            lines += [f"With a competitor on the core: {len(called)} of {len(busy)} measurements are called noisy or drifting "
                      f"(goal {GOAL:.0%}); the last said: {busy[-1]['measured'][0]['note'].split(';')[0]}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Make a piece, or print the tables of all pieces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--condition", choices=("idle", "busy"), default="idle")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    if not options.summary:
        options.first = len([r for r in rows if (r["condition"], r["device"]) == (options.condition, options.device)])
        run(options, rows)
    print(summary(rows))


if __name__ == "__main__":
    main()
