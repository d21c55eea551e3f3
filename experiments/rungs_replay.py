"""Does asynchronous halving find the front of full training? Real trainings, recorded once, then replayed through the search's own loop.

    python experiments/rungs_replay.py train     # 60 architectures of hybrid_tiny on the digits, to every rung; about 15 CPU-minutes
    python experiments/rungs_replay.py scores    # their zero-cost proxies, and what these say beyond cost; about a minute
    python experiments/rungs_replay.py replay    # seconds: share of the training steps, and of the final front's hypervolume

Every architecture is trained as the search does it, by warm restarts from rung to rung, so the table holds what a trial would have had at
each rung. The cost beside accuracy is MACs, which are exact; the reference point is the project's, over all networks at the top rung.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from nasvit.arch import Arch
from nasvit.experiment import Experiment
from nasvit.results.correlation import kendall_interval, partial_correlation
from nasvit.results.front import hypervolume, non_dominated, reference_point, to_minimised
from nasvit.results.record import TrialRecord, latest

TABLE = Path(__file__).parent.parent / "reports" / "published" / "rungs_digits.json"
RUNGS = (30, 60, 120, 240, 480)
NETWORKS = 60
SEED = 0
NAMES = ("accuracy", "macs_g")
ETAS = (2, 3, 4)
LEAST, MOST = 0.22, 0.35
"""Schedules are replayed that would take such a share of the steps if nothing were promoted on arrival or in the end."""
ORDERS = 8
"""Replays, each with the networks in another order: asynchronous promotion depends on it."""


# ---- the trainings ----------------------------------------------------------------------------------------------------


def train_all(path: Path) -> None:
    """Record every network at every rung; a stopped recording goes on where it was."""
    from nasvit.cost import count
    from nasvit.data import load
    from nasvit.models.build import build
    from nasvit.proxies import short_train
    from nasvit.search.evaluate import derive_seed
    from nasvit.space import SearchSpace
    from nasvit.training import Recipe

    space = SearchSpace.load("hybrid_tiny", image_size=(16, 16), in_channels=1, num_classes=10)
    data = load("digits", seed=SEED, image_size=(16, 16))
    table = json.loads(path.read_text()) if path.exists() else {"rungs": RUNGS, "data": "digits", "space": space.name, "seed": SEED,
                                                                "networks": []}
    known = {row["arch_id"] for row in table["networks"]}
    for arch in networks(space):
        if arch.id in known:
            continue
        module = build(arch, seed=derive_seed(SEED, arch.id))
        cost = count(module, input_shape=(1, 1, 16, 16))
        accuracy, seconds, before = [], 0.0, 0
        for rung, steps in enumerate(RUNGS, start=1):
            score = short_train.fit(module, data, budget=steps - before, recipe=Recipe(), steps_before=before,
                                    seed=derive_seed(SEED, arch.id) if rung == 1 else derive_seed(SEED, arch.id, rung))
            accuracy.append(round(score.value, 6))
            seconds, before = seconds + score.seconds, steps
        table["networks"].append({"arch_id": arch.id, "arch": arch.to_dict(), "macs_g": cost.macs / 1e9, "params_m": cost.params / 1e6,
                                  "accuracy": accuracy, "seconds": round(seconds, 2)})
        write(path, table)
        print(f"{len(table['networks'])} of {NETWORKS}: {arch.id} {accuracy} {seconds:.1f} s", flush=True)


def write(path: Path, table: Mapping[str, Any]) -> None:
    """One line a network."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(table, separators=(",", ":")).replace('{"arch_id"', '\n{"arch_id"') + "\n")
    temporary.replace(path)


def networks(space: Any) -> list[Arch]:
    """The first distinct samples of the space."""
    rng, found = random.Random(SEED), {}
    while len(found) < NETWORKS:
        arch = space.sample(rng)
        found[arch.id] = arch
    return list(found.values())


# ---- the replay -------------------------------------------------------------------------------------------------------


