"""Samplers of other libraries (extra `peers`): pymoo's NSGA-II, BoTorch's qNEHVI, Syne Tune's multi-objective searchers.

They see a configuration as a vector of choices: of a conditional space all its choices at once, and those without a meaning are ignored.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import Peer, Problem, Searcher

Params = Mapping[str, Any]
FIRST_FIT, NEXT_FIT = 200, 25
"""Steps of BoTorch's optimiser for a Gaussian process: from its priors, and from the last fit."""


class Asked:
    """Stands for an Optuna trial: answers from given ranks, or notes what was asked."""

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self.ranks = ranks
        self.asked: dict[str, tuple[tuple[Any, ...], bool]] = {}

    def _answer(self, name: str, values: tuple[Any, ...], *, ordinal: bool) -> Any:
        self.asked[name] = (values, ordinal)
        return values[min(self.ranks.get(name, 0), len(values) - 1)]

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._answer(name, tuple(choices), ordinal=False)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._answer(name, tuple(range(low, high + 1, step)), ordinal=True)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        assert step, "the problems here ask no continuous choice"
        return self._answer(name, tuple(low + i * step for i in range(round((high - low) / step) + 1)), ordinal=True)


def flat_choices(problem: Problem) -> dict[str, tuple[tuple[Any, ...], bool]]:
    """Every choice of a define-by-run problem: its values, and whether they are ordered. Walks all branches, one choice at a time."""
    found: dict[str, tuple[tuple[Any, ...], bool]] = {}
    rng = np.random.default_rng(0)
    quiet = 0
    while quiet < 500:  # so many draws with nothing new
        trial = Asked({name: int(rng.integers(len(values))) for name, (values, _) in found.items()})
        problem.suggest(trial)
        quiet = quiet + 1 if trial.asked.keys() <= found.keys() else 0
        found |= {name: choice for name, choice in trial.asked.items() if name not in found}
    return found


class _Pymoo:
    """pymoo's NSGA-II for mixed variables (its documented way with categories), asked and told a generation at a time."""

    def __init__(self, problem: Problem, seed: int, *, population: int) -> None:
        from pymoo.algorithms.moo.nsga2 import RankAndCrowding
        from pymoo.core.mixed import MixedVariableGA
        from pymoo.core.problem import Problem as PymooProblem
        from pymoo.core.variable import Choice, Integer
        from pymoo.termination import get_termination

        self.problem = problem
        self.choices = flat_choices(problem)
        variables = {name: Integer(bounds=(0, len(values) - 1)) if ordinal else Choice(options=list(range(len(values))))
                     for name, (values, ordinal) in self.choices.items()}
        self.algorithm = MixedVariableGA(pop_size=population, survival=RankAndCrowding())
        self.algorithm.setup(PymooProblem(vars=variables, n_obj=len(problem.objectives)), termination=get_termination("n_gen", 10**9),
                             seed=seed, verbose=False)
        self.waiting: list[Any] = []
        self.values: list[NDArray[np.float64]] = []

    def ask(self) -> Params:
        if not self.waiting:
            self.generation = self.algorithm.ask()
            self.waiting = [individual.X for individual in self.generation]
        return self.problem.suggest(Asked({name: int(rank) for name, rank in self.waiting.pop(0).items()}))

    def tell(self, params: Params, values: NDArray[np.float64]) -> None:
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        self.values.append(values)
        if not self.waiting:
            Evaluator().eval(StaticProblem(self.algorithm.problem, F=np.array(self.values)), self.generation)
            self.algorithm.tell(infills=self.generation)
            self.values = []


