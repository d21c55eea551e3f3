"""LatencyModel: the latency of a network as the sum of its pieces, learned from whole measured networks of one device.

Whole networks, not blocks alone: inside a network a block runs with other caches and other neighbours, and every device can measure
networks. Each piece costs what multiply-adds, memory and one call cost on average here, times a factor of its family, of its variant
and of its exact sizes, each with a prior around 1: a hierarchical Bayesian linear model (ridge regression with a tree of factors). A
family's work may also become dearer or cheaper as it grows and as it has more multiply-adds for each value.
Its weights solved for single pieces are the device's table of blocks.

The spread of a prediction is scaled so that it held for nine tenths of the networks when each was left out (split-conformal
prediction on leave-one-out residuals; Barber et al. 2021, the jackknife+ family).

Legend: n networks, d features (one for each factor).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize, nnls

from nasvit.arch import Arch
from nasvit.errors import ConfigError, NasvitError
from nasvit.latency.pieces import Piece, pieces
from nasvit.whole_file import whole

Array = NDArray[np.float64]

FEWEST = 8
"""Networks before a prediction is made at all."""
COVERAGE = 0.9
LEVELS = ("family call", "family work", "variant call", "variant work", "exact", "family size")
"""What a factor belongs to; each level has one prior deviation, learned from the data."""
START = (0.7, 0.5, 0.3, 0.3, 0.1, 0.15, 0.02)
"""Deviations to begin from, and behind them the relative noise of a measurement."""
VALUES_K, MACS_PER_VALUE, SLIGHT = 100.0, 16.0, 1e-2
"""A usual piece, against which others are large or dense, and the least that either is taken for."""
SMALLEST = 0.004
"""No deviation, and no noise, is taken for smaller."""
LEAST_SHARE = 0.2
"""Of what a network's work costs on average: nothing is predicted below."""
GROWTH = 1.25
"""Deviations are learned anew when there are so many times more networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A latency before measuring: nine in ten measurements are expected between low_ms and high_ms."""

    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A measured network. error: half width of its measurement's interval as a share of ms. carried: not measured, but predicted from
    other devices, with `error` the half width of that."""

    arch: Arch
    ms: float
    error: float = 0.0
    carried: bool = False


@dataclass(slots=True)
class _Fitted:
    """costs: milliseconds of a call, of a million MACs, of a thousand values. deviations: of LEVELS and noise. index: column of each
    factor. weights: of the factors, beside 1. rows: (n, d) features over the measured latency. factor: Cholesky of the covariance.
    left_out: milliseconds of each measured network, as the others predict it. pieces: those asked for so far, by key: what each adds to
    the mean of a network, and what its work costs on average."""

    costs: Array
    deviations: Array
    index: dict[str, int]
    levels: Array
    rows: Array
    factor: tuple[Array, bool]
    weights: Array
    spread: float
    left_out: dict[Arch, float]
    n: int
    learned_at: int
    pieces: dict[str, tuple[float, float]] = field(default_factory=dict)


class LatencyModel:
    """Predicts latencies of one device; refined by every `observe`. about: facts of the device and space it was made for."""

    def __init__(self, observations: Iterable[Observation] = (), *, about: Mapping[str, Any] | None = None) -> None:
        self.about = dict(about or {})
        self.observations: list[Observation] = list(observations)
        self._known = {o.arch.id for o in self.observations}
        self._fit: _Fitted | None = None

    @property
    def ready(self) -> bool:
        """Whether there are enough networks to predict from."""
        return len(self.observations) >= FEWEST

    def observe(self, arch: Arch, ms: float, *, error: float = 0.0, carried: bool = False) -> None:
        """Take in one measured network (a network known already stays as it was). Cheap: the fit follows with the next prediction."""
        if not (math.isfinite(ms) and ms > 0 and math.isfinite(error) and error >= 0):
            raise NasvitError(f"a measured latency is a positive number of milliseconds, not {ms!r} (error {error!r})")
        if arch.id not in self._known:
            self._known.add(arch.id)
            self.observations.append(Observation(arch=arch, ms=float(ms), error=float(error), carried=carried))

    def scaled(self, factor: float) -> LatencyModel:
        """The same measurements on another scale of the device's reference network."""
        found = [replace(o, ms=o.ms * factor) for o in self.observations]
        return LatencyModel(found, about={**self.about, "reference_ms": float(self.about.get("reference_ms", 0.0)) * factor})

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """(H, W) of the images that its networks were measured on."""
        return sorted({o.arch.image_size for o in self.observations})

    def predict(self, arch: Arch) -> Prediction:
        """Raises NasvitError while fewer than FEWEST networks are known."""
        return self.predict_many([arch])[0]

    def unseen(self, arch: Arch) -> float:
        """The median as it is predicted without the network's own measurement, where it has one. Raises NasvitError as `predict`."""
        fit = self._fitted()
        if arch in fit.left_out:
            return fit.left_out[arch]
        mean = usual = 0.0
        for piece in pieces(arch):
            if piece.key not in fit.pieces:
                fit.pieces[piece.key] = _cost(fit, piece)
            mean, usual = mean + fit.pieces[piece.key][0], usual + fit.pieces[piece.key][1]
        return max(mean, LEAST_SHARE * usual)

    def predict_many(self, archs: Sequence[Arch]) -> list[Prediction]:
        """A prediction for each network, in their order."""
        fit = self._fitted()
        parts = [_features(arch) for arch in archs]
        means, deviations = _posterior(fit, parts)
        found = []
        for mean, deviation in zip(means, deviations, strict=True):
            half = fit.spread * math.hypot(deviation / mean, fit.deviations[-1])
            found.append(Prediction(median_ms=float(mean), low_ms=float(mean * math.exp(-half)), high_ms=float(mean * math.exp(half))))
        return found

    def table(self, archs: Sequence[Arch]) -> dict[str, Prediction]:
        """The cost of every piece that occurs in these networks, by its key: the table of blocks. Intervals are the model's own."""
        fit = self._fitted()
        found = {piece.key: piece for arch in archs for piece in pieces(arch)}
        means, deviations = _posterior(fit, [_summed([piece]) for piece in found.values()])
        return {key: Prediction(median_ms=float(m), low_ms=float(max(0.0, m - 1.645 * s)), high_ms=float(m + 1.645 * s))
                for key, m, s in zip(found, means, deviations, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the measurements, from which everything else follows."""
        return {"about": self.about, "observations": [
            {"arch": o.arch.to_dict(), "ms": o.ms, "error": o.error, "carried": o.carried} for o in self.observations]}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> LatencyModel:
        """The inverse of `to_dict`. Raises ConfigError for anything else."""
        about = raw.get("about", {})
        if not isinstance(about, Mapping):
            raise ConfigError(f"not a latency profile: about must be a mapping, not {about!r}; make one with nasvit profile")
        model = cls(about=about)
        try:
            for one in raw["observations"]:
                model.observe(Arch.from_dict(one["arch"]), float(one["ms"]), error=float(one.get("error", 0.0)),
                              carried=bool(one.get("carried", False)))
        except (KeyError, TypeError, ValueError, AttributeError, NasvitError) as error:
            raise ConfigError(f"not a latency profile: {error}; make one with nasvit profile") from None
        return model

    def save(self, path: Path | str) -> None:
        """Write the profile whole or not at all."""
        target = Path(path)
        try:
            with whole(target) as temporary:
                temporary.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {target}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path | str) -> LatencyModel:
        """Raises ConfigError for a file that is absent or no profile."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"cannot read the latency profile {path}: {error}") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} is not a latency profile: it must hold a mapping; make one with nasvit profile")
        return cls.from_dict(raw)

    def _fitted(self) -> _Fitted:
        n = len(self.observations)
        if not self.ready:
            raise NasvitError(f"a latency is predicted from at least {FEWEST} measured networks, and there are {n}")
        if self._fit is None or self._fit.n != n:
            self._fit = _learn(self.observations, before=self._fit)
        return self._fit


# ---- features ----------------------------------------------------------------------------------------------------------

Features = Mapping[str, Array]
"""From a factor's name to (3,): calls, million MACs and thousand values that it stands for. The name begins with its level's number."""


def _summed(parts: Sequence[Piece]) -> Features:
    found: dict[str, Array] = {}
    for piece in parts:
        work = np.array([0.0, piece.macs_m, piece.values_k])
        call = np.array([1.0, 0.0, 0.0])
        size = math.log2(max(piece.values_k, SLIGHT) / VALUES_K) / 4
        density = math.log2(max(1e3 * piece.macs_m / max(piece.values_k, SLIGHT), SLIGHT) / MACS_PER_VALUE) / 2
        for name, amount in ((f"0{piece.family}", call), (f"1{piece.family}", work), (f"2{piece.variant}", call),
                             (f"3{piece.variant}", work), (f"4{piece.key}", call + work),
                             (f"5{piece.family} size", work * size), (f"5{piece.family} density", work * density)):
            found[name] = found[name] + amount if name in found else amount
    return found


@lru_cache(maxsize=20_000)
def _features(arch: Arch) -> Features:
    return _summed(pieces(arch))


def _totals(features: Features) -> Array:
    """(3,): calls, MACs and values of the whole network."""
    return np.asarray(sum(amount for name, amount in features.items() if name[0] in "01"))


# ---- learning ----------------------------------------------------------------------------------------------------------


def _learn(observations: Sequence[Observation], *, before: _Fitted | None) -> _Fitted:
    parts, ms = [_features(o.arch) for o in observations], np.array([o.ms for o in observations])
    n = len(parts)
    totals = np.array([_totals(p) for p in parts])
    costs = nnls(totals / ms[:, None], np.ones(n))[0]
    index: dict[str, int] = {}
    for part in parts:
        for name in part:
            index.setdefault(name, len(index))
    rows = np.zeros((n, len(index)))
    for i, part in enumerate(parts):
        for name, amount in part.items():
            rows[i, index[name]] = amount @ costs / ms[i]
    levels = np.array([int(name[0]) for name in index])
    target = 1 - totals @ costs / ms
    excess = _excess(observations)
    kernels = np.array([rows[:, levels == level] @ rows[:, levels == level].T for level in range(len(LEVELS))])
    deviations, learned_at = (np.array(START), 0) if before is None else (before.deviations, before.learned_at)
    if n >= GROWTH * learned_at:
        deviations, learned_at = _deviations(kernels, target, excess, start=deviations), n
    factor = _covariance(kernels, deviations, excess)
    alpha = cho_solve(factor, target)
    inverse = np.diag(cho_solve(factor, np.eye(n)))
    weights = (deviations[:-1] ** 2)[levels] * (rows.T @ alpha)
    usual = np.sqrt(np.maximum(1 / inverse - excess, deviations[-1] ** 2))  # of a usual measurement, which is what is predicted
    spread = _spread(np.abs(alpha / inverse / usual)[[not o.carried for o in observations]])
    others = np.maximum(ms * (1 - alpha / inverse), LEAST_SHARE * (totals @ costs))  # what the others say of each
    return _Fitted(costs=costs, deviations=deviations, index=index, levels=levels, rows=rows, factor=factor, weights=weights, spread=spread,
                   left_out={o.arch: float(value) for o, value in zip(observations, others, strict=True)}, n=n, learned_at=learned_at)


def _excess(observations: Sequence[Observation]) -> Array:
    """The variance that an observation has beyond a usual measurement's."""
    errors, carried = np.array([o.error for o in observations]) / 1.645, np.array([o.carried for o in observations])
    usual = 0.0 if carried.all() else float(np.median(errors[~carried]))
    return np.where(carried, errors**2, np.maximum(0.0, errors**2 - usual**2))


def _covariance(kernels: Array, deviations: Array, excess: Array) -> tuple[Array, bool]:
    """Cholesky of the relative covariance of the measurements."""
    matrix = np.tensordot(deviations[:-1] ** 2, kernels, axes=1)
    matrix[np.diag_indices(len(matrix))] += deviations[-1] ** 2 + excess
    return cho_factor(matrix, lower=True)


def _deviations(kernels: Array, target: Array, excess: Array, *, start: Array) -> Array:
    """The deviations under which the measurements are likeliest (type II maximum likelihood), kept near where they were expected."""
    first = np.log(np.array(START))

    def loss(logs: Array) -> float:
        found = np.exp(np.clip(logs, math.log(SMALLEST), 1.0))
        factor = _covariance(kernels, found, excess)
        white = solve_triangular(factor[0], target, lower=True)
        return float(0.5 * white @ white + np.log(np.diag(factor[0])).sum() + 0.5 * np.sum((logs - first) ** 2))

    best = minimize(loss, np.log(start), method="L-BFGS-B", options={"maxiter": 25, "maxfun": 250})
    return np.exp(np.clip(best.x, math.log(SMALLEST), 1.0))


def _spread(scores: Array) -> float:
    """How many deviations hold COVERAGE of the networks, each left out; with few networks no less than a normal law's."""
    n = len(scores)
    if not n:
        return 1.645
    rank = math.ceil((n + 1) * COVERAGE)
    found = float(np.sort(scores)[min(rank, n) - 1])
    return found if n >= 40 else max(found, 1.645)


def _cost(fit: _Fitted, piece: Piece) -> tuple[float, float]:
    """What a piece adds to the mean of a network, in ms, and what its work costs on average."""
    mean = usual = 0.0
    for name, amount in _summed([piece]).items():
        value = float(amount @ fit.costs)
        usual += value if name[0] in "01" else 0.0
        if name in fit.index:
            mean += value * float(fit.weights[fit.index[name]])
    return usual + mean, usual


def _posterior(fit: _Fitted, parts: Sequence[Features]) -> tuple[Array, Array]:
    """Mean and standard deviation of each sum of pieces, in ms, without the noise of a measurement."""
    variances = fit.deviations[:-1] ** 2
    known, means, prior = np.zeros((len(parts), len(fit.index))), np.zeros(len(parts)), np.zeros(len(parts))
    for i, part in enumerate(parts):
        for name, amount in part.items():
            value = float(amount @ fit.costs)
            column = fit.index.get(name)
            prior[i] += variances[int(name[0])] * value * value
            if name[0] in "01":
                means[i] += value
            if column is not None:
                known[i, column] = value
    floor = LEAST_SHARE * means
    means = np.maximum(means + known @ fit.weights, floor)
    reduced = solve_triangular(fit.factor[0], fit.rows @ (known * variances[fit.levels]).T, lower=True)  # (n, parts)
    return means, np.sqrt(np.maximum(prior - (reduced**2).sum(axis=0), 0.0))
