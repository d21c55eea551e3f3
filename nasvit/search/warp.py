"""How an objective is given to a Gaussian process, and how what it predicts is read: monotone functions of one number.

All values are minimised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _log(y: Array) -> Array:
    """The logarithm; of what is not positive, as the foot of a grid may be, less than all others."""
    return np.where(y > 0, np.log(np.maximum(y, np.finfo(float).tiny)), -np.inf)


class Plain:
    """For an objective that training decides: as it is. Improvement is counted in it, and what was tried to shorten its bad end (cutting
    it, its logarithm, a power transform, ranks) fitted the mass of networks better and found the best ones later."""

    def forward(self, y: Array, guess: Array) -> Array:
        """y: (n,) to what is modelled."""
        return y

    def back(self, z: Array, guess: Array) -> Array:
        """What is modelled, as a value."""
        return z


@dataclass(frozen=True, slots=True)
class Cost:
    """For a cost that is measured: its logarithm where values are positive and span a factor of 4."""

    log: bool

    @classmethod
    def of(cls, y: Array) -> Cost:
        return cls(log=bool(y.min() > 0 and y.max() > 4 * y.min()))

    def forward(self, y: Array, guess: Array) -> Array:
        return _log(y) if self.log else y

    def back(self, z: Array, guess: Array) -> Array:
        return np.exp(z) if self.log else z


class Ratio:
    """For a cost that is known about, as by a latency predictor: the logarithm of how many times the guess it is."""

    def forward(self, y: Array, guess: Array) -> Array:
        return _log(y / guess)

    def back(self, z: Array, guess: Array) -> Array:
        return np.asarray(np.exp(z) * guess)


Warp = Plain | Cost | Ratio


def warp_for(y: Array, guess: Array, *, quality: bool) -> Warp:
    """The warp of an objective. y: (n,) what was seen; guess: (n,) what was guessed of it, NaN without a guess."""
    if np.isfinite(guess).all() and np.all(guess > 0) and np.all(y > 0):
        return Ratio()
    return Plain() if quality else Cost.of(y)
