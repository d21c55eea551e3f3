"""What a prune search is worth: against the best uniform schedule at equal latency, and how much of the dense accuracy comes back.

    python experiments/prune_dense.py --out DIR                                       # the dense models first
    python experiments/prune_quality.py --dense DIR --out FILE.jsonl [--only deit-digits] [--seeds 5] [--minutes M]     # resumable
    python experiments/prune_quality.py --out FILE.jsonl --table

Each run is `nasvit prune` to 0.6x of the dense latency with a recovery of at most a tenth of the dense training steps. Then every kind of
uniform schedule is made as slow as the searched network, by bisection on times taken call by call in turn (one under 0.98 of
the searched network's time is taken only where its kind has no slower one near), with the same importance. Every kind gets the
whole recovery, where the search spread its own over rungs, and the best by validation accuracy is the rival. Judged on test images
that neither saw, before any training and after the recovery; one-sided paired t-test over the seeds, in brackets the signed-rank test (with
five seeds never under 0.031), because a uniform schedule sometimes collapses and the differences are then far from normal.

--busy: for a machine that other work keeps from being quiet, where `nasvit prune` would refuse its own figures. Latencies are then the
same ratio to the reference network, of twice as many calls, with an interval of +-3 % that is assumed instead of measured. The comparison
at equal latency does not depend on it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from prune_dense import EPOCHS, PAIRS
from safetensors.torch import load_file
from scipy.stats import ttest_rel, wilcoxon
from torch import Tensor, nn

from nasvit.data import DataSet, Images, load, load_test
from nasvit.devices import LatencyStats
from nasvit.devices.base import Prepared
from nasvit.devices.stats import summarise
from nasvit.devices.timing import REPEATS
from nasvit.experiment import PruneExperiment
from nasvit.pruning import Dense, Plan, PlanError, input_shape, slice_weights, uniform
from nasvit.pruning import load as load_pruned
from nasvit.results.record import latest, read
from nasvit.search.prune import prune
from nasvit.search.prune_trial import DENSE, SCORES, dense_of, plan_of
from nasvit.training import Recipe, evaluate, train

TARGET = "0.6x"
SHARE_OF_STEPS = 0.1
ENOUGH = 0.98
"""Of the dense accuracy, and of the searched network's time."""
ASSUMED = 0.03
SLOWER = 1.1
"""A kind whose fastest schedule takes so many times the searched network's time is no rival at equal latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A uniform schedule as slow as the searched network."""

    kind: str
    plan: Plan
    slower: float
    """Its time over the searched network's."""
    val: float


@contextmanager
def busy() -> Iterator[None]:
    """While inside, every latency is the median of one long attempt, with an assumed interval."""
    def measure(ready: Prepared) -> LatencyStats:
        device = ready.device
        scale = device.reference_ms or device.calibrate()
        found = ready.attempt(2 * REPEATS)
        stats = summarise(found.repeats, usage=found.usage, reference_ms=scale, batch_size=ready.batch_size, fingerprint=device.fingerprint,
                          threads=device.threads, attempts=1)
        return replace(stats, ci_low_ms=(1 - ASSUMED) * stats.median_ms, ci_high_ms=(1 + ASSUMED) * stats.median_ms, verdict="stable")

    kept, Prepared.measure = Prepared.measure, measure  # type: ignore[method-assign]
    try:
        yield
    finally:
        Prepared.measure = kept  # type: ignore[method-assign]


def kinds(dense: Dense) -> dict[str, Callable[[float], Plan]]:
    """Uniform schedules by one number in (0, 1]."""
    source = dense.plan.source
    found: dict[str, Callable[[float], Plan]] = {
        "heads, mlp, width": lambda k: uniform(source, keep=k),
        "heads, mlp": lambda k: uniform(source, keep=k, parts=("heads", "mlp")),
        "mlp": lambda k: uniform(source, keep=k, parts=("mlp",))}
    for operator in (o for o in dense.layout.operators if o != "none"):
        found[operator] = lambda k, o=operator: uniform(source, keep=1.0, operator=o, keep_ratio=k)  # type: ignore[misc]
    if "topk_fuse" in dense.layout.operators:
        found["topk_fuse in 3 blocks"] = lambda k: at_three(dense.plan, keep_ratio=k)
        found["topk_fuse, heads, mlp"] = lambda k: at_three(uniform(source, keep=min(1.0, (1 + k) / 2), parts=("heads", "mlp")),
                                                            keep_ratio=min(1.0, (1 + k) / 2))
    return found


