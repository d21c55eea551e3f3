"""Proxy truth: how the rungs and the zero-cost proxies of a run rank the networks that it trained longer. From the files alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nasvit.report.tables import Run
from nasvit.results.correlation import Correlation, kendall_interval
from nasvit.results.record import TrialRecord, read

FILE = "truth.jsonl"
ENOUGH = 0.5
"""A rung whose tau is below this does not rank networks as a longer training does."""
FEW = 6
"""Fewer networks than this let no rung be called good: by chance alone four agree well once in six."""
COSTS = ("params_m", "macs_g")
_SEED = 0  # of the bootstrap, so that a report says the same twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How one proxy ranks the networks. tau is None where too few have it, or it is constant. rung: 0 for what is no rung."""

    name: str
    rung: int
    tau: Correlation | None

    @property
    def poor(self) -> bool:
        """A rung under ENOUGH. Zero-cost proxies and costs are features with a learned sign: they are never poor."""
        return bool(self.rung and self.tau is not None and self.tau.value < ENOUGH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """networks trained longer, for `steps`; rankings: the rungs from the lowest, then the others by the size of their tau."""

    networks: int
    steps: int
    rankings: tuple[Ranking, ...]

    @property
    def poor(self) -> tuple[Ranking, ...]:
        """The rungs that cannot be trusted."""
        return tuple(r for r in self.rankings if r.poor)


def truth_of(run: Run) -> Truth | None:
    """The truth of a run, None where it has none. Raises RunError for a damaged file."""
    longest = [r for r in read(run.path / FILE) if r.status == "complete" and "accuracy" in r.objectives]
    steps = max((_steps(r) for r in longest), default=0)
    longest = [r for r in longest if _steps(r) == steps]
    if not longest:
        return None
    rungs = sorted({r.rung for r in run.records if r.status == "complete" and r.rung >= 1})
    rankings = [_ranking(f"rung {rung}", _at(run.records, rung), longest, rung=rung) for rung in rungs]
    others = {name: _values(run.records, name) for name in COSTS}
    for name in sorted({str(n) for r in longest for n in _scores(r)}):
        others[name] = {r.arch_id: float(v) for r in longest if isinstance(v := _scores(r).get(name), int | float)}
    rest = [_ranking(name, values, longest, rung=0) for name, values in others.items() if name not in ("params", "macs")]
    rest.sort(key=lambda r: -abs(r.tau.value) if r.tau is not None else math.inf)
    return Truth(networks=len(longest), steps=steps, rankings=tuple(rankings + rest))


def verdict(run: Run, truth: Truth | None) -> str:
    """What to make of it, in words; why there is none, where there is none."""
    if truth is None:
        said = run.summary.get("truth")
        reason = said.get("reason") if isinstance(said, Mapping) else None
        return f"No network was trained longer: {reason}." if reason else ""
    if truth.poor:
        named = ", ".join(f"{r.name} {r.tau.value:.2f} ({r.tau.low:.2f} to {r.tau.high:.2f})" for r in truth.poor if r.tau is not None)
        return (f"Kendall's tau is under {ENOUGH:g} for {named}: what was chosen there is hardly what a longer training would have chosen. "
                "Search with longer rungs.")
    rungs = [r for r in truth.rankings if r.rung]
    judged = [r.name for r in rungs if r.tau is not None and r.tau.n >= FEW]
    if not judged:
        return "Too few networks have a result at a rung and a longer training to say how far they agree."
    if len(judged) == len(rungs):
        return f"Every rung ranks these networks with Kendall's tau of {ENOUGH:g} or more."
    return f"Kendall's tau is {ENOUGH:g} or more for {', '.join(judged)}; of the other rungs too few networks were trained longer to say."


def _ranking(name: str, values: Mapping[str, float], longest: Sequence[TrialRecord], *, rung: int) -> Ranking:
    pairs = [(values[r.arch_id], r.objectives["accuracy"]) for r in longest if r.arch_id in values]
    return Ranking(name=name, rung=rung, tau=kendall_interval([a for a, _ in pairs], [b for _, b in pairs], seed=_SEED))


def _at(records: Sequence[TrialRecord], rung: int) -> dict[str, float]:
    return _values([r for r in records if r.rung == rung], "accuracy")


def _values(records: Sequence[TrialRecord], name: str) -> dict[str, float]:
    return {r.arch_id: r.objectives[name] for r in records if r.status == "complete" and name in r.objectives}


def _scores(record: TrialRecord) -> Mapping[str, Any]:
    scores = record.details.get("scores")
    return scores if isinstance(scores, Mapping) else {}


def _steps(record: TrialRecord) -> int:
    steps = record.details.get("truth_steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) else 0
