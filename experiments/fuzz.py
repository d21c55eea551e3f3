"""Inputs by the hundred thousand for everything that reads what it did not write.

    python experiments/fuzz.py --inputs 200000                 # the long form; prints a table, exits 1 where anything was found
    python experiments/fuzz.py --inputs 2000 --target archs

Whatever is not one of nasvit's own errors is a finding, and so is an input that takes over 1 s or 200 MB. New findings are appended to
tests/fuzz/found.jsonl, which the test suite replays.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz_targets import ROOT, TARGETS, Target
from hypothesis import HealthCheck, Phase, given, seed, settings

from nasvit.errors import NasvitError

FOUND = ROOT / "tests" / "fuzz" / "found.jsonl"
SECONDS, MEGABYTES = 1.0, 200
SLOW = f"over {SECONDS:g} s"


def judged(target: Target, value: Any) -> str | None:
    """What is wrong with how the target took this input: None, or in words that are the same for the same fault."""
    before, begun = _memory_mb(), time.process_time()
    said = None
    try:
        target.call(value)
    except NasvitError:
        pass
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "nasvit/" in f.filename]
        place = own[-1] if own else place
        said = f"{type(error).__name__} in {Path(place.filename).name}, {place.name}"
    if said is None and _memory_mb() - before > MEGABYTES:
        said = f"over {MEGABYTES} MB"
    if said is None and time.process_time() - begun > SECONDS:
        said = SLOW
    return said


def _timed(target: Target, value: Any) -> tuple[str | None, float]:
    clock = time.process_time()
    return judged(target, value), time.process_time() - clock


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def fuzz(target: Target, *, inputs: int, start: int, found: dict[str, Any]) -> dict[str, Any]:
    """So many inputs; {figures}, and in `found` the shortest input of each fault."""
    faults: Counter[str] = Counter()
    slowest, begun, done = 0.0, time.monotonic(), 0

    @seed(start)
    @settings(max_examples=inputs, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(target.inputs())
    def one(value: Any) -> None:
        nonlocal slowest, done
        said, seconds = _timed(target, value)
        if said == SLOW:  # it may have been the first to import something
            said, seconds = _timed(target, value)
        if done > 20:  # the first ones import
            slowest = max(slowest, seconds)
            if said is not None:
                faults[said] += 1
                known = found.get(f"{target.name}: {said}")
                if known is None or len(json.dumps(value)) < len(json.dumps(known)):
                    found[f"{target.name}: {said}"] = value
        done += 1

    one()
    return {"inputs": done, "seconds": round(time.monotonic() - begun), "slowest_s": round(slowest, 2), "memory_mb": round(_memory_mb()),
            "faults": dict(faults)}


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="of all targets together, by their shares")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="append findings to tests/fuzz/found.jsonl")
    asked = parser.parse_args()
    chosen = [TARGETS[name] for name in asked.target or TARGETS]
    found: dict[str, Any] = {}
    whole, faults = sum(t.share for t in TARGETS.values()), 0
    warnings.simplefilter("ignore")  # hypothesis would rather draw every choice itself
    print(f"{'target':<12} {'inputs':>8} {'s':>6} {'slowest s':>10} {'MB':>6}  faults", flush=True)
    total = 0
    for target in chosen:
        row = fuzz(target, inputs=round(asked.inputs * target.share / whole), start=asked.seed, found=found)
        total, faults = total + row["inputs"], faults + sum(row["faults"].values())
        print(f"{target.name:<12} {row['inputs']:>8} {row['seconds']:>6} {row['slowest_s']:>10} {row['memory_mb']:>6}  "
              f"{row['faults'] or 0}", flush=True)
    print(f"{'all':<12} {total:>8} {'':>6} {'':>10} {'':>6}  {faults}")
    for name, value in found.items():
        print(f"\n{name}\n  {json.dumps(value)[:600]}")
    if asked.keep and found:
        with FOUND.open("a") as file:
            file.writelines(json.dumps({"target": name.partition(":")[0], "fault": name.partition(": ")[2], "input": value}) + "\n"
                            for name, value in found.items())
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
