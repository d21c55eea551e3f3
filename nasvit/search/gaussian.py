"""A small exact Gaussian process: Matern 5/2 with a length for each group of columns, its noise estimated.

Hyperparameters are the maximum of the marginal likelihood with priors (lengths log-normal around the square root of the number of
groups: Hvarfner et al. 2024, arXiv 2402.02229; small noise). Gradients are analytic, so 300 points cost tens of milliseconds.
A `Watch` keeps the predictions for a fixed set of points up to date while data come in, which costs one row of a matrix each.

Legend: n points, d columns, g groups of columns, m queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dtrtri
from scipy.optimize import minimize

Array = NDArray[np.float64]
Singles = NDArray[np.float32]
ROOT5 = 5**0.5
JITTER = 1e-6
LOW, HIGH = -6.0, 4.0  # of every logarithm that is fitted
LITTLE_NOISE = (-5.0, 2.0)
"""What is believed of the noise beforehand: mean and deviation of the logarithm of its variance, for values of variance 1."""
MUCH_NOISE = (-1.5, 1.0)
"""Of short trainings, whose accuracies repeat to about half of what networks differ by."""
LENGTH_SD = 1.2  # of the logarithm of the lengths' geometric mean
APART_SD = 0.5  # of each length's logarithm around it
LEARNT_FROM = 350  # hyperparameters are fitted on no more points than this, spread evenly; predictions use all


@dataclass(slots=True)
class GaussianProcess:
    """`fit(x, y)`, then `predict(query)`. x: (n, d), columns of about unit range; y: (n,), any scale.

    groups: for each column the number (0, 1, ..) of the length it shares with others; without it every column has its own. noise_prior:
    LITTLE_NOISE, MUCH_NOISE or another.
    theta: logarithms of the g lengths, of the signal's and of the noise's variance; kept between fits as their start.
    """

    groups: Sequence[int] | None = None
    noise_prior: tuple[float, float] = LITTLE_NOISE
    theta: Array | None = None
    _x: Array = field(default_factory=lambda: np.empty((0, 0)))
    _weights: Array = field(default_factory=lambda: np.empty(0))
    _lower: Array = field(default_factory=lambda: np.empty((0, 0)))
    _white: Array = field(default_factory=lambda: np.empty(0))  # lower^-1 z
    _mean: float = 0.0
    _scale: float = 1.0
    _doubt: float = 1.0
    _coming: tuple[Array, Array, Array] | None = None  # points given last, with what `_further` needs of them

    def fit(self, x: Array, y: Array, *, steps: int = 15, doubt: Array | None = None) -> None:
        """Condition on the data; `steps` steps of L-BFGS on the hyperparameters first (0: keep them). doubt: (n,) the variance of each
        value beyond the noise that all have."""
        self._mean, self._scale = float(y.mean()), float(y.std()) or 1.0
        z = (y - self._mean) / self._scale
        beyond = np.zeros(len(y)) if doubt is None else doubt / self._scale**2
        groups = self._groups(x.shape[1])
        count = int(groups.max()) + 1 if len(groups) else 0
        if self.theta is None or len(self.theta) != count + 2:
            self.theta = np.concatenate([np.full(count, _prior_length(count)), [0.0, self.noise_prior[0] + 2]])
            steps = max(steps, 30)
        if steps and len(x) > 2:
            at = np.linspace(0, len(x) - 1, min(len(x), LEARNT_FROM)).astype(int)
            found = minimize(_loss, self.theta, args=(_squares(x[at], groups, count), z[at], beyond[at], self.noise_prior), jac=True,
                             method="L-BFGS-B", bounds=[(LOW, HIGH)] * (count + 1) + [(-14.0, 1.0)], options={"maxiter": steps})
            if np.isfinite(found.fun):
                self.theta = np.asarray(found.x)
        covariance = self._kernel(x, x)
        covariance[np.diag_indices_from(covariance)] += self._added + beyond
        self._lower = cholesky(covariance, lower=True)
        self._weights, self._white = cho_solve((self._lower, True), z), solve_triangular(self._lower, z, lower=True)
        self._x, self._coming = x, None
        self._doubt = self._doubts()

    def _groups(self, columns: int) -> NDArray[np.int64]:
        return np.arange(columns) if self.groups is None else np.asarray(self.groups, dtype=np.int64)

    def _doubts(self) -> float:
        """How much too sure the process is: root mean square of its leave-one-out errors in their own deviations, at least 1."""
        inverse, _ = dtrtri(self._lower, lower=1)
        standardised = self._weights / np.sqrt((inverse**2).sum(0))  # the roots of the diagonal of the whole inverse
        return float(np.clip(np.sqrt(np.mean(np.clip(standardised, -5, 5) ** 2)), 1.0, 4.0))

    @property
    def _inverse(self) -> Array:
        """(d,) one over the length of each column."""
        assert self.theta is not None, "fit first"
        return np.asarray(np.exp(-self.theta[:-2])[self._groups(self._x.shape[1])])

    @property
    def _signal(self) -> float:
        assert self.theta is not None, "fit first"
        return float(np.exp(self.theta[-2]))

    @property
    def _added(self) -> float:
        """What stands on the diagonal beside the signal's variance."""
        assert self.theta is not None, "fit first"
        return float(np.exp(self.theta[-1])) + JITTER

    def _kernel(self, a: Array, b: Array) -> Array:
        assert self.theta is not None, "fit first"
        inverse = np.exp(-self.theta[:-2])[self._groups(a.shape[1])]
        a, b = a * inverse, b * inverse
        squares = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T, 0.0)
        return np.asarray(self._signal * _matern(squares))

    def mean(self, query: Array) -> Array:
        """(m, d) -> (m,): that of `predict`, for a small part of its cost."""
        return np.asarray(self._kernel(query, self._x) @ self._weights * self._scale + self._mean)

    def predict(self, query: Array, *, given: Array | None = None) -> tuple[Array, Array]:
        """(m, d) -> mean (m,) and standard deviation (m,) of the noiseless value. given: (k, d) points that will be known by then,
        which takes doubt away and leaves the mean."""
        cross = self._kernel(query, self._x)
        mean = cross @ self._weights
        half = solve_triangular(self._lower, cross.T, lower=True)
        variance = self._signal - (half**2).sum(0)
        if given is not None and len(given):
            variance = variance - (self._further(given, self._kernel(given, query), half) ** 2).sum(0)
        return self._unscaled(mean, variance)

    def _unscaled(self, mean: Array, variance: Array) -> tuple[Array, Array]:
        return mean * self._scale + self._mean, np.sqrt(np.maximum(variance, 1e-8)) * self._scale * self._doubt

    def _further(self, given: Array, cross: Array | Singles, half: Array | Singles) -> Array:
        """(k, m): the rows that more points add to lower^-1 cross."""
        if self._coming is None or not np.array_equal(self._coming[0], given):
            before = solve_triangular(self._lower, self._kernel(self._x, given), lower=True)  # (n, k)
            rest = self._kernel(given, given) + self._added * np.eye(len(given)) - before.T @ before
            self._coming = given, before, cholesky(rest, lower=True)
        _, before, lower = self._coming
        return np.asarray(solve_triangular(lower, cross - before.T @ half, lower=True))

    @property
    def columns(self) -> int:
        """Of the points it was fitted on."""
        return self._x.shape[1]

    @property
    def noise(self) -> float:
        """Estimated standard deviation of the noise, in the unit of y."""
        assert self.theta is not None, "fit first"
        return float(np.exp(self.theta[-1] / 2) * self._scale)


