"""From known devices to a new one with a handful of measurements.

A new device's log latencies are taken for a constant, plus what devices have in common (principal components of the known devices'
log latencies, each as likely as it is strong among them), plus what its own kinds of operations add (features of the network), plus
noise. That is a Gaussian process over networks; how large the parts are is averaged by their evidence over a small grid, because ten
measurements cannot settle it. The measurements are chosen before anything is measured: those that leave the least variance.

Legend: N networks, k known devices, d features, m measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from nasvit.arch import Arch
from nasvit.errors import NasvitError
from nasvit.latency.pieces import pieces

Array = NDArray[np.float64]

COMPONENTS = 8
CONSTANT = 3.0
"""Deviation of the log scale of a device."""
COMMON, OWN, NOISE = (0.6, 1.0, 1.8), (0.01, 0.04, 0.12), (0.015, 0.04, 0.1)
"""Grid: times the known devices' mean spread of log latency; deviations of what a device adds, and of a measurement."""
POOL = 400
"""Networks among which the measurements are chosen."""


class Transfer:
    """`known`: (N, k) latencies on the known devices, in ms; with k = 0 a fit from scratch. features: (N, d), of about unit spread."""

    def __init__(self, known: Array, *, features: Array) -> None:
        if not (np.all(np.isfinite(known)) and np.all(known > 0) and len(known) == len(features)):
            raise NasvitError(f"known latencies must be positive, one row for each of {len(features)} networks")
        logs = np.log(known) - np.log(known).mean(axis=0)
        self.common = np.zeros((len(known), 1))
        if known.shape[1]:
            spread = np.maximum(logs.std(axis=0), 1e-9)
            left, strength, _ = np.linalg.svd(logs / spread, full_matrices=False)
            kept = slice(0, min(COMPONENTS, len(strength)))
            share = strength[kept] / math.sqrt(float((strength**2).sum()))
            self.common = left[:, kept] * math.sqrt(len(known)) * share * float(spread.mean())
        centred = features - features.mean(axis=0)
        self.own = centred / max(1e-12, math.sqrt(float((centred**2).sum(axis=1).mean())))
        self._fits: list[tuple[float, float, float, float, tuple[Array, bool], Array]] = []
        self._rows: list[int] = []
        self._mean = 0.0

    def _kernel(self, a: Sequence[int] | slice, b: Sequence[int] | slice, common: float, own: float) -> Array:
        return np.asarray(CONSTANT**2 + common**2 * self.common[a] @ self.common[b].T + own**2 * self.own[a] @ self.own[b].T)

    def choose(self, count: int, *, seed: int) -> list[int]:
        """The networks to measure, one by one the one that is least certain given those before; extremes (a hundredth) left out."""
        middle = self.common[:, 0] if self.common.any() else self.own[:, 0]
        low, high = np.quantile(middle, [0.01, 0.99])
        inside = np.flatnonzero((middle >= low) & (middle <= high))
        pool = np.random.default_rng(seed).permutation(inside)[:POOL]
        kernel = self._kernel(list(pool), list(pool), COMMON[1], OWN[1])
        chosen: list[int] = []
        for _ in range(min(count, len(pool))):
            best = int(np.argmax(np.where(np.isin(np.arange(len(pool)), chosen), -np.inf, np.diag(kernel))))
            chosen.append(best)
            column = kernel[:, best]
            kernel = kernel - np.outer(column, column) / (column[best] + NOISE[1] ** 2)
        return [int(pool[i]) for i in chosen]

    def fit(self, rows: Sequence[int], ms: Sequence[float]) -> None:
        """Learn from the measured latencies of these networks (rows of `known`)."""
        logs = np.log(np.asarray(ms, dtype=float))
        self._rows, self._mean = list(rows), float(logs.mean())
        target = logs - self._mean
        self._fits = []
        for common, own, noise in product(COMMON if self.common.any() else (0.0,), OWN if self.common.any() else (0.05, 0.15, 0.4), NOISE):
            matrix = self._kernel(self._rows, self._rows, common, own) + noise**2 * np.eye(len(target))
            factor = cho_factor(matrix, lower=True)
            white = solve_triangular(factor[0], target, lower=True)
            evidence = float(-0.5 * white @ white - np.log(np.diag(factor[0])).sum())
            self._fits.append((evidence, common, own, noise, factor, cho_solve(factor, target)))

    def predict(self, rows: Sequence[int] | slice = slice(None)) -> tuple[Array, Array]:
        """Latencies in ms, and the relative deviation of a measurement from each."""
        best = max(fit[0] for fit in self._fits)
        weights = np.array([math.exp(fit[0] - best) for fit in self._fits])
        means, variances = [], []
        for _, common, own, noise, factor, alpha in self._fits:
            cross = self._kernel(self._rows, rows, common, own)
            reduced = solve_triangular(factor[0], cross, lower=True)
            prior = CONSTANT**2 + common**2 * (self.common[rows] ** 2).sum(axis=1) + own**2 * (self.own[rows] ** 2).sum(axis=1)
            means.append(alpha @ cross)
            variances.append(np.maximum(prior - (reduced**2).sum(axis=0), 0.0) + noise**2)
        weights /= weights.sum()
        mean = np.tensordot(weights, np.array(means), axes=1)
        variance = np.tensordot(weights, np.array(variances) + (np.array(means) - mean) ** 2, axes=1)
        return np.exp(self._mean + mean), np.sqrt(variance)


def features(archs: Sequence[Arch]) -> Array:
    """(N, d) what the networks are made of: of each family of pieces how many, and their work, each of unit spread."""
    rows: list[dict[str, float]] = []
    for arch in archs:
        row: dict[str, float] = {}
        for piece in pieces(arch):
            row[piece.family] = row.get(piece.family, 0.0) + 1.0
            work = f"{piece.family} work"
            row[work] = row.get(work, 0.0) + piece.macs_m
        rows.append(row)
    names = sorted({name for row in rows for name in row})
    table = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    spread = table.std(axis=0)
    return table / np.where(spread > 0, spread, 1.0)