def at_three(plan: Plan, *, keep_ratio: float) -> Plan:
    """EViT's schedule: the same share of the tokens dropped behind three blocks, down to keep_ratio."""
    depth = len(plan.blocks)
    ratios = [round(keep_ratio ** (sum(i >= k * depth // 4 for k in (1, 2, 3)) / 3), 4) for i in range(depth)]
    return replace(plan, operator="topk_fuse", blocks=tuple(replace(b, keep_ratio=r) for b, r in zip(plan.blocks, ratios, strict=True)))


def times_slower(one: nn.Module, two: nn.Module, *, image: Tensor, pairs: int = 40) -> float:
    """Median time of one over that of two, called in turn, in time of the processor."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for module in (one, two) * 3:
            module(image)
        for _ in range(pairs):
            for slot, module in zip(times, (one, two), strict=True):
                begun = time.thread_time()
                module(image)
                slot.append(time.thread_time() - begun)
    return statistics.median(times[0]) / statistics.median(times[1])


def equal(make: Callable[[float], Plan], dense: Dense, scores: dict[str, Tensor], *, network: nn.Module) -> tuple[Plan, float] | None:
    """The schedule of a kind nearest to the network's time, from ENOUGH of it on where there is one; None where none can be built."""
    image, low, high, found = torch.randn(1, *input_shape(dense.plan)), 0.02, 1.0, dict[Plan, float]()
    for _ in range(7):
        middle = (low + high) / 2
        try:
            plan = make(middle)
            slower = times_slower(slice_weights(dense, plan, scores), network, image=image)
        except PlanError:  # too steep
            low = middle
            continue
        found[plan] = slower
        low, high = (middle, high) if slower < 1 else (low, middle)
    if not found:
        return None
    slow_enough = {plan: value for plan, value in found.items() if value >= ENOUGH}
    plan = min(slow_enough, key=slow_enough.__getitem__) if slow_enough else max(found, key=found.__getitem__)
    return plan, found[plan]


def rivals(dense: Dense, scores: dict[str, Tensor], data: DataSet, *, network: nn.Module) -> list[Rival]:
    """Every kind at the network's latency, the best by validation accuracy first; where each is over SLOWER times as slow, the fastest."""
    found = []
    for kind, make in kinds(dense).items():
        made = equal(make, dense, scores, network=network)
        if made is not None:
            val = evaluate(slice_weights(dense, made[0], scores), data.val, data=data)[0]
            found.append(Rival(kind=kind, plan=made[0], slower=made[1], val=val))
    near = [rival for rival in found if rival.slower <= SLOWER] or [min(found, key=lambda rival: rival.slower)]
    return sorted(near, key=lambda rival: -rival.val)


def one(pair: str, seed: int, *, folder: Path, budget: int, sampler: str) -> dict[str, Any]:
    """A search, its rivals, and the test accuracy of all."""
    known, place = json.loads((folder / pair / "dense.json").read_text()), folder / "data" / pair.split("-")[1]
    data, test = load(str(place), seed=0), load_test(str(place), seed=0)
    experiment = PruneExperiment(model=str(folder / pair / "model.safetensors"), arch=str(folder / pair / "arch.json"), data=str(place),
                                 device="cpu?noise=keep", budget=budget, engine="inline", sampler=sampler, target=TARGET, seed=seed,
                                 recover_epochs=SHARE_OF_STEPS * EPOCHS[pair.split("-")[1]], dense_steps=known["steps"])
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        facts = prune(experiment, out=run)
        dense_of.cache_clear()  # by path, and temporary names may come again
        dense, scores = dense_of(str(run)), dict(load_file(run / DENSE / SCORES))
        final = load_pruned(run / "pruned" / "arch.json", run / "pruned" / "model.safetensors")
        records = read(run / "records.jsonl")
        recipe = PruneExperiment.load(run / "experiment.yaml").recipe  # with the learning rate that the run tried out
    searched = time.perf_counter() - begun
    first = max((r for r in records if r.rung == 1 and r.status == "complete"), key=lambda r: r.objectives["accuracy"])
    raw = slice_weights(dense, plan_of(first), scores)
    row = {"pair": pair, "seed": seed, "dense": known["test"], "trials": len(latest(records)), "seconds": searched,
           "latency": times_slower(final, dense.module, image=torch.randn(1, *input_shape(dense.plan))),
           "latency_raw": times_slower(raw, dense.module, image=torch.randn(1, *input_shape(dense.plan))),
           "search_raw": evaluate(raw, test, data=data)[0], "search": evaluate(final, test, data=data)[0],
           "steps": facts["recovery"][-1]["steps"], "share_of_steps": facts["recovery"][-1]["share_of_dense"],
           "recovery": facts["recovery"], "lr": recipe["lr"], "plan": plan_of(first).id}
    return row | beside(dense, scores, data, test, raw=raw, final=final, seed=seed, recipe=recipe,
                        steps=max(1, round(SHARE_OF_STEPS * known["steps"])))


def beside(dense: Dense, scores: dict[str, Tensor], data: DataSet, test: Images, *, raw: nn.Module, final: nn.Module, seed: int,
           recipe: dict[str, Any], steps: int) -> dict[str, Any]:
    """The best uniform schedules: untrained at the latency of the search's best untrained network, recovered at that of its result."""
    untrained = rivals(dense, scores, data, network=raw)[0]
    row: dict[str, Any] = {"kind_raw": untrained.kind, "slower_raw": untrained.slower,
                           "uniform_raw": evaluate(slice_weights(dense, untrained.plan, scores), test, data=data)[0]}
    best = -1.0
    for rival in rivals(dense, scores, data, network=final):
        module = slice_weights(dense, rival.plan, scores)
        val = train(module, data, steps=steps, seed=seed, recipe=Recipe.of(recipe), teacher=dense.module).accuracy
        if val > best:
            best = val
            row |= {"kind": rival.kind, "slower": rival.slower, "uniform": evaluate(module, test, data=data)[0]}
    return row


def tables(rows: list[dict[str, Any]]) -> str:
    """The search against uniform schedules, and how much of the dense accuracy is left."""
    lines = ["| model-data | seeds | dense | latency | search, untrained | uniform, untrained | p | search | uniform | p | wins |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    found = [[r for r in rows if r["pair"] == pair] for pair in PAIRS]
    won = 0
    for runs in filter(None, found):
        cells, better = [], []
        for suffix in ("_raw", ""):
            ours, theirs = ([r[name + suffix] for r in runs] for name in ("search", "uniform"))
            p, by_ranks = (float(test(ours, theirs, alternative="greater").pvalue) if len(runs) > 1 else float("nan")
                           for test in (ttest_rel, wilcoxon))
            better.append(p < 0.05)
            cells += [f"{statistics.mean(ours):.2%}", f"{statistics.mean(theirs):.2%}", f"{p:.3f} ({by_ranks:.3f})"]
        won += better[1]
        lines.append(f"| {runs[0]['pair']} | {len(runs)} | {runs[0]['dense']:.2%} | {_mean(runs, 'latency'):.2f}x | " + " | ".join(cells)
                     + f" | {'untrained ' if better[0] else ''}{'recovered' if better[1] else ''} |")
    lines += ["", f"after recovery the search beats the best uniform schedule with p < 0.05 on {won} of {len([f for f in found if f])}", "",
              "| model-data | latency of the result | share of the dense steps | of the dense test accuracy, each seed | mean | kept |",
              "|---|---|---|---|---|---|"]
    for runs in filter(None, found):
        shares = [r["search"] / r["dense"] for r in runs]
        mean = statistics.mean(shares)
        lines.append(f"| {runs[0]['pair']} | {_mean(runs, 'latency'):.2f}x | {_mean(runs, 'share_of_steps'):.1%} | "
                     + ", ".join(f"{s:.1%}" for s in shares) + f" | {mean:.1%} | {'yes' if mean >= ENOUGH else 'no'} |")
    return "\n".join(lines)


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.mean(float(r[name]) for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dense", type=Path)
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=PAIRS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=40)
    parser.add_argument("--sampler", default="surrogate")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after this time; run again to go on")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    begun, done = time.monotonic(), {(r["pair"], r["seed"]) for r in rows}
    wanted = [(pair, seed) for seed in range(given.seeds) for pair in given.only if (pair, seed) not in done]
    for pair, seed in [] if given.table else wanted:
        if time.monotonic() - begun > 60 * given.minutes:
            break
        with busy() if given.busy else nullcontext():
            row = {**one(pair, seed, folder=given.dense, budget=given.budget, sampler=given.sampler), "busy": given.busy}
        print(json.dumps(row), flush=True)
        rows.append(row)
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    print(tables(rows))


if __name__ == "__main__":
    main()