class _Botorch:
    """BoTorch's qLogNEHVI over discrete choices: one-hot categories, ordinals as ranks, its own discrete local search.

    16 random trials first; then a Gaussian process for each objective (BoTorch's default priors), fitted anew for every `batch` proposals.
    """

    FIRST, SAMPLES = 16, 64

    def __init__(self, problem: Problem, seed: int, *, batch: int) -> None:
        import torch

        torch.manual_seed(seed)
        self.problem, self.batch = problem, batch
        self.choices = flat_choices(problem)
        self.rng = np.random.default_rng(seed)
        self.ranks: list[dict[str, int]] = []
        self.values: list[NDArray[np.float64]] = []
        self.waiting: list[dict[str, int]] = []
        self.fitted: Any = None

    def encode(self, ranks: Mapping[str, int]) -> list[float]:
        """Ordinals as 0..1, categories one-hot; a choice that is not asked here counts nothing."""
        trial = Asked(ranks)
        self.problem.suggest(trial)
        row: list[float] = []
        for name, (values, ordinal) in self.choices.items():
            there = name in trial.asked
            if ordinal:
                row.append(ranks[name] / max(len(values) - 1, 1) if there else 0.5)
            else:
                row += [float(there and ranks[name] == i) for i in range(len(values))]
        return row

    def draw(self) -> dict[str, int]:
        return {name: int(self.rng.integers(len(values))) for name, (values, _) in self.choices.items()}

    def ask(self) -> Params:
        if not self.waiting:
            self.waiting = [self.draw()] if len(self.values) < self.FIRST else self._propose()
        self.ranks.append(self.waiting.pop(0))
        return self.problem.suggest(Asked(self.ranks[-1]))

    def tell(self, params: Params, values: NDArray[np.float64]) -> None:
        self.values.append(values)

    def _propose(self) -> list[dict[str, int]]:
        import torch
        from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import ModelListGP, SingleTaskGP
        from botorch.sampling.normal import SobolQMCNormalSampler
        from botorch.utils.multi_objective.hypervolume import infer_reference_point
        from gpytorch.mlls import SumMarginalLogLikelihood

        x = torch.tensor([self.encode(r) for r in self.ranks], dtype=torch.double)
        y = -torch.tensor(np.array(self.values), dtype=torch.double)
        y = (y - y.mean(0)) / y.std(0).clamp_min(1e-9)
        model = ModelListGP(*(SingleTaskGP(x, y[:, j : j + 1]) for j in range(y.shape[1])))
        if self.fitted is not None:  # from where the last fit ended: a few steps do
            model.load_state_dict(self.fitted)
        steps = FIRST_FIT if self.fitted is None else NEXT_FIT
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it stops after so many steps
            fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model), max_attempts=1,
                             optimizer_kwargs={"options": {"maxiter": steps}})
        self.fitted = model.state_dict()
        front = _front(y)
        chosen: list[dict[str, int]] = []
        pending = None
        for _ in range(self.batch):
            acquisition = qLogNoisyExpectedHypervolumeImprovement(
                model=model, ref_point=infer_reference_point(front), X_baseline=x, prune_baseline=True, X_pending=pending,
                sampler=SobolQMCNormalSampler(torch.Size([self.SAMPLES]), seed=int(self.rng.integers(2**31))))
            best = self._climb(acquisition, seen={tuple(row) for row in x.tolist()} | {tuple(self.encode(c)) for c in chosen})
            chosen.append(best)
            pending = torch.tensor([self.encode(c) for c in chosen], dtype=torch.double)
        return chosen

    def _climb(self, acquisition: Any, *, seen: set[tuple[float, ...]]) -> dict[str, int]:
        """Local search by single changes from the best of random draws and the front's neighbours (as BoTorch's discrete local search)."""
        import torch

        def worth(candidates: list[dict[str, int]]) -> NDArray[np.float64]:
            rows = [self.encode(c) for c in candidates]
            with torch.no_grad():
                scores = acquisition(torch.tensor(rows, dtype=torch.double).unsqueeze(1)).numpy().copy()
            scores[[tuple(row) in seen for row in rows]] = -np.inf
            return scores

        order = np.argsort(_rank_sum(np.array(self.values)))[:8]
        starts = [self.draw() for _ in range(256)] + [near for i in order for near in self._near(self.ranks[i], 24)]
        scores = worth(starts)
        best: tuple[float, dict[str, int]] = (-np.inf, starts[0])
        for start in np.argsort(-scores)[:4]:
            here, value = starts[start], scores[start]
            for _ in range(12):
                near = self._near(here, 48)
                around = worth(near)
                if around.max() <= value:
                    break
                here, value = near[int(around.argmax())], around.max()
            best = max(best, (float(value), here), key=lambda pair: pair[0])
        return best[1]

    def _near(self, ranks: Mapping[str, int], most: int) -> list[dict[str, int]]:
        trial = Asked(ranks)
        self.problem.suggest(trial)
        changes = [(name, v) for name in trial.asked for v in range(len(self.choices[name][0])) if v != ranks[name]]
        picked = changes if len(changes) <= most else [changes[i] for i in self.rng.choice(len(changes), most, replace=False)]
        return [{**ranks, name: v} for name, v in picked]


