"""What a configuration is worth: the hypervolume it is expected to add to the front.

One modelled objective (the first that is maximised, else the first) is the quality: its uncertainty is integrated exactly. What else
is modelled is drawn a few times, what is known is known. Improvement is taken in the objectives as they are, never in logarithms.

The reference point decides where a search goes. Two choices here were measured:
* It is not bounded by the front so far: the dearest configuration that may still be the best of all lies inside. Otherwise the
  accurate end of the front is never looked for (ImageNet-16 accuracy against Pixel 3 latency, 300 trials: 0.88 -> 0.98 of the true front).
* Networks that are cheap and know nothing would take the budget: quality worse than three quarters of the first, spread trials counts
  nothing, except in as many proposals as such trials have reached the front.

Legend: n trials, c candidates, m objectives, all minimised; s draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from nasvit.results.front import hypervolume, non_dominated
from nasvit.search.candidates import Batch
from nasvit.search.gaussian import GaussianProcess
from nasvit.search.improvement import exact_improvement, free_boxes, improvement, spread
from nasvit.search.warp import Warp

Array = NDArray[np.float64]

DRAWS = 8
"""Draws that stand for the prediction of a modelled objective that is not the quality."""
SHORT = 300
"""So many candidates of a long list are looked at exactly."""
MARGIN = 0.1
"""The reference point lies at least this share of the front's range behind its worst values."""
LEVELS = 64
"""Points of the integral over the quality, beside the front's."""
USELESS = 0.75
"""Quality worse than this share of the first trials is useless, until it proves otherwise."""
EXACT, MEMBERS = 3, 24
"""With more objectives than the first, boxes are made of so many spread members of the front (with four; half, a third with each more):
they grow as its size to the power of the objectives less one (four objectives: 2.8 s of a proposal at 60 members, 22 s at 120)."""


@dataclass(frozen=True, slots=True)
class Modelled:
    """An objective with the process of its warped values."""

    process: GaussianProcess
    warp: Warp


