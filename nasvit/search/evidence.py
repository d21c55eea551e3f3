"""What a study's finished trials say to the surrogate sampler, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from nasvit.search.acquisition import which_is_quality
from nasvit.search.candidates import Batch, Inputs, Key
from nasvit.search.domain import LOWER, RUNG
from nasvit.search.rising import risen

Array = NDArray[np.float64]


FAR = 1e12
"""From a limit: nothing is farther, not even an infinite constraint."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the finished trials say. done: those with values, in the order they came; y: (n, m) minimised; rung: (n,) share of the
    highest; doubt: (n,) variance of the quality; tried: these and the rejected; excess: (t,) their constraint, above 0 where a limit is
    passed.

    Where the trials tell what they had at lower rungs, the quality of those that stopped there is what is to be expected of it at the
    highest, and all stand at the highest; else it is as it was, and models are told of the rung.
    """

    done: Batch
    y: Array
    rung: Array
    doubt: Array
    tried: Batch
    excess: Array

    @property
    def strain(self) -> Array:
        """(t,) how far each is from its limits, in a scale that a process can learn."""
        return np.asarray(np.arcsinh(4 * self.excess))


def evidence_of(trials: Sequence[FrozenTrial], keys: Sequence[Key], inputs: Inputs) -> Evidence:
    """Of the finished trials, in the order they ended. keys: of every trial's parameters."""
    ended = [(t, k) for t, k in zip(trials, keys, strict=True) if t.state == TrialState.COMPLETE and k and np.all(np.isfinite(t.values))]
    ended.sort(key=lambda e: (e[0].datetime_complete is None, e[0].datetime_complete, e[0].number))
    tried = inputs.batch([t.params for t, _ in ended], keys=[k for _, k in ended])
    strain = [min(max(*t.constraints.values(), -FAR), FAR) if t.constraints else -1.0 for t, _ in ended]
    kept = [i for i, (t, _) in enumerate(ended) if t.user_attrs.get(RUNG) != 0 and strain[i] <= 0]
    done = [ended[i][0] for i in kept]
    top = max((int(t.user_attrs.get(RUNG, 1)) for t in done), default=1)
    rung = np.array([int(t.user_attrs.get(RUNG, top)) / top for t in done])
    y = np.array([t.values for t in done], dtype=float).reshape(len(done), len(inputs.signs)) * inputs.signs
    batch, doubt = tried.part(np.array(kept, dtype=np.int64)), np.zeros(len(done))
    quality = which_is_quality(inputs.signs, unknown(batch))
    curves = None if quality is None or not np.isnan(batch.guess[:, quality]).all() else _curves(done, quality)
    if curves is not None:
        value, doubt = risen(curves)
        y[:, quality] = inputs.signs[quality] * value
    return Evidence(done=batch.at(rung if curves is None else np.ones(len(done))), y=y, rung=rung, doubt=doubt, tried=tried,
                    excess=np.array(strain))


def unknown(batch: Batch) -> list[int]:
    """The objectives that are not known without a trial."""
    return np.flatnonzero(np.isnan(batch.known).any(axis=0)).tolist()


def _curves(trials: Sequence[FrozenTrial], objective: int) -> list[list[float]] | None:
    """What each had of the objective at the rungs that it reached; None where all stopped at the first, or one does not tell."""
    curves = [[*(values[objective] for values in t.user_attrs.get(LOWER, ())), t.values[objective]] for t in trials]
    told = all(len(curve) == t.user_attrs.get(RUNG) and np.all(np.isfinite(curve)) for curve, t in zip(curves, trials, strict=True))
    return curves if told and any(len(curve) > 1 for curve in curves) else None