class Watch:
    """The predictions of a process for the same points again and again. points: (m, d). Single precision: for choosing, not telling."""

    def __init__(self, points: Array) -> None:
        self.points = points.astype(np.float32)
        self._theta: Array | None = None
        self._x: Array = np.empty((0, 0))
        self._rows: Singles = np.empty((0, len(points)), dtype=np.float32)  # lower^-1 cross, as many rows as points were seen
        self._explained: Singles = np.zeros(len(points), dtype=np.float32)

    def predict(self, process: GaussianProcess, *, given: Array | None = None) -> tuple[Array, Array]:
        """Mean (m,) and standard deviation (m,): those of `process.predict`, the cheaper the less has changed since the last call."""
        assert process.theta is not None, "fit first"
        x, seen = process._x, len(self._x)
        if self._theta is None or not np.array_equal(self._theta, process.theta) or seen > len(x) or not np.array_equal(self._x, x[:seen]):
            self._theta, seen = np.array(process.theta), 0
            self._rows, self._explained = self._rows[:0], np.zeros(len(self.points), dtype=np.float32)
        if len(x) > seen:
            inverse = process._inverse.astype(np.float32)
            cross = self._cross(process, x[seen:], inverse) - process._lower[seen:, :seen].astype(np.float32) @ self._rows
            rows = solve_triangular(process._lower[seen:, seen:].astype(np.float32), cross, lower=True)
            self._rows = np.concatenate([self._rows, rows])
            self._explained = self._explained + (rows**2).sum(0)
        self._x = x
        mean = process._white.astype(np.float32) @ self._rows
        explained = self._explained
        if given is not None and len(given):
            more = process._further(given, self._cross(process, given, process._inverse.astype(np.float32)), self._rows)
            explained = explained + (more**2).sum(0)
        return process._unscaled(mean.astype(float), process._signal - explained.astype(float))

    def _cross(self, process: GaussianProcess, x: Array, inverse: Singles) -> Singles:
        a, b = x.astype(np.float32) * inverse, self.points * inverse
        squares = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T, 0.0)
        return np.asarray(np.float32(process._signal) * _matern(squares), dtype=np.float32)