@dataclass(frozen=True, slots=True)
class Goal:
    """Where improvement counts: the boxes that the front leaves free, and its hypervolume. points: (n, m) of all trials."""

    front: Array
    reference: Array
    lows: Array
    highs: Array

    @classmethod
    def of(cls, points: Array, *, reference: Array) -> Goal:
        front = points[non_dominated(points)]
        front = front[np.all(front < reference, axis=1)]
        if len(reference) > EXACT:
            front = spread(front, MEMBERS // (len(reference) - EXACT))
        low = front.min(axis=0) if len(front) else reference - np.abs(reference) - 1e-9
        lows, highs = free_boxes(front, reference, low - np.maximum(reference - low, 1e-12))
        return cls(front=front, reference=reference, lows=lows, highs=highs)

    @property
    def volume(self) -> float:
        return hypervolume(self.front, self.reference)


def useful_quality(quality: Array, on_front: NDArray[np.bool_], *, first: int, chance: float) -> float:
    """What a quality (minimised) must be better than to count; `chance` in [0, 1) decides whether everything counts this time.

    quality, on_front: (n,) of all trials; the first `first` of them were spread over the space. Everything counts in that share of
    the calls in which useless trials have so far turned out to be part of the front, one of two before the first.
    """
    line = float(np.quantile(quality[:first], USELESS))
    useless = quality[first:] > line
    reached = useless & on_front[first:] & (quality[first:] < quality.max())  # the worst of all is on the front by its cost alone
    share = (1 + reached.sum()) / (2 + useless.sum())
    return np.inf if chance < share else line


class Judge:
    """Calls give the expected improvement of a batch. quality: index of the objective that is integrated exactly, None where every
    objective is known. limits: the process of the constraints' excess (above 0 where a limit is passed), None without limits.
    """

    def __init__(self, *, points: Array, modelled: Mapping[int, Modelled], quality: int | None, limits: GaussianProcess | None,
                 useful: float, running: Batch | None, rng: np.random.Generator) -> None:
        self.points, self.modelled, self.quality, self.limits = points, modelled, quality, limits
        self.useful = useful
        self.given = running.x if running is not None and len(running) else None
        middles = ndtri((np.arange(DRAWS) + 0.5) / DRAWS)
        self.spread = {j: rng.permutation(middles) for j in modelled}
        if running is not None and len(running):
            self.points = np.vstack([points, self.expected(running)])
        self.goal: Goal | None = None
        self._last: dict[int, tuple[tuple[object, ...], tuple[Array, Array]]] = {}

    def with_quality(self, process: GaussianProcess, *, running: Batch) -> Judge:
        """A judge with the same goal whose quality is modelled by another process."""
        assert self.quality is not None
        other = copy(self)
        other.modelled = {**self.modelled, self.quality: Modelled(process=process, warp=self.modelled[self.quality].warp)}
        other.given, other._last = running.x if len(running) else None, {}
        return other

    def expected(self, batch: Batch) -> Array:
        """(c, m) what is known or predicted, in the objectives' units."""
        values = batch.known.copy()
        for j, model in self.modelled.items():
            values[:, j] = model.warp.back(batch.mean(j, model.process), batch.guess[:, j])
        return values

    def aim(self, batch: Batch) -> None:
        """Fix the reference point, with the candidates that may be the best of all inside."""
        points = self.points
        front = points[non_dominated(points)]
        if self.quality is not None and np.any(front[:, self.quality] <= self.useful):
            front = front[front[:, self.quality] <= self.useful]
        low, high = front.min(axis=0), front.max(axis=0)
        span = np.where(high > low, high - low, np.maximum(np.abs(low), 1e-9) * 0.1)
        reference = high + MARGIN * span
        if self.quality is not None and len(batch):
            q = self.quality
            model = self.modelled[q]
            mean, deviation = self._predicted(q, batch)
            best = mean - deviation < model.warp.forward(np.full(len(batch), low[q]), batch.guess[:, q])
            best &= self._kept(batch) > 0.5
            if best.any():
                expected = self.expected(batch)[best].max(axis=0)
                others = np.arange(len(reference)) != q
                reference[others] = np.maximum(reference, expected + 0.5 * MARGIN * np.abs(expected))[others]
        self.goal = Goal.of(points, reference=reference)

    def believe(self, batch: Batch) -> None:
        """Go on as if these had been evaluated, with the values expected of them."""
        assert self.goal is not None, "aim first"
        self.points = np.vstack([self.points, self.expected(batch)])
        self.given = batch.x if self.given is None else np.vstack([self.given, batch.x])
        self.goal = Goal.of(self.points, reference=self.goal.reference)

    def _predicted(self, j: int, batch: Batch) -> tuple[Array, Array]:
        """Mean and deviation (c,), which several ask of the same batch one after the other."""
        of = (batch, self.modelled[j].process, self.given)
        if j not in self._last or any(a is not b for a, b in zip(self._last[j][0], of, strict=True)):
            self._last[j] = of, batch.predict(j, self.modelled[j].process, given=self.given)
        return self._last[j][1]

    def shortlist(self, batch: Batch, *, open_: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Indices of the candidates worth an exact look, among those that are open."""
        places = np.flatnonzero(open_)
        if len(places) <= SHORT or self.quality is None:
            return places
        bound = self._bound(batch)[places]
        return places[np.argpartition(-bound, SHORT)[:SHORT]]

    def _bound(self, batch: Batch) -> Array:
        """(c,) about the largest improvement: as if no other objective had to be shared with the front's next members."""
        assert self.goal is not None and self.quality is not None, "aim first"
        q, goal, model = self.quality, self.goal, self.modelled[self.quality]
        others = [j for j in range(len(goal.reference)) if j != q]
        costs = self.expected(batch)[:, others]
        level = np.full(len(batch), goal.reference[q])
        for member in goal.front[np.argsort(-goal.front[:, q])]:
            level[np.all(costs >= member[others], axis=1)] = member[q]
        mean, deviation = self._predicted(q, batch)
        u = (model.warp.forward(level, batch.guess[:, q]) - mean) / deviation
        depth = deviation * (u * ndtr(u) + np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi))
        return np.asarray(np.prod(np.maximum(goal.reference[others] - costs, 0.0), axis=1) * depth * self._kept(batch))

    def _kept(self, batch: Batch) -> Array:
        """(c,) the probability of keeping the limits."""
        if self.limits is None:
            return np.ones(len(batch))
        mean, deviation = batch.predict(-1, self.limits, given=None)
        return np.asarray(ndtr(-mean / deviation))

    def __call__(self, batch: Batch) -> Array:
        """(c,) the expected improvement, times the probability of keeping the limits."""
        assert self.goal is not None, "aim first"
        if self.quality is None:
            return improvement(batch.known, self.goal.lows, self.goal.highs) * self._kept(batch)
        width = max(1, 2_000_000 // (DRAWS * max(len(self.goal.lows), 1)))
        parts = [batch] if len(batch) <= width else [
            batch.part(np.arange(start, min(start + width, len(batch)))) for start in range(0, len(batch), width)]
        return np.concatenate([self._gain(part) * self._kept(part) for part in parts]) if len(batch) else np.empty(0)

    def _gain(self, batch: Batch) -> Array:
        assert self.goal is not None and self.quality is not None
        q, goal, model = self.quality, self.goal, self.modelled[self.quality]
        floor = goal.lows[:, q].min() if len(goal.lows) else goal.reference[q] - 1
        grid = np.unique(np.concatenate([np.linspace(floor, goal.reference[q], LEVELS), goal.lows[:, q], goal.highs[:, q]]))
        mean, deviation = self._predicted(q, batch)
        levels = model.warp.forward(grid[None, :], batch.guess[:, q, None])  # (1 or c, t)
        below = ndtr((levels - mean[:, None]) / deviation[:, None])
        return exact_improvement(below, grid, self._others(batch), goal.lows, goal.highs, uncertain=q)

    def _others(self, batch: Batch) -> Array:
        """(c, s, m - 1) the objectives beside the quality; one draw where all are known."""
        rest = [j for j in range(batch.known.shape[1]) if j != self.quality]
        drawn = [j for j in rest if j in self.modelled]
        values = np.repeat(batch.known[:, None, :], DRAWS if drawn else 1, axis=1)
        for j in drawn:
            mean, deviation = self._predicted(j, batch)
            z = mean[:, None] + deviation[:, None] * self.spread[j]
            values[:, :, j] = self.modelled[j].warp.back(z, batch.guess[:, j, None])
        return np.asarray(values[:, :, rest])


def believed(y: Array, rung: Array, batch: Batch, modelled: Mapping[int, Modelled], quality: int | None) -> Array:
    """(n, m) what the trials' objectives are taken for: their values without the noise that the process sees in the quality; of trials
    that stopped at a lower rung, what is predicted of them at the highest."""
    points = y.copy()
    if quality is None:
        return points
    top = Batch(params=batch.params, x=np.column_stack([batch.x[:, :-1], np.ones(len(batch))]), known=batch.known, guess=batch.guess)
    low = rung < 1
    for j, model in modelled.items():
        rows = np.ones(len(y), dtype=bool) if j == quality else low
        if not rows.any():
            continue
        points[rows, j] = model.warp.back(model.process.mean(top.x[rows]), batch.guess[rows, j])
    return points


def which_is_quality(signs: Sequence[float] | Array, modelled: Sequence[int]) -> int | None:
    """The first modelled objective that is maximised, else the first that is modelled."""
    maximised = [j for j in modelled if signs[j] < 0]
    return maximised[0] if maximised else (modelled[0] if modelled else None)
