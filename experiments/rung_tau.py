"""What do a search's rungs say of full training? The networks of a run that were trained in full, brought up ladders of rungs anew.

    nasvit train RUN --epochs 8 --pick ID,ID,...       # twenty or so, spread over the accuracies that the search saw
    python experiments/rung_tau.py RUN --ladders 37,75,300,600 150,300,600 [--markdown FILE]
    nasvit train RUN --epochs 8 --seed 1 --out AGAIN --pick ID,ID,...       # and --again AGAIN above: finals are then means of both

For each ladder (cumulative steps; each rung a cosine cycle from the weights of the one before, as in a search) Kendall's tau of every
rung's accuracy, and of its validation loss, with the final accuracy, over all of the networks: in the search itself only those a rung
promoted reach the next.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import fmean

import torch
from tabulate import tabulate

from nasvit.data import load
from nasvit.errors import ConfigError
from nasvit.experiment import Experiment
from nasvit.models.build import build
from nasvit.report import load as load_run
from nasvit.report.verified import verify
from nasvit.results.correlation import kendall_interval
from nasvit.search.evaluate import derive_seed
from nasvit.training import Recipe, train


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ladders", nargs="+", default=["37,75,300,600"])
    parser.add_argument("--again", type=Path, nargs="*", default=[], help="folders that hold train/ID of further seeds")
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    experiment, run = Experiment.load(asked.run / "experiment.yaml"), load_run(asked.run)
    table = verify(run).table
    trainings: list[dict[str, float]] = []
    finals = {row["id"]: float(row["val_accuracy"]) for row in table.to_dict("records") if row["origin"] == "search"}
    for other in asked.again:
        again = {key: json.loads((other / "train" / key / "metrics.json").read_text())["val_accuracy"] for key in finals}
        pair = kendall_interval(list(finals.values()), list(again.values()), seed=0)
        print(f"{other.name}: tau of its final accuracies with the first ones' {pair.value if pair else math.nan:.2f}", flush=True)
        trainings.append(again)
    finals = {key: fmean(one[key] for one in [finals, *trainings]) for key in finals}
    if len(finals) < 3:
        raise ConfigError(f"{asked.run} has {len(finals)} networks of the search trained in full; train about twenty first")
    archs = {record.arch_id: record.network() for record in run.records if record.arch_id in finals}
    size = next(iter(archs.values())).image_size
    data, recipe = load(experiment.data, seed=experiment.seed, image_size=size), Recipe.of(experiment.recipe)
    lines = []
    for ladder in asked.ladders:
        rungs = [int(word) for word in ladder.split(",")]
        seen: dict[str, list[tuple[float, float]]] = {}
        for key, arch in archs.items():
            module, before = build(arch, seed=derive_seed(experiment.seed, key)), 0
            for number, steps in enumerate(rungs, start=1):
                done = train(module, data, steps=steps - before, seed=derive_seed(experiment.seed, key, number), recipe=recipe,
                             steps_before=before)
                seen.setdefault(key, []).append((done.accuracy, -done.val_loss))
                before = steps
            print(f"{ladder}: {len(seen)} of {len(archs)}", file=sys.stderr, flush=True)
        for number, steps in enumerate(rungs):
            taus = [kendall_interval([seen[key][number][by] for key in archs], [finals[key] for key in archs], seed=0) for by in (0, 1)]
            shown = ["constant" if tau is None else f"{tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f})" for tau in taus]
            lines.append((ladder, steps, *shown, len(archs)))
    heads = ["ladder", "steps", "tau of its accuracy with the final one (90 %)", "tau of its validation loss, turned", "networks"]
    text = tabulate(lines, headers=heads, tablefmt="github")
    print(text)
    if asked.markdown:
        asked.markdown.write_text(f"# What the rungs say of full training\n\n    python experiments/rung_tau.py RUN --ladders "
                                  f"{' '.join(asked.ladders)}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