def _matern(squares: Any) -> Any:
    r = np.sqrt(squares) * squares.dtype.type(ROOT5)
    return (1 + r + r * r / 3) * np.exp(-r)


def _prior_length(count: int) -> float:
    return 0.5 * float(np.log(max(count, 1)))


def _squares(x: Array, groups: NDArray[np.int64], count: int) -> Array:
    """(g, n, n) squared differences, summed over the columns of each group."""
    squares = np.empty((count, len(x), len(x)))
    for g in range(count):
        part = x[:, groups == g]
        squares[g] = ((part[:, None, :] - part[None, :, :]) ** 2).sum(-1)
    return squares


def _loss(theta: Array, squares: Array, z: Array, beyond: Array, noise_prior: tuple[float, float]) -> tuple[float, Array]:
    """Negative logarithm of marginal likelihood times priors, and its gradient. squares: (g, n, n) squared differences per group;
    beyond: (n,) known variances beside the noise's."""
    groups, count = len(theta) - 2, len(z)
    inverse_squares = np.exp(-2 * theta[:-2])
    distances = np.tensordot(inverse_squares, squares, axes=1)
    r = ROOT5 * np.sqrt(np.maximum(distances, 0.0))
    decay = np.exp(theta[-2]) * np.exp(-r)
    kernel = decay * (1 + r + r**2 / 3)
    noise = np.exp(theta[-1])
    covariance = kernel.copy()
    covariance[np.diag_indices(count)] += noise + JITTER + beyond
    try:
        lower = cholesky(covariance, lower=True)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = cho_solve((lower, True), np.eye(count))
    weights = inverse @ z
    loss = 0.5 * z @ weights + np.log(np.diag(lower)).sum()
    outer = inverse - np.outer(weights, weights)
    # d kernel / d log length_g = decay * 5/3 * (1 + r) * squares_g / length_g^2
    common = outer * decay * (5 / 3) * (1 + r)
    gradient = np.empty_like(theta)
    gradient[:-2] = 0.5 * np.tensordot(squares, common, axes=([1, 2], [0, 1])) * inverse_squares
    gradient[-2] = 0.5 * (outer * kernel).sum()
    gradient[-1] = 0.5 * noise * np.trace(outer)
    middle = theta[:groups].mean() if groups else 0.0
    apart, whole = (theta[:groups] - middle) / APART_SD, (middle - _prior_length(groups)) / LENGTH_SD
    off = (theta[-1] - noise_prior[0]) / noise_prior[1]
    loss += 0.5 * (apart**2).sum() + 0.5 * whole**2 + 0.5 * off**2 + 0.5 * theta[-2] ** 2 / 4
    gradient[:groups] += apart / APART_SD + whole / LENGTH_SD / max(groups, 1)
    gradient[-1] += off / noise_prior[1]
    gradient[-2] += theta[-2] / 4
    return float(loss), gradient