class Order:
    """A space of the recorded networks, each one a value of its only parameter."""

    def __init__(self, archs: Sequence[Arch]) -> None:
        self.archs, self.place = list(archs), {a.id: i for i, a in enumerate(archs)}

    def suggest(self, trial: Any) -> Arch:
        return self.archs[trial.suggest_int("s0.network", 0, len(self.archs) - 1)]

    def sample(self, rng: random.Random) -> Arch:
        return rng.choice(self.archs)

    def from_parameters(self, params: Mapping[str, Any], *, rng: random.Random | None = None) -> Arch:
        return self.archs[params["s0.network"]] if params else self.sample(rng or random.Random(0))

    def size(self) -> int:
        return len(self.archs)

    def arch_parameters(self, arch: Arch) -> dict[str, Any]:
        return {"s0.network": self.place[arch.id]}


class Now:
    """An engine that looks a job up when it is submitted."""

    workers = 1

    def submit(self, fn: Callable[..., TrialRecord], /, *args: Any) -> Future[TrialRecord]:
        future: Future[TrialRecord] = Future()
        future.set_result(fn(*args))
        return future


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One replay: training steps and hypervolume of the final front, both as shares of training every network to the top rung."""

    steps: float
    volume: float
    best_lost: float


def replay(table: Mapping[str, Any], *, rungs: Sequence[int], eta: int, seed: int) -> Replayed:
    """The search's own loop over the table, every network once, in an order drawn by the seed. rungs: of the recorded ones, those that
    the search has, the last among them."""
    from nasvit.search.evaluate import Settings
    from nasvit.search.loop import Loop

    rungs, rows = tuple(rungs), {row["arch_id"]: row for row in table["networks"]}
    places = [table["rungs"].index(steps) for steps in rungs]
    archs = [Arch.from_dict(row["arch"]) for row in rows.values()]
    random.Random(seed).shuffle(archs)

    def look_up(job: Any) -> TrialRecord:
        row = rows[job.arch.id]
        values = {"accuracy": row["accuracy"][places[job.rung - 1]], "macs_g": row["macs_g"], "params_m": row["params_m"]}
        return TrialRecord(trial=job.trial, status="complete", rung=job.rung, arch=job.arch.to_dict(), arch_id=job.arch.id,
                           params=job.params, objectives=values)

    experiment = Experiment(space="table", sampler="random", engine="inline", budget=len(archs), objectives=NAMES, rungs=rungs, eta=eta,
                            seed=seed)
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(run=place, data="digits", device="cpu", reference_ms=1.0, image_size=(16, 16), seed=seed, rungs=rungs)
        loop = Loop(experiment, settings=settings, space=Order(archs), engine=Now(), path=Path(place) / "records.jsonl", evaluate=look_up)
        loop.run()
    highest = latest(loop.records)
    full = to_minimised([{"accuracy": r["accuracy"][-1], "macs_g": r["macs_g"]} for r in rows.values()], NAMES)
    reference = reference_point(full)
    found = [r for r in highest.values() if r.rung == len(rungs)]
    points = to_minimised([r.objectives for r in found], NAMES)
    steps = sum(rungs[r.rung - 1] for r in highest.values()) / (len(rows) * rungs[-1])
    lost = max(r["accuracy"][-1] for r in rows.values()) - max(r.objectives["accuracy"] for r in found)
    return Replayed(steps=steps, volume=hypervolume(points, reference) / hypervolume(full, reference), best_lost=lost)


def synchronous(rungs: Sequence[int], *, eta: int) -> float:
    """The share of the steps that synchronous halving takes: one of eta of each rung goes on."""
    return sum((steps - before) / eta**k for k, (before, steps) in enumerate(zip((0, *rungs[:-1]), rungs, strict=True))) / rungs[-1]


def report(path: Path) -> None:
    """Print the figures of every beginning and eta."""
    table = json.loads(path.read_text())
    rungs, rows = table["rungs"], table["networks"]
    full = to_minimised([{"accuracy": r["accuracy"][-1], "macs_g": r["macs_g"]} for r in rows], NAMES)
    print(f"{len(rows)} networks, rungs {rungs}, {int(non_dominated(full).sum())} on the front of full training, {ORDERS} orders\n")
    print("| rungs | eta | share of the steps | hypervolume of the front of full training: mean | least | best accuracy lost |")
    print("|---|---|---|---|---|---|")
    schedules = [(tuple(r for r in rungs if r in chosen or r == rungs[-1]), eta) for size in range(1, len(rungs))
                 for chosen in combinations(rungs[:-1], size) for eta in ETAS]
    schedules = [(steps, eta) for steps, eta in schedules if LEAST < synchronous(steps, eta=eta) < MOST]
    rows_made = []
    for steps, eta in schedules:
        runs = [replay(table, rungs=steps, eta=eta, seed=seed) for seed in range(ORDERS)]
        rows_made.append((statistics.mean(r.steps for r in runs), f"| {', '.join(map(str, steps))} | {eta} | "
                          f"{statistics.mean(r.steps for r in runs):.3f} | {statistics.mean(r.volume for r in runs):.4f} | "
                          f"{min(r.volume for r in runs):.4f} | {100 * statistics.mean(r.best_lost for r in runs):.2f} points |"))
    for _, row in sorted(rows_made):
        print(row)
    print("\n| rung (steps) | Kendall's tau with the top rung | 90 % interval |\n|---|---|---|")
    for rung, steps in enumerate(rungs[:-1]):
        tau = kendall_interval([r["accuracy"][rung] for r in rows], [r["accuracy"][-1] for r in rows], seed=0)
        if tau is not None:
            print(f"| {rung + 1} ({steps}) | {tau.value:.2f} | {tau.low:.2f} to {tau.high:.2f} |")


def score_all_networks(path: Path) -> None:
    """Add every zero-cost proxy of every network to the table, of the weights its training began with."""
    from nasvit.data import load
    from nasvit.proxies.zero_cost import ZERO_COST, probe_images, score_arch
    from nasvit.search.evaluate import derive_seed

    table = json.loads(path.read_text())
    images, labels = probe_images(load("digits", seed=SEED, image_size=(16, 16)), seed=SEED)
    for row in table["networks"]:
        if "scores" not in row:
            arch = Arch.from_dict(row["arch"])
            found = score_arch(arch, images=images, labels=labels, seed=derive_seed(SEED, arch.id), names=ZERO_COST.names())
            row["scores"] = {name: round(value, 5) for name, value in found.values.items()}
            row["scores_seconds"] = round(sum(found.seconds.values()), 3)
            write(path, table)
    report_scores(table)


def report_scores(table: Mapping[str, Any]) -> None:
    """Print how every proxy goes with the accuracy at the top rung, as it is and at equal cost."""
    rows = table["networks"]
    final, costs = [r["accuracy"][-1] for r in rows], [[r["macs_g"] for r in rows], [r["params_m"] for r in rows]]
    print("\n| zero-cost proxy | Kendall's tau with the top rung | 90 % interval | partial rank correlation given MACs and params | "
          "90 % interval |\n|---|---|---|---|---|")
    for name in rows[0].get("scores", {}):
        values = [r["scores"][name] for r in rows]
        tau, partial = kendall_interval(values, final, seed=0), partial_correlation(values, final, costs)
        cells = ["-", "-"] if partial is None else [f"{partial.value:+.2f}", f"{partial.low:+.2f} to {partial.high:+.2f}"]
        if tau is not None:
            print(f"| {name} | {tau.value:+.2f} | {tau.low:+.2f} to {tau.high:+.2f} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "scores", "replay"))
    parser.add_argument("--table", type=Path, default=TABLE)
    given = parser.parse_args()
    if given.what == "train":
        train_all(given.table)
    elif given.what == "scores":
        score_all_networks(given.table)
    else:
        report(given.table)


if __name__ == "__main__":
    main()
