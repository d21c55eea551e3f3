"""Samplers on a landscape fitted to real trainings: whole searches with rungs and noise, in seconds each, so that many seeds can be had.

    python experiments/real_job.py --data ../shared/data/cifar10 --minutes 10 --seeds 1 --out reports/runs/real     # some hundred networks
    python experiments/landscape.py reports/runs/real/* --samplers surrogate,tpe,random --budget 60 --seeds 24

Regressions (Gaussian processes or, with --kind trees, forests that no sampler here resembles) of the accuracies and the validation losses
of runs of one space, data and list of rungs, on the space's encoding, costs and the rung, take the place of training in `nasvit search`;
everything else is the search itself. What a training then says is the landscape's value with noise, of the size of the regressions' errors
at that rung on networks left out of them, and as much alike in accuracy and loss. Latency follows the law of real_job.py.

Prints, as shares of what all searches of the table found together, the hypervolume of the true values (of the top rung, without noise)
of each search's front on its own accuracies, against latency and against MACs, and that of all that it tried, with standard errors.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from judging import derived_seed
from numpy.typing import NDArray
from real_job import NOISE, costs
from sklearn.ensemble import ExtraTreesRegressor

from nasvit.arch import Arch
from nasvit.errors import ConfigError, NasvitError
from nasvit.experiment import Experiment
from nasvit.models.estimate import estimate
from nasvit.results.front import hypervolume, non_dominated, pareto, reference_point, to_minimised
from nasvit.results.record import TrialRecord, latest, read
from nasvit.search import evaluate as worker
from nasvit.search import run
from nasvit.search.domain import ArchDomain
from nasvit.search.gaussian import MUCH_NOISE, GaussianProcess
from nasvit.space import SearchSpace

Array = NDArray[np.float64]
Predict = Callable[[Array], Array]
PAIRS = (("accuracy", "latency_ms"), ("accuracy", "macs_g"))
FOLDS = 5


def gaussian(x: Array, y: Array) -> Predict:
    """The mean of a process that expects noise."""
    process = GaussianProcess(noise_prior=MUCH_NOISE)
    process.fit(x, y, steps=80)
    return process.mean


def trees(x: Array, y: Array) -> Predict:
    """A forest of random trees."""
    forest = ExtraTreesRegressor(200, min_samples_leaf=2, max_features=0.5, random_state=0).fit(x, y)
    return lambda query: np.asarray(forest.predict(query))


KINDS = {"gp": gaussian, "trees": trees}


class Landscape:
    """Accuracy and exp(-validation loss) of an Arch at a rung, as finished runs have them. Raises ConfigError for runs of different spaces,
    data or rungs."""

    def __init__(self, runs: Sequence[Path], *, kind: str) -> None:
        asked = [Experiment.load(path / "experiment.yaml") for path in runs]
        spaces = {(path / "space.yaml").read_text() for path in runs}
        records = [r for path in runs for r in read(path / "records.jsonl") if r.status == "complete"]
        if len(spaces) != 1 or len({e.data for e in asked}) != 1 or len({e.rungs for e in asked}) != 1 or not asked[0].rungs:
            raise ConfigError(f"{len(runs)} runs of different spaces, data or rungs: name runs of one real_job.py with the same --data")
        self.experiment, self.rungs = asked[0], tuple(asked[0].rungs)
        first = Arch.from_dict(records[0].arch)
        self.space = SearchSpace.load(self.experiment.space, image_size=first.image_size, in_channels=first.in_channels,
                                      num_classes=first.num_classes)
        self.domain = ArchDomain(self.space)
        archs = [Arch.from_dict(r.arch) for r in records]
        x = np.array([self.features(arch, r.rung) for arch, r in zip(archs, records, strict=True)])
        y = np.array([(r.objectives["accuracy"], math.exp(-r.details["val_loss"])) for r in records])
        self.predict, self.networks = [KINDS[kind](x, column) for column in y.T], len({arch.id for arch in archs})
        fold = np.array([derived_seed("fold", arch.id) % FOLDS for arch in archs])
        errors = np.empty(y.shape)
        for k in range(FOLDS):  # a network's rungs are left out together
            for j, column in enumerate(y.T):
                errors[fold == k, j] = column[fold == k] - KINDS[kind](x[fold != k], column[fold != k])(x[fold == k])
        rung = np.array([r.rung for r in records])
        self.noise = [errors[rung == k].T @ errors[rung == k] / (rung == k).sum() for k in range(1, len(self.rungs) + 1)]
        self._known: dict[tuple[str, int], tuple[float, float]] = {}

    def features(self, arch: Arch, rung: int) -> Array:
        return np.array([*self.domain.features(self.space.arch_parameters(arch)), rung / len(self.rungs)])

    def values(self, arch: Arch, rung: int) -> tuple[float, float]:
        """Accuracy and exp(-validation loss), both in 0 to 1, without noise."""
        if (arch.id, rung) not in self._known:
            features = self.features(arch, rung)[None]
            accuracy, merit = (float(np.clip(predict(features)[0], 0, 1)) for predict in self.predict)
            self._known[arch.id, rung] = accuracy, merit
        return self._known[arch.id, rung]

    def evaluate(self, job: worker.Job) -> TrialRecord:
        """What a worker would have made of the job."""
        return worker.evaluated(job, first=self._trained, further=self._trained)

    def _trained(self, job: worker.Job, blank: TrialRecord) -> TrialRecord:
        drawn = np.random.default_rng(derived_seed("noise", job.settings.seed, job.arch.id, job.rung))
        accuracy, merit = np.clip(drawn.multivariate_normal(self.values(job.arch, job.rung), self.noise[job.rung - 1]), 1e-6, 1)
        macs, params = estimate(job.arch)
        known = costs(job.arch, params=params, macs=macs)
        latency = {"median_ms": known["latency_ms"], **{f"ci_{end}_ms": known["latency_ms"] * (1 + way * NOISE)
                                                        for end, way in (("low", -1), ("high", 1))}}
        return replace(blank, status="complete", latency=latency, seconds={"train": 0.01},
                       objectives={**known, "accuracy": float(accuracy)},
                       details={"steps": self.rungs[job.rung - 1], "val_loss": -math.log(merit)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """True values of one search's fronts, by the cost they are on, and of all that it tried; steps: of all trainings together."""

    sampler: str
    fronts: Mapping[str, list[dict[str, float]]]
    tried: list[dict[str, float]]
    steps: int


