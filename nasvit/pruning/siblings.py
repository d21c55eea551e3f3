"""The sibling test: is the pruned model beaten by a smaller member of its own family, off the shelf? Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

LADDERS: tuple[tuple[str, ...], ...] = (
    ("zepto", "atto", "femto", "pico", "nano", "xtiny", "tiny", "xsmall", "small", "medium", "base", "large", "huge", "giant", "gigantic"),
    ("xxs24", "xxs36", "xs24", "s24", "s36", "m36", "m48"), ("b0", "b1", "b2", "b3", "b4", "b5"), ("128s", "128", "192", "256", "384"),
    ("xs", "s", "m", "t"))
"""Words of size in model names, each ladder from its smallest."""


def smaller_names(name: str, *, exists: Callable[[str], bool]) -> list[str]:
    """Names that differ from `name` in one word of size, a smaller one, and exist; the largest of them first."""
    words = name.split("_")
    for place, word in enumerate(words):
        for ladder in LADDERS:
            if word in ladder:
                below = ladder[: ladder.index(word)]
                made = ("_".join([*words[:place], other, *words[place + 1 :]]) for other in reversed(below))
                found = [candidate for candidate in made if exists(candidate)]
                if found:
                    return found
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model under the run's protocol. latency interval in ms; accuracy None where no weights of it for these data are known, macs_g and
    params_m where they were not counted."""

    name: str
    latency_ms: float
    ci_low_ms: float
    ci_high_ms: float
    accuracy: float | None
    macs_g: float | None = None
    params_m: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """by: the sibling that dominates; text: what the report says."""

    dominated: bool | None
    by: str | None
    text: str


def verdict(pruned: Measured, siblings: Iterable[Measured], *, unmeasured: Sequence[str] = ()) -> Verdict:
    """Whether a sibling is at least as accurate and at least as fast, better in one of both.

    Latencies whose intervals overlap count as equal. unmeasured: names of siblings whose latency could not be had. dominated None: no
    sibling is known to dominate, and of one that may, accuracy or latency is not known; or there was none to compare with.
    """
    siblings, blind = tuple(siblings), []
    if not siblings and not unmeasured:
        return Verdict(dominated=None, by=None, text="no sibling was compared: timm has no smaller model of this one's family by name, and "
                                                     "none was given with --sibling")
    for sibling in siblings:
        faster = sibling.ci_high_ms < pruned.ci_low_ms
        if not faster and sibling.ci_low_ms > pruned.ci_high_ms:
            continue
        if sibling.accuracy is None or pruned.accuracy is None:
            blind.append(sibling)
        elif sibling.accuracy > pruned.accuracy or (sibling.accuracy == pruned.accuracy and faster):
            return Verdict(dominated=True, by=sibling.name, text=f"dominated by {sibling.name}: yes ({sibling.accuracy:.2%} at "
                           f"{sibling.latency_ms:.3g} ms, pruned {pruned.accuracy:.2%} at {pruned.latency_ms:.3g} ms)")
    unknown = []
    if blind:
        unknown.append(f"dominated by {', '.join(s.name for s in blind)}: unknown, as fast but without weights for these data; train it "
                       "(nasvit train --model) and name its checkpoint with --sibling")
    if unmeasured:
        unknown.append(f"dominated by {', '.join(unmeasured)}: unknown, it could not be measured (prune.json says why)")
    if unknown:
        return Verdict(dominated=None, by=None, text="; ".join(unknown))
    return Verdict(dominated=False, by=None, text="dominated by a smaller sibling: no")


def measured(name: str, latency: Mapping[str, float], *, accuracy: float | None) -> Measured:
    """From LatencyStats as a dictionary."""
    return Measured(name=name, latency_ms=latency["median_ms"], ci_low_ms=latency["ci_low_ms"], ci_high_ms=latency["ci_high_ms"],
                    accuracy=accuracy)
