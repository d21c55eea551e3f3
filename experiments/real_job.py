"""Samplers on real searches: the same data, space, budget and seeds, networks trained for real, fronts retrained to one rung.

    python experiments/real_job.py                                     # digits, 3 samplers x 3 seeds; about 25 CPU-minutes
    python experiments/real_job.py --latency measured --minutes 8 --data ../shared/data/cifar10 --out reports/runs/real_cifar10

Each search is `nasvit search` in a run directory of its own under --out (a finished one is not run again). When all have ended, each
front, on each pair of objectives, is trained anew from other weights, in one cycle of as many steps as the longest top rung of all of them
has: the accuracies of the search are the best of many noisy ones, and with --minutes every search has rungs of its own.
Hypervolumes of one pair are taken with one reference point, over all retrained networks, and divided by that of the
front of all of them. The table stands in --markdown.

Latency is measured (`--latency measured`, which needs a quiet machine), or, by default, follows a law: LAW below, with NOISE on top that
belongs to the network. Then neither the machine's load nor its noise decides which sampler looks better, and every run can be repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nasvit.arch import Arch
from nasvit.cost import count
from nasvit.errors import NasvitError, RunError
from nasvit.experiment import Experiment
from nasvit.models.build import build
from nasvit.proxies import short_train
from nasvit.results.front import hypervolume, pareto, reference_point, to_minimised
from nasvit.results.record import TrialRecord, latest, read
from nasvit.search import evaluate as worker
from nasvit.search import run
from nasvit.training import Recipe

ROOT = Path(__file__).resolve().parents[1]
LAW = {"catm": 0.327, "fsla": 0.269, "global": 0.106, "integration": 0.073, "slide": 0.273, "window": 0.129}
"""Milliseconds of each mixer in a block, and below of what else there is: least squares of relative errors over 301 networks of hybrid_tiny
on the digits, measured on one quiet core, eager (median error 6 %, Spearman 0.98; MACs alone: 0.62)."""
CONSTANT, PER_GMAC, PER_SLOW_BLOCK = 0.071, 123.1, 0.135
NOISE = 0.03
"""Standard deviation of a latency's logarithm."""
PAIRS = (("accuracy", "latency_ms"), ("accuracy", "macs_g"))


def law(arch: Arch, *, macs_g: float) -> float:
    """Milliseconds of a network without noise."""
    blocks = [block for stage in arch.stages for block in stage.blocks]
    mixers = sum(LAW[mixer.name] for block in blocks for mixer in block.mixers)
    return CONSTANT + PER_GMAC * macs_g + PER_SLOW_BLOCK * sum(block.keep_ratio < 1 for block in blocks) + mixers


def by_law(job: worker.Job) -> TrialRecord:
    """What the search's own worker does with a job, but for the latency."""
    return worker.evaluated(job, first=_first, further=worker.promote)


def _first(job: worker.Job, blank: TrialRecord) -> TrialRecord:
    module = build(job.arch, seed=blank.seed)
    cost = count(module, input_shape=(1, job.arch.in_channels, *job.arch.image_size))
    known = costs(job.arch, params=cost.params, macs=cost.macs)
    score = short_train.fit(module, worker.dataset(job.settings), budget=job.settings.rungs[0], seed=blank.seed,
                            recipe=Recipe.of(job.settings.recipe))
    return worker.finished(replace(blank, status="complete", objectives=known), score=score, checkpoint=worker.keep(module, job))


def costs(arch: Arch, *, params: float, macs: float) -> dict[str, float]:
    """All objectives but the accuracy, latency by the law with its noise."""
    latency = law(arch, macs_g=macs / 1e9) * math.exp(random.Random(arch.id).gauss(0, NOISE))
    return {"params_m": params / 1e6, "macs_g": macs / 1e9, "latency_ms": latency}


# ---- one search and its front ------------------------------------------------------------------------------------------


def search(experiment: Experiment, *, out: Path, measured: bool) -> None:
    """Run the search, or go on with it, unless it is finished."""
    summary = out / "summary.json"
    if summary.exists() and json.loads(summary.read_text())["stopped_because"] in ("budget", "minutes", "space exhausted"):
        return
    begun = (out / "env.json").exists()
    if measured:
        run(experiment, out=out, resume=begun)
    else:
        run(experiment, out=out, resume=begun, evaluate=by_law, reference_ms=1.0)


def rungs_of(out: Path) -> list[int]:
    """The steps of a finished search's rungs."""
    return [int(steps) for steps in json.loads((out / "summary.json").read_text())["rungs"]]