def search(landscape: Landscape, sampler: str, *, seed: int, budget: int) -> Found:
    """One whole search, in a run directory that is thrown away."""
    given = landscape.experiment
    experiment = Experiment(space=given.space, data=given.data, image_size=given.image_size, rungs=landscape.rungs, sampler=sampler,
                            seed=seed, engine="inline", truth=0.0, budget=budget)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run(experiment, out=out, evaluate=landscape.evaluate, reference_ms=1.0)
        records = [r for r in read(out / "records.jsonl") if r.status == "complete"]
    final = list(latest(records).values())
    top = [r for r in final if r.rung == len(landscape.rungs)]
    true = partial(_true, landscape)
    before = (0, *landscape.rungs)
    return Found(sampler=sampler, fronts={pair[1]: [true(r) for r in pareto(top, pair)] for pair in PAIRS},
                 tried=[true(r) for r in final], steps=sum(before[r.rung] - before[r.rung - 1] for r in records))


def _true(landscape: Landscape, record: TrialRecord) -> dict[str, float]:
    return {**record.objectives, "accuracy": landscape.values(Arch.from_dict(record.arch), len(landscape.rungs))[0]}


def shares(searches: Sequence[Found], of: Callable[[Found], list[dict[str, float]]], pair: Sequence[str]) -> list[float]:
    """The hypervolume of each search's networks, as a share of that of all searches' together; the reference point lies a tenth outside the
    box of their common front, as in compare_samplers.py."""
    everything = to_minimised([row for found in searches for row in of(found)], pair)
    reference = reference_point(everything[non_dominated(everything)])
    whole = hypervolume(everything, reference)
    return [hypervolume(to_minimised(of(found), pair), reference) / whole for found in searches]


def table(searches: Sequence[Found]) -> str:
    """Markdown, a row a sampler."""
    columns: dict[str, list[float]] = {f"front on {pair[1]}": shares(searches, lambda f, p=pair: f.fronts[p[1]], pair) for pair in PAIRS}
    columns["all tried, latency_ms"] = shares(searches, lambda f: f.tried, PAIRS[0])
    lines = [f"| sampler | searches | {' | '.join(columns)} | steps a search |", "|---" * (3 + len(columns)) + "|"]
    for sampler in dict.fromkeys(f.sampler for f in searches):
        own = [i for i, f in enumerate(searches) if f.sampler == sampler]
        cells = [f"{statistics.fmean(v[i] for i in own):.3f} +- {_error([v[i] for i in own]):.3f}" for v in columns.values()]
        lines.append(f"| {sampler} | {len(own)} | {' | '.join(cells)} | {statistics.fmean(searches[i].steps for i in own):,.0f} |")
    return "\n".join(lines)


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--kind", choices=list(KINDS), default="gp")
    parser.add_argument("--samplers", default="surrogate,tpe,random")
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=12)
    args: Any = parser.parse_args(argv)
    try:
        landscape = Landscape(args.runs, kind=args.kind)
        noise = ", ".join(f"{100 * both[0, 0] ** 0.5:.1f}" for both in landscape.noise)
        print(f"{landscape.networks} networks, rungs {landscape.rungs}, noise {noise} points", flush=True)
        found = []
        for sampler in args.samplers.split(","):
            for seed in range(args.seeds):
                found.append(search(landscape, sampler, seed=seed, budget=args.budget))
            print(f"{sampler}: done", flush=True)
    except NasvitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
