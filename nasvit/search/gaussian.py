"""A small exact Gaussian process: Matern 5/2 with a length for each column, its noise estimated.

Hyperparameters are the maximum of the marginal likelihood with priors (lengths log-normal around the square root of the number of
columns: Hvarfner et al. 2024, arXiv 2402.02229; small noise). Gradients are analytic, so 300 points cost tens of milliseconds.

Legend: n points, d columns, m queries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]
ROOT5 = 5**0.5
JITTER = 1e-8
LOW, HIGH = -6.0, 4.0  # of every logarithm that is fitted
NOISE_PRIOR = (-7.0, 2.0)  # mean and sd of the logarithm of the noise's variance, for values of variance 1
LENGTH_SD = 1.2  # of the logarithm of the lengths' geometric mean
APART_SD = 0.5  # of each length's logarithm around it


@dataclass(slots=True)
class GaussianProcess:
    """`fit(x, y)`, then `predict(query)`. x: (n, d), columns of about unit range; y: (n,), any scale.

    theta: logarithms of the d lengths, of the signal's and of the noise's variance; kept between fits as their start.
    """

    theta: Array | None = None
    _x: Array = field(default_factory=lambda: np.empty((0, 0)))
    _weights: Array = field(default_factory=lambda: np.empty(0))
    _lower: Array = field(default_factory=lambda: np.empty((0, 0)))
    _mean: float = 0.0
    _scale: float = 1.0
    _doubt: float = 1.0

    def fit(self, x: Array, y: Array, *, steps: int = 15) -> None:
        """Condition on the data; `steps` steps of L-BFGS on the hyperparameters first (0: keep them)."""
        self._mean, self._scale = float(y.mean()), float(y.std()) or 1.0
        z = (y - self._mean) / self._scale
        columns = x.shape[1]
        if self.theta is None or len(self.theta) != columns + 2:
            self.theta = np.concatenate([np.full(columns, self._prior_length(columns)), [0.0, NOISE_PRIOR[0] + 3]])
            steps = max(steps, 30)
        if steps and len(x) > 2:
            squares = np.ascontiguousarray(((x[:, None, :] - x[None, :, :]) ** 2).transpose(2, 0, 1))  # (d, n, n)
            found = minimize(_loss, self.theta, args=(squares, z, self._prior_length(columns)), jac=True, method="L-BFGS-B",
                             bounds=[(LOW, HIGH)] * columns + [(LOW, HIGH), (-14.0, 1.0)], options={"maxiter": steps})
            if np.isfinite(found.fun):
                self.theta = np.asarray(found.x)
        covariance = self._kernel(x, x)
        covariance[np.diag_indices_from(covariance)] += np.exp(self.theta[-1]) + JITTER
        self._lower = cholesky(covariance, lower=True)
        self._weights = cho_solve((self._lower, True), z)
        self._x = x
        self._doubt = self._doubts(z)

    def _doubts(self, z: Array) -> float:
        """How much too sure the process is: root mean square of its leave-one-out errors in their own deviations, at least 1."""
        inverse = cho_solve((self._lower, True), np.eye(len(z)))
        standardised = self._weights / np.sqrt(np.diag(inverse))
        return float(np.clip(np.sqrt(np.mean(np.clip(standardised, -5, 5) ** 2)), 1.0, 4.0))

    @staticmethod
    def _prior_length(columns: int) -> float:
        return 0.5 * float(np.log(max(columns, 1))) - 0.5

    def _kernel(self, a: Array, b: Array) -> Array:
        assert self.theta is not None
        inverse = np.exp(-self.theta[:-2])
        a, b = a * inverse, b * inverse
        squares = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T, 0.0)
        r = ROOT5 * np.sqrt(squares)
        return np.asarray(np.exp(self.theta[-2]) * (1 + r + r**2 / 3) * np.exp(-r))

    def predict(self, query: Array) -> tuple[Array, Array]:
        """(m, d) -> mean (m,) and standard deviation (m,) of the noiseless value."""
        assert self.theta is not None, "fit first"
        cross = self._kernel(query, self._x)
        mean = cross @ self._weights
        half = solve_triangular(self._lower, cross.T, lower=True)
        variance = np.maximum(np.exp(self.theta[-2]) - (half**2).sum(0), 1e-12)
        return mean * self._scale + self._mean, np.sqrt(variance) * self._scale * self._doubt

    @property
    def noise(self) -> float:
        """Estimated standard deviation of the noise, in the unit of y."""
        assert self.theta is not None, "fit first"
        return float(np.exp(self.theta[-1] / 2) * self._scale)


def _loss(theta: Array, squares: Array, z: Array, prior_length: float) -> tuple[float, Array]:
    """Negative logarithm of marginal likelihood times priors, and its gradient. squares: (d, n, n) squared differences per column."""
    columns, count = len(theta) - 2, len(z)
    inverse_squares = np.exp(-2 * theta[:-2])
    distances = np.tensordot(inverse_squares, squares, axes=1)
    r = ROOT5 * np.sqrt(np.maximum(distances, 0.0))
    decay = np.exp(theta[-2]) * np.exp(-r)
    kernel = decay * (1 + r + r**2 / 3)
    noise = np.exp(theta[-1])
    covariance = kernel.copy()
    covariance[np.diag_indices(count)] += noise + JITTER
    try:
        lower = cholesky(covariance, lower=True)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = cho_solve((lower, True), np.eye(count))
    weights = inverse @ z
    loss = 0.5 * z @ weights + np.log(np.diag(lower)).sum()
    outer = inverse - np.outer(weights, weights)
    # d kernel / d log length_j = decay * 5/3 * (1 + r) * squares_j / length_j^2
    common = outer * decay * (5 / 3) * (1 + r)
    gradient = np.empty_like(theta)
    gradient[:-2] = 0.5 * np.tensordot(squares, common, axes=([1, 2], [0, 1])) * inverse_squares
    gradient[-2] = 0.5 * (outer * kernel).sum()
    gradient[-1] = 0.5 * noise * np.trace(outer)
    common = theta[:columns].mean()
    apart, whole = (theta[:columns] - common) / APART_SD, (common - prior_length) / LENGTH_SD
    off = (theta[-1] - NOISE_PRIOR[0]) / NOISE_PRIOR[1]
    loss += 0.5 * (apart**2).sum() + 0.5 * whole**2 + 0.5 * off**2 + 0.5 * theta[-2] ** 2 / 4
    gradient[:columns] += apart / APART_SD + whole / LENGTH_SD / columns
    gradient[-1] += off / NOISE_PRIOR[1]
    gradient[-2] += theta[-2] / 4
    return float(loss), gradient
