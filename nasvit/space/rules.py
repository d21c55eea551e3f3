"""What a stage of a search space allows, and how its choices become a Stage of an Arch, and back.

The space speaks in ratios (`mlp_ratio`, `head_dim`, `overlap_ratio`); an Arch holds the integers. Attention in a space is as wide as its
stage, so `head_dim` there is `num_heads`; the Arch's own `head_dim`, for heads that do not fill the stage, is no choice of a space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import TypeVar

from nasvit.arch import Block, Grid, MixerSpec, Scalar, Stage
from nasvit.vocabulary import accepted, forced
from nasvit.yaml_file import KeyPath

T = TypeVar("T")

# What a parameter of the space becomes in an Arch, where the two differ.
ARCH_NAME = {"head_dim": "num_heads", "overlap_ratio": "overlap"}
# Asked last, because whether they are a choice at all depends on another parameter.
LATE = ("overlap_ratio", "overlap", "shift")


@dataclass(frozen=True, slots=True)
class Values:
    """What a key of the file allows, sorted where the values are numbers; `key` is its place in the file."""

    values: tuple[Scalar, ...]
    key: KeyPath

    @property
    def ordered(self) -> bool:
        """Whether rank means something: numbers, not names and not booleans."""
        return not isinstance(self.values[0], (bool, str))


Params = Mapping[str, Values]
Pick = Callable[[str, Values], Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRules:
    """What one stage allows. A block's mixers are one label: "window", or "window+fsla" for two branches."""

    embed_dim: Values
    depth: Values
    mixers: Values
    mlp_ratio: Values
    keep_ratio: Values
    per_block: frozenset[str]
    segments: int | None
    params: Mapping[str, Params]

    def mixer_names(self) -> list[str]:
        """Every mixer of every label, sorted."""
        return sorted({name for label in self.mixers.values for name in str(label).split("+")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One choice: its path, its values, and whether their order means something (then they are sorted)."""

    path: str
    values: tuple[Scalar, ...]
    ordered: bool

    @property
    def step(self) -> int | float | None:
        """The spacing of evenly spaced numbers, else None."""
        if not self.ordered:
            return None
        exact = [Decimal(str(v)) for v in self.values]
        steps = {b - a for a, b in pairwise(exact)}
        if len(steps) != 1:
            return None
        return int(steps.pop()) if isinstance(self.values[0], int) else float(steps.pop())


Ask = Callable[[Parameter], Scalar]


# ---- from the space's parameters to the Arch's ----------------------------------------------------------------------


class Impossible(Exception):
    """A parameter value that cannot be built at this width and grid; `name` is the space's name of the parameter."""

    def __init__(self, name: str, value: Scalar, wanted: str) -> None:
        super().__init__(f"{name} {value!r} is not possible; accepted: {wanted}")
        self.name = name


def mixer_params(params: Params, *, embed_dim: int, grid: Grid, pick: Pick) -> dict[str, Scalar]:
    """The Arch's parameters of one mixer; `pick(name, values)` is asked for each that is a choice here, and not forced."""
    made: dict[str, Scalar] = {}
    given: dict[str, Scalar] = {}
    for name, values in params.items():
        target = ARCH_NAME.get(name, name)
        only = forced(target, made, grid=grid)
        if only is not None:
            made[target] = only
            continue
        given[name] = values.values[0] if len(values.values) == 1 else pick(name, values)
        made[target] = _integer(name, given[name], made, embed_dim=embed_dim, grid=grid)
    for name, value in given.items():
        wanted = accepted(ARCH_NAME.get(name, name), made, embed_dim=embed_dim, grid=grid)
        if wanted is not None:
            raise Impossible(name, value, wanted)
    return made


def _integer(name: str, value: Scalar, made: Mapping[str, Scalar], *, embed_dim: int, grid: Grid) -> Scalar:
    if name == "head_dim":
        if not isinstance(value, int) or isinstance(value, bool) or value < 1 or embed_dim % value:
            divisors = ", ".join(str(d) for d in range(1, embed_dim + 1) if embed_dim % d == 0)
            raise Impossible(name, value, f"a divisor of embed_dim {embed_dim}: {divisors}")
        return embed_dim // value
    if name == "overlap_ratio":
        depth = made.get("cluster_depth")
        if not isinstance(depth, int) or isinstance(value, (bool, str)) or not 0 <= value <= 1:
            raise Impossible(name, value, "0 to 1, a share of the cluster, beside a cluster_depth")
        return half_up((grid[0] * grid[1] >> min(max(depth, 0), 63)) * value)
    return value


def half_up(value: float) -> int:
    """The nearest integer, halves upwards (Python's round goes to the even one)."""
    return math.floor(value + 0.5)


def outcomes(make: Callable[[Pick], T]) -> Iterator[tuple[dict[str, Scalar], T]]:
    """Every (answers, result) of a function that picks values, by walking all answers depth first."""
    walk = _Walk()
    while True:
        result = make(walk.pick)
        yield dict(walk.answers), result
        if not walk.advance():
            return


class _Walk:
    """Answers by prefix, then by first values; `advance` moves to the next answers in depth-first order."""

    def __init__(self) -> None:
        self.prefix: list[int] = []
        self.trail: list[tuple[int, int]] = []
        self.answers: dict[str, Scalar] = {}

    def pick(self, name: str, values: Values) -> Scalar:
        index = self.prefix[len(self.trail)] if len(self.trail) < len(self.prefix) else 0
        self.trail.append((index, len(values.values)))
        self.answers[name] = values.values[index]
        return self.answers[name]

    def advance(self) -> bool:
        while self.trail and self.trail[-1][0] + 1 == self.trail[-1][1]:
            self.trail.pop()
        self.prefix = [index for index, _ in self.trail]
        self.trail, self.answers = [], {}
        if self.prefix:
            self.prefix[-1] += 1
        return bool(self.prefix)


def build_stage(rules: StageRules, *, stage: int, grid: Grid, ask: Ask) -> Stage:
    """The stage of these answers. Asked in this order: embed_dim, depth, mixers, their parameters, mlp_ratio, keep_ratio."""
    s = stage

    def picker(scope: str) -> Pick:
        def pick(name: str, values: Values) -> Scalar:
            if len(values.values) == 1:
                return values.values[0]
            return ask(Parameter(path=f"{scope}.{name}", values=values.values, ordered=values.ordered))

        return pick

    shared = picker(f"s{s}")
    dim, depth = int(shared("embed_dim", rules.embed_dim)), int(shared("depth", rules.depth))
    own = [picker(f"s{s}.b{b}") for b in range(depth)]

    def each(name: str, make: Callable[[int, Pick], T]) -> list[T]:
        return [make(b, pick) for b, pick in enumerate(own)] if name in rules.per_block else [make(0, shared)] * depth

    def specs(label: Scalar, pick: Pick) -> tuple[MixerSpec, ...]:
        return tuple(MixerSpec.of(name, **mixer_params(rules.params[name], embed_dim=dim, grid=grid,
                                                       pick=lambda p, v, name=name: pick(f"{name}.{p}", v)))  # type: ignore[misc]
                     for name in str(label).split("+"))

    labels = each("mixers", lambda b, pick: pick("mixers", rules.mixers))
    mixers = each("mixer_params", lambda b, pick: specs(labels[b], pick))
    ratios = each("mlp_ratio", lambda b, pick: float(pick("mlp_ratio", rules.mlp_ratio)))
    if rules.segments:
        runs = [float(picker(f"s{s}.g{g}")("keep_ratio", rules.keep_ratio)) for g in range(rules.segments)]
        keep = [runs[b * rules.segments // depth] for b in range(depth)]
    else:
        keep = each("keep_ratio", lambda b, pick: float(pick("keep_ratio", rules.keep_ratio)))
    blocks = [Block(mixers=mixers[b], mlp_dim=half_up(dim * ratios[b]), keep_ratio=keep[b]) for b in range(depth)]
    return Stage(embed_dim=dim, blocks=tuple(blocks))


def _at_depth(rules: StageRules, labels: list[int], depth: int) -> int:
    """Points of a stage at one depth and width; `labels` counts the parameter combinations of each choice of mixers."""
    if "mixers" in rules.per_block:
        mixers = int(sum(labels) ** depth)
    else:
        mixers = sum(ways**depth if "mixer_params" in rules.per_block else ways for ways in labels)
    ratios = len(rules.mlp_ratio.values) ** (depth if "mlp_ratio" in rules.per_block else 1)
    segments = rules.segments or (depth if "keep_ratio" in rules.per_block else 1)
    return int(mixers * ratios * len(rules.keep_ratio.values) ** segments)


def mixer_answer(made: Mapping[str, Scalar], *, name: str, values: tuple[Scalar, ...], dim: int, grid: Grid) -> Scalar | None:
    """The value of the space's parameter `name` in a mixer's Arch parameters, None where it has none."""
    if name == "head_dim":
        heads = made.get("num_heads")
        return dim // int(heads) if heads else None
    if name == "overlap_ratio":
        cluster = grid[0] * grid[1] // 2 ** int(made.get("cluster_depth", 0))
        return next((v for v in values if half_up(cluster * float(v)) == made.get("overlap")), None)
    return made.get(name)


def first_block(segment: int, *, depth: int, segments: int) -> int:
    """The first block of a segment; `depth` where the segment has none."""
    return next((b for b in range(depth) if b * segments // depth == segment), depth)


def blocks_of(path: str, *, depth: int, rules: StageRules) -> int:
    """How many blocks a choice is about."""
    scope = path.split(".")[1]
    if scope[0] == "g" and scope[1:].isdigit():
        return sum(b * (rules.segments or 1) // depth == int(scope[1:]) for b in range(depth))
    return 1 if scope[0] == "b" and scope[1:].isdigit() else depth


def stage_size(rules: StageRules, *, grid: Grid) -> int:
    """The exact number of different stages."""
    dim = int(rules.embed_dim.values[0])  # what is asked does not depend on the width

    def count(mixer: str) -> int:
        return sum(1 for _ in outcomes(lambda pick: mixer_params(rules.params[mixer], embed_dim=dim, grid=grid, pick=pick)))

    counts = {mixer: count(mixer) for mixer in rules.mixer_names()}
    labels = [math.prod(counts[mixer] for mixer in str(label).split("+")) for label in rules.mixers.values]
    return len(rules.embed_dim.values) * sum(_at_depth(rules, labels, int(depth)) for depth in rules.depth.values)


