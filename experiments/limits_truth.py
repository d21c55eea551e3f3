"""Is a limit kept? Short searches with different limits; every member of their fronts is measured again afterwards.

    python experiments/limits_truth.py --searches 20 --out FOLDER      (goes on where it was stopped)
    python experiments/limits_truth.py --out FOLDER --summary

Goal: of no search a member of the front is then over its limit by more than its interval's half width. Limits are shares of the latency
of random networks of the space, so that they leave from a tenth to nine tenths of it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

SPACE, DATA, DEVICE = "hybrid_tiny", "digits", "cpu"
BUDGET, RUNGS = 8, (8, 16)
DRAWN = 12
"""Networks measured to know what latencies the space has."""


def latencies(path: Path, *, device: str) -> list[float]:
    """The sorted latencies of a few random networks at the data's size, measured once and kept."""
    if path.exists():
        return [float(ms) for ms in json.loads(path.read_text(encoding="utf-8"))]
    from nasvit.data import describe
    from nasvit.devices import open_device
    from nasvit.models.build import build
    from nasvit.space import SearchSpace

    info = describe(DATA)
    size = SearchSpace.load(SPACE).fit_image_size(info.natural_size)
    space = SearchSpace.load(SPACE, image_size=size, in_channels=info.in_channels, num_classes=info.num_classes)
    rng, target = random.Random(0), open_device(device)
    found = sorted(target.measure(build(space.sample(rng), seed=0), input_shape=(1, info.in_channels, *size)).median_ms
                   for _ in range(DRAWN))
    path.write_text(json.dumps(found), encoding="utf-8")
    return found


def one(number: int, *, folder: Path, limit_ms: float, device: str, budget: int) -> dict[str, Any]:
    """One search and its front measured again."""
    from nasvit.commands.remeasure import front_of
    from nasvit.experiment import Experiment
    from nasvit.report import load
    from nasvit.search import run

    place = folder / f"search{number:02d}"
    experiment = Experiment(space=SPACE, data=DATA, device=device, budget=budget, seed=number, rungs=RUNGS, workers=1, engine="inline",
                            sampler="random", limits={"latency_ms": limit_ms}, truth=0.0)
    begun = time.monotonic()
    summary = run(experiment, out=place, resume=(place / "env.json").exists())
    rows = front_of(load(place)) if summary["evaluated"] else []
    over = [row.now.median_ms / limit_ms - 1 for row in rows]
    beyond = [max(0.0, row.now.median_ms - limit_ms) > (row.now.ci_high_ms - row.now.ci_low_ms) / 2 for row in rows]
    predicted = sum("predicted" in r.details for r in load(place).records)
    return {"search": number, "limit_ms": limit_ms, "evaluated": summary["evaluated"], "rejected": summary["rejected"],
            "predicted": predicted, "front": len(rows), "over": sum(o > 0 for o in over), "beyond": sum(beyond),
            "worst": max(over, default=0.0), "seconds": time.monotonic() - begun}


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: one row for each search, and the sum."""
    head = ("search", "limit (ms)", "evaluated", "rejected", "of them by prediction", "front", "over the limit when measured again",
            "by more than the interval", "the slowest against the limit")
    rows = [(f["search"], f"{f['limit_ms']:.3g}", f["evaluated"], f["rejected"], f["predicted"], f["front"], f["over"], f["beyond"],
             f"{f['worst']:+.1%}") for f in found]
    total = ("all", "", *(sum(f[k] for f in found) for k in ("evaluated", "rejected", "predicted", "front", "over", "beyond")),
             f"{max((f['worst'] for f in found), default=0.0):+.1%}")
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
                      *("| " + " | ".join(map(str, row)) + " |" for row in (*rows, total))])


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--budget", type=int, default=BUDGET, help="architectures of a search")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further search after this")
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    results = given.out / "results.jsonl"
    found = [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []
    begun = time.monotonic()
    if not given.summary:
        known = latencies(given.out / "latencies.json", device=given.device)
        for number in range(len(found), given.searches):
            if time.monotonic() - begun > given.seconds:
                break
            share = 0.1 + 0.8 * number / max(1, given.searches - 1)
            limit = known[min(len(known) - 1, int(share * len(known)))]
            found.append(one(number, folder=given.out, limit_ms=limit, device=given.device, budget=given.budget))
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