def retrained(out: Path, *, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Objectives of the fronts' networks by id, the accuracy from a training of so many steps of its own, the same for every sampler;
    remembered in retrained.json."""
    path = out / "retrained.json"
    done: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    done = {arch_id: row for arch_id, row in done.items() if row.get("steps", rungs_of(out)[-1]) == steps}
    experiment, env = Experiment.load(out / "experiment.yaml"), json.loads((out / "env.json").read_text())
    records = read(out / "records.jsonl")
    rungs = rungs_of(out)
    top = [r for r in latest(records).values() if r.rung == len(rungs)]
    for record in {r.arch_id: r for pair in PAIRS for r in pareto(top, pair)}.values():
        if record.arch_id in done:
            continue
        arch = Arch.from_dict(record.arch)
        settings = worker.Settings(run=str(out), data=experiment.data, device="cpu", reference_ms=1.0, image_size=arch.image_size,
                                   seed=int(env.get("seed", experiment.seed)), rungs=tuple(rungs))
        own = worker.derive_seed(seed, arch.id, "real job")
        score = short_train.fit(build(arch, seed=own), worker.dataset(settings), budget=steps, seed=own,
                                recipe=Recipe.of(experiment.recipe))
        done[record.arch_id] = {**record.objectives, "accuracy": score.value, "said": record.objectives["accuracy"], "steps": steps}
        path.write_text(json.dumps(done, indent=1) + "\n")
    return done


# ---- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One search: its sampler and seed, how many networks it evaluated, and its retrained fronts."""

    sampler: str
    seed: int
    evaluated: int
    networks: dict[str, dict[str, float]]


def volumes(runs: Sequence[Finished], pair: tuple[str, str]) -> list[float]:
    """The hypervolume of each run's retrained networks, as a share of that of all runs' together."""
    everything = to_minimised([row for r in runs for row in r.networks.values()], pair)
    reference = reference_point(everything)
    whole = hypervolume(everything, reference)
    return [hypervolume(to_minimised(list(r.networks.values()), pair), reference) / whole for r in runs]


def table(runs: Sequence[Finished]) -> str:
    """Markdown: a row a sampler, for each pair of objectives every seed's share, their mean, and the best accuracies."""
    lines = ["| sampler | networks a search | " + " | ".join(f"{' x '.join(pair)}: seeds | mean" for pair in PAIRS)
             + " | best accuracy, mean |", "|---" * (3 + 2 * len(PAIRS)) + "|"]
    shares = [volumes(runs, pair) for pair in PAIRS]
    for sampler in dict.fromkeys(r.sampler for r in runs):
        own = [i for i, r in enumerate(runs) if r.sampler == sampler]
        cells = [sampler, f"{statistics.fmean(runs[i].evaluated for i in own):.0f}"]
        for share in shares:
            cells += [" ".join(f"{share[i]:.3f}" for i in own), f"{statistics.fmean(share[i] for i in own):.3f}"]
        best = [max(row["accuracy"] for row in runs[i].networks.values()) for i in own]
        lines.append("| " + " | ".join([*cells, f"{100 * float(np.mean(best)):.1f} %"]) + " |")
    return "\n".join(lines)


def text(runs: Sequence[Finished], args: argparse.Namespace) -> str:
    """The whole report."""
    where = "measured" if args.latency == "measured" else f"by a law with {100 * NOISE:.0f} % noise (see the script)"
    long = f"{args.budget} networks" if args.minutes is None else f"{args.minutes:g} minutes"
    said = [row["said"] - row["accuracy"] for r in runs for row in r.networks.values()]
    steps = ", ".join(f"{s:.0f}" for s in sorted({row.get("steps", math.nan) for r in runs for row in r.networks.values()}))
    seeds = ", ".join(str(seed) for seed in sorted({r.seed for r in runs}))
    warning = ["", "One seed: an indication, no proof."] if len({r.seed for r in runs}) == 1 else []
    return "\n".join([
        "# Samplers on real searches", "", f"Made by `{args.command}`.", "",
        f"`nasvit search` on {Path(args.data).name}, space {args.space}, {long} each, seeds {seeds}, objectives accuracy and latency;",
        f"trainings are real, latency {where}. Hypervolume of the retrained fronts, as a share of that of all searches' retrained networks",
        "together, on accuracy against latency and against MACs (the same searches).", "", table(runs), "",
        f"Retraining ({steps} steps in one cycle, other weights) changed the accuracies by "
        f"{-100 * statistics.fmean(said):+.1f} points on average,",
        f"standard deviation {100 * statistics.stdev(said):.1f}: what differs by less than the spread over seeds means nothing.",
        *warning, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="hybrid_tiny")
    parser.add_argument("--samplers", default="surrogate,tpe,random")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--latency", choices=("law", "measured"), default="law")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "runs" / "real_job")
    parser.add_argument("--no-run", action="store_true", help="only the table of the searches that are finished")
    parser.add_argument("--markdown", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    args.command = "python experiments/real_job.py " + " ".join(sys.argv[1:] if argv is None else argv)
    wanted = [(sampler, seed) for seed in range(args.seeds) for sampler in args.samplers.split(",")]
    try:
        if args.no_run:
            wanted = [(s, k) for s, k in wanted if (args.out / f"{s}-{k}" / "retrained.json").exists()]
        else:
            for sampler, seed in wanted:
                experiment = Experiment(space=args.space, data=args.data, sampler=sampler, seed=seed, engine="inline", truth=0.0,
                                        budget=args.budget if args.minutes is None else 100_000, minutes=args.minutes)
                place = args.out / f"{sampler}-{seed}"
                search(experiment, out=place, measured=args.latency == "measured")
                print(f"{place.name}: rungs {rungs_of(place)}", flush=True)
            steps = max(rungs_of(args.out / f"{sampler}-{seed}")[-1] for sampler, seed in wanted)
            for sampler, seed in wanted:
                networks = retrained(args.out / f"{sampler}-{seed}", seed=seed, steps=steps)
                print(f"{sampler}-{seed}: {len(networks)} networks retrained for {steps} steps", flush=True)
        report = text([finished(args.out, sampler=s, seed=k) for s, k in wanted], args)
    except NasvitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report)
    if args.markdown:
        args.markdown.write_text(report, encoding="utf-8")
    return 0


def finished(out: Path, *, sampler: str, seed: int) -> Finished:
    """What a search left in its run directory. Raises RunError where it did not end."""
    place = out / f"{sampler}-{seed}"
    if not (place / "retrained.json").exists():
        raise RunError(f"{place} holds no retrained front; run this again without changing --out")
    return Finished(sampler=sampler, seed=seed, evaluated=json.loads((place / "summary.json").read_text())["evaluated"],
                    networks=json.loads((place / "retrained.json").read_text()))


if __name__ == "__main__":
    sys.exit(main())
