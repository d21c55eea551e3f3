"""How long a trial of a prune search takes without recovery: slice, count, measure, evaluate.

    python experiments/prune_trial_time.py [--data ../shared/data/imagefolder_small] [--budget 8]

Models at 224 px with untrained weights (time does not depend on them), one worker, latency on one thread, target 0.6x, and as many
validation images as a run takes. Prints seconds of a trial, and what a run of 60 takes with all that comes before and behind.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from nasvit.data import load
from nasvit.experiment import PruneExperiment
from nasvit.named import make_named
from nasvit.results.record import read
from nasvit.search.prune import prune

GOALS = {"deit_small_patch16_224": 20.0, "deit_tiny_patch16_224": 5.0}
SIZE = (224, 224)


def one(name: str, *, data: str, budget: int, device: str) -> str:
    """A row of the table."""
    loaded = load(data, seed=0, image_size=SIZE)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        model = make_named(name, image_size=SIZE, in_channels=loaded.in_channels, num_classes=loaded.num_classes, seed=0)
        save_file(model.state_dict(), weights)
        experiment = PruneExperiment(model=f"timm:{name}", checkpoint=str(weights), data=data, device=device, image_size=SIZE,
                                     budget=budget, engine="inline", recover_epochs=0, target="0.6x", seed=0)
        begun = time.perf_counter()
        prune(experiment, out=Path(folder) / "run")
        whole = time.perf_counter() - begun
        records = [r for r in read(Path(folder) / "run" / "records.jsonl") if r.status in ("complete", "rejected")]
    totals, measured = ([r.seconds[key] for r in records] for key in ("total", "measure"))
    middle = statistics.median(totals)
    rest = whole - sum(totals)
    return (f"| {name} | {len(records)} | {middle:.1f} | {max(totals):.1f} | {statistics.median(measured):.1f} | {GOALS[name]:g} | "
            f"{'yes' if middle <= GOALS[name] else 'no'} | {(rest + 60 * statistics.mean(totals)) / 60:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/imagefolder_small")
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="*", choices=list(GOALS), default=list(GOALS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | trials | median s | longest s | of it measuring s | goal s | met | run of 60, min |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.models:
        print(one(name, data=given.data, budget=given.budget, device=given.device), flush=True)


if __name__ == "__main__":
    main()
