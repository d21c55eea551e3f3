"""How a search is judged: hypervolume of the returned front, statistics over seeds, tables.

Inside, every objective is minimised. Objectives are scaled so that the true front's box is [0, 1] in each, the reference point is 1.1 in
each, and the hypervolume is divided by that of the true front: 1 is the whole front. The full-range figure scales by the range of all rows,
with the reference point at 1.

Legend: n points, m objectives, t trials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from nasvit.results.front import hypervolume, non_dominated

Array = NDArray[np.float64]
REFERENCE = 1.1
CHECKPOINTS = (50, 100, 200, 300)
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A column and its direction."""

    name: str
    maximise: bool

    @property
    def sign(self) -> float:
        """Turns the column into something to minimise, and back."""
        return -1.0 if self.maximise else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a trial gave, minimised: (m,) as observed, and as it is without noise."""

    id: str
    observed: Array
    true: Array
    valid: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The true front and the scales; every array minimised. total and total_full: hypervolume of the true front in either scale."""

    low: Array
    span: Array
    reference: Array
    total: float
    low_full: Array
    span_full: Array
    total_full: float
    front_size: int

    @classmethod
    def of_rows(cls, values: Array, *, reference: Array | None = None) -> Goal:
        """All valid rows (n, m); reference: in their units, or 1.1 of the front's box."""
        return cls.of_front(values[non_dominated(values)], worst=values.max(axis=0), reference=reference)

    @classmethod
    def of_front(cls, front: Array, *, worst: Array, reference: Array | None = None) -> Goal:
        """The true front (n, m), and the worst value of each objective anywhere (m,)."""
        low, high = front.min(axis=0), front.max(axis=0)
        full = np.where(worst > low, worst - low, 1.0)
        span = np.where(high > low, high - low, full)
        scaled = np.full(len(low), REFERENCE) if reference is None else (np.asarray(reference, dtype=float) - low) / span
        return cls(low=low, span=span, reference=scaled, total=hypervolume((front - low) / span, scaled), low_full=low, span_full=full,
                   total_full=hypervolume((front - low) / full, np.ones(len(low))), front_size=len(np.unique(front, axis=0)))

    @property
    def key(self) -> tuple[float, ...]:
        """The numbers that figures depend on."""
        return tuple(round(float(x), 12) for x in (*self.low, *self.span, *self.reference, self.total))

    def share(self, points: Array) -> float:
        """Hypervolume of points (n, m), as a share of the true front's."""
        return hypervolume((points - self.low) / self.span, self.reference) / self.total

    def share_full(self, points: Array) -> float:
        """The same in the scale of all rows."""
        return hypervolume((points - self.low_full) / self.span_full, np.ones(len(self.low_full))) / self.total_full


def curves(goal: Goal, outcomes: Sequence[Outcome]) -> tuple[Array, Array]:
    """(t,) and (t,): share after each trial, in both scales, of the true values of the front that a user would be handed: the valid trials
    that are non-dominated by what was observed."""
    shares, full = np.zeros(len(outcomes)), np.zeros(len(outcomes))
    front: list[Outcome] = []
    for t, new in enumerate(outcomes):
        same = any(np.array_equal(new.observed, old.observed) and np.array_equal(new.true, old.true) for old in front)
        if new.valid and not same:
            grown = [*front, new]
            keep = non_dominated(np.array([o.observed for o in grown]))
            if keep[-1]:
                front = [o for o, k in zip(grown, keep, strict=True) if k]
                points = np.array([o.true for o in front])
                shares[t], full[t] = goal.share(points), goal.share_full(points)
                continue
        if t:
            shares[t], full[t] = shares[t - 1], full[t - 1]
    return shares, full


def checkpoints(budget: int) -> tuple[int, ...]:
    """The trial counts at which figures are given."""
    return tuple(sorted({c for c in CHECKPOINTS if c < budget} | {budget}))


# ---- tables over the runs: columns problem, sampler, seed, trial (from 1), hv, hv_full, cpu_ms -------------------------


def summary(runs: pd.DataFrame, *, budget: int) -> pd.DataFrame:
    """One row a sampler, best at the end first: mean and sd over seeds at the checkpoints, CPU time, distinct trials."""
    rows = []
    for sampler, group in runs.groupby("sampler", sort=False):
        row: dict[str, object] = {"sampler": sampler, "seeds": group["seed"].nunique()}
        for t in checkpoints(budget):
            at = group[group["trial"] == t]
            row |= {f"hv@{t}": at["hv"].mean(), f"sd@{t}": at["hv"].std(ddof=0), f"full@{t}": at["hv_full"].mean()}
        row["cpu_ms"] = group["cpu_ms"].mean()
        row["cpu_ms_last"] = group[group["trial"] > 0.9 * budget]["cpu_ms"].mean()
        row["distinct"] = group.groupby("seed")["config"].nunique().mean()
        rows.append(row)
    return pd.DataFrame(rows).sort_values(f"hv@{budget}", ascending=False, ignore_index=True)


def trials_to_reach(runs: pd.DataFrame, *, budget: int) -> pd.DataFrame:
    """(samplers, samplers): trials after which the mean curve of the row's sampler has the value of the column's at the end; NaN: never."""
    mean = runs.groupby(["sampler", "trial"], sort=False)["hv"].mean().unstack("trial")
    end = mean[budget]
    reach = {peer: [next((int(t) for t in mean.columns if mean.at[s, t] >= end[peer]), np.nan) for s in mean.index] for peer in mean.index}
    return pd.DataFrame(reach, index=mean.index)


def comparisons(runs: pd.DataFrame, *, ours: str, at: Sequence[int]) -> pd.DataFrame:
    """Two-sided Wilcoxon signed-rank tests of `ours` against every peer at each count, paired by seed, Holm-corrected over all of them.

    verdict: above or below where the corrected p is under 0.05 (with five pairs the smallest p is 0.0625: never).
    """
    rows = []
    for t in at:
        table = runs[runs["trial"] == t].pivot(index="seed", columns="sampler", values="hv")
        for peer in (s for s in runs["sampler"].unique() if s != ours):
            pairs = table[[ours, peer]].dropna()
            gap = (pairs[ours] - pairs[peer]).to_numpy()
            p = 1.0 if not len(gap) or np.all(gap == 0) else float(wilcoxon(gap, zero_method="zsplit").pvalue)
            rows.append({"trials": t, "peer": peer, "pairs": len(gap), "difference": gap.mean() if len(gap) else np.nan, "p": p})
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    table["p_holm"] = holm(table["p"].to_numpy())
    table["verdict"] = [("above" if d > 0 else "below") if p < SIGNIFICANT else "-"
                        for d, p in zip(table["difference"], table["p_holm"], strict=True)]
    return table


def holm(p: Array) -> Array:
    """(k,) p-values corrected for k tests by Holm's step-down method."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def derived_seed(*parts: object) -> int:
    """A 31-bit seed out of names and numbers, the same everywhere."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def as_markdown(table: pd.DataFrame, *, formats: Mapping[str, str]) -> str:
    """A Markdown table; formats: of the columns that have one."""
    shown = table.copy().astype(object)
    for column, form in formats.items():
        if column in shown:
            shown[column] = [format(v, form) if pd.notna(v) else "-" for v in table[column]]
    shown = shown.where(pd.notna(shown), "-")
    lines = ["| " + " | ".join(map(str, shown.columns)) + " |", "|" + "---|" * len(shown.columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in shown.itertuples(index=False)])
