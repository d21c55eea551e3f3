"""How fast a plan will be, learned from the plans that were measured: eight terms with a prior that is the dense model's share of MACs, and
what they miss of similar plans.

It only steers the search to where the target is; what is reported was measured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from nasvit.errors import ArchError
from nasvit.pruning.families import Layout
from nasvit.pruning.plan import Plan

PRIOR = 0.3
"""Weight of the prior on each term, against one measurement with the weight of its inverse latency."""
DROPS = 2.0
"""Places where tokens are dropped that count like the dense model's whole time: how dear one is varies most between models and runtimes, so
a first surprise is put down to them rather than to what every plan has."""
USUAL = 0.06
"""Half width of a good measurement's interval."""
FIXED = 0.03
"""Share of the dense model's time that the prior gives to what no plan changes."""
DROPPING = ("merge", "slow_fast", "topk_fuse")
MISSED, REACH, MEASURED = 0.06, 0.15, 0.02
"""What the terms miss: its usual size (share of the time), how far it reaches (in the terms, each as a share of the dense model's), and
how far one measurement is from the next. It is mostly how wide matrix products are, which MACs do not tell, and so the same for plans of
one shape and almost one strength."""


def _alike(rows: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, m): covariance of what is missed of n plans and of m."""
    squared = ((rows[:, None] - others[None]) ** 2).sum(axis=2)
    return np.asarray(MISSED**2 * np.exp(-squared / (2 * REACH**2)))


class OutOfReach(ArchError):
    """Choices that are predicted above the target at the strongest; `ms` is what they are predicted at."""

    def __init__(self, ms: float, *, aim_ms: float) -> None:
        super().__init__(f"these choices leave {ms:.3g} ms at the strongest, above {aim_ms:.3g} ms")
        self.ms = ms


def terms(plan: Plan, layout: Layout) -> NDArray[np.float64]:
    """(8,): 1, then in MACs projections, attention products and MLPs, then the blocks left and, for each operator of DROPPING, the places
    where it drops tokens."""
    projections = products = mlps = drops = 0.0
    before, last = 1.0, max((i for i, block in enumerate(plan.blocks) if block.heads), default=0)
    for i, (block, form) in enumerate(zip(plan.blocks, layout.blocks, strict=True)):
        width, tokens = plan.embed_dims[form.stage], layout.tokens / 4**form.stage
        now = block.keep_ratio
        inner = block.heads * block.head_dim * (3 + form.value_ratio) / 4
        # merge and fusion drop between attention and MLP, slow-fast before both
        inside = now if plan.operator == "slow_fast" else before
        if layout.read is not None and i >= last:  # keys and values of all tokens, the rest of a few
            projections += (inside * tokens + layout.read) * 2 * width * inner
            products += inside * tokens * layout.read * 2 * inner
            mlps += layout.read * 2 * width * block.mlp_dim
        else:
            projections += inside * tokens * 4 * width * inner
            products += (inside * tokens) ** 2 * 2 * inner
            mlps += now * tokens * 2 * width * block.mlp_dim
        drops += now != before
        before = now
    return np.array([1.0, projections, products, mlps, float(plan.depth), *(drops * (plan.operator == name) for name in DROPPING)])


class Speed:
    """Predicts milliseconds. dense_ms: the dense model's, measured. Every `observe` refines the terms (non-negative least squares)."""

    def __init__(self, dense: Plan, *, layout: Layout, dense_ms: float) -> None:
        self.layout, self.dense_ms = layout, dense_ms
        self.scale = terms(dense, layout)
        self.scale[self.scale == 0] = 1.0
        self.scale[5:] = DROPS
        share = self.scale[1:4] / self.scale[1:4].sum() * (1 - FIXED)
        self.prior = np.array([FIXED, *share, 0.0, *(0.0 for _ in DROPPING)]) * dense_ms
        self.coefficients = self.prior
        self._rows: list[NDArray[np.float64]] = [terms(dense, layout) / self.scale]
        self._ms, self._half = [dense_ms], [USUAL]
        self._missed: NDArray[np.float64] = np.zeros(1)

    def predict(self, plan: Plan) -> float:
        """Milliseconds."""
        row = terms(plan, self.layout) / self.scale
        near = _alike(np.array(self._rows), row[None])[:, 0]
        return float(row @ self.coefficients * np.exp(near @ self._missed))

    @property
    def half_width(self) -> float:
        """Half the interval of a usual measurement so far, as a share of its median."""
        return float(np.median(self._half))

    def observe(self, plan: Plan, ms: float, *, half_width: float) -> None:
        """Learn from a measured plan; half_width: of its interval, as a share of the median (a noisy one counts less)."""
        self._rows.append(terms(plan, self.layout) / self.scale)
        self._ms.append(ms)
        self._half.append(half_width)
        weight = self.dense_ms / np.array(self._ms) * np.minimum(1.0, USUAL / np.array(self._half))  # errors are relative
        ridge = np.full(len(self.prior), PRIOR)
        known = np.array(self._rows)
        rows = np.vstack([known * weight[:, None], np.diag(ridge)])
        values = np.concatenate([np.array(self._ms) * weight, ridge * self.prior])
        self.coefficients = nnls(rows, values)[0]
        left = np.log(np.array(self._ms) / np.maximum(known @ self.coefficients, 1e-9))
        noise = MEASURED * np.maximum(1.0, np.array(self._half) / USUAL)
        self._missed = np.asarray(np.linalg.solve(_alike(known, known) + np.diag(noise**2), left))  # a Gaussian process around no miss

    def solver(self, *, aim_ms: Callable[[], float], steps: int) -> Callable[[Callable[[int, int], Plan]], tuple[int, int]]:
        """Finds (strength, fine), each of 1 to `steps`: the strength whose plan is predicted at `aim_ms()` or below, and the one before it
        above (the smallest where plans are faster the stronger they are pruned, as they are but for what the terms miss); then, up to it,
        the fine one in the same way, which takes back what a jump of the first overshot.

        Raises OutOfReach where not even the strongest is, ArchError where the weakest is far below already.
        """
        def solve(plan: Callable[[int, int], Plan]) -> tuple[int, int]:
            aim = aim_ms()

            def first(made: Callable[[int], Plan], *, last: int) -> int:
                low, high = 1, last
                while low < high:
                    middle = (low + high) // 2
                    low, high = (low, middle) if self.predict(made(middle)) <= aim else (middle + 1, high)
                return low

            strongest = self.predict(plan(steps, steps))
            if strongest > aim:
                raise OutOfReach(strongest, aim_ms=aim)
            strength = first(lambda step: plan(step, step), last=steps)
            fine = first(lambda step: plan(strength, step), last=strength)
            found = self.predict(plan(strength, fine))
            if found < 0.93 * aim:
                raise ArchError(f"one step of these choices jumps from above {aim:.3g} ms to {found:.3g} ms")
            return strength, fine
        return solve