def _front(y: Any) -> Any:
    """The non-dominated of maximised values."""
    from botorch.utils.multi_objective.pareto import is_non_dominated

    return y[is_non_dominated(y)]


def _rank_sum(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 on the front, 1 on the next, ..."""
    from nasvit.results.front import ranks

    return ranks(values)


class _SyneTune:
    """Syne Tune's multi-objective searchers, driven without its tuner: suggest, then report the finished trial."""

    def __init__(self, problem: Problem, seed: int, *, kind: str) -> None:
        from syne_tune.config_space import choice, randint

        self.problem, self.number = problem, -1
        self.choices = flat_choices(problem)
        space = {name.replace(".", "__"): randint(0, len(values) - 1) if ordinal else choice(list(range(len(values))))
                 for name, (values, ordinal) in self.choices.items()}
        self.searcher = _syne_searcher(kind, space, seed=seed)

    def ask(self) -> Params:
        import torch

        self.number += 1
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.double)  # its reference point would be single precision, which BoTorch refuses beside a double model
        try:
            self.config = self.searcher.suggest()
        finally:
            torch.set_default_dtype(before)
        return self.problem.suggest(Asked({name: int(self.config[name.replace(".", "__")]) for name in self.choices}))

    def tell(self, params: Params, values: NDArray[np.float64]) -> None:
        self.searcher.on_trial_complete(self.number, self.config, values.tolist())


def _syne_searcher(kind: str, space: dict[str, Any], *, seed: int) -> Any:
    if kind == "ehvi":
        from syne_tune.optimizer.schedulers.multiobjective.expected_hyper_volume_improvement import ExpectedHyperVolumeImprovement

        return ExpectedHyperVolumeImprovement(space, num_init_random=16, random_seed=seed)
    from syne_tune.optimizer.schedulers.multiobjective.multi_objective_regularized_evolution import MultiObjectiveRegularizedEvolution

    return MultiObjectiveRegularizedEvolution(space, random_seed=seed)


def _pymoo(problem: Problem, seed: int) -> Searcher:
    return _Pymoo(problem, seed, population=20)


ELSEWHERE: dict[str, Peer] = {
    "pymoo-nsga2": Peer(make=_pymoo, packages=("pymoo",), what="NSGA-II for mixed variables, population 20"),
    "qnehvi": Peer(make=lambda problem, seed: _Botorch(problem, seed, batch=1), packages=("botorch", "gpytorch", "torch"), slow=True,
                   what="BoTorch's qLogNEHVI, Gaussian processes with its default priors, local search over the choices"),
    "syne-ehvi": Peer(make=lambda problem, seed: _SyneTune(problem, seed, kind="ehvi"), packages=("syne-tune", "botorch"), slow=True,
                      what="Syne Tune's expected hypervolume improvement, 16 random trials first"),
    "syne-mo-rea": Peer(make=lambda problem, seed: _SyneTune(problem, seed, kind="rea"), packages=("syne-tune",),
                        what="Syne Tune's multi-objective regularised evolution; its defaults: population 100, sample 10"),
}
