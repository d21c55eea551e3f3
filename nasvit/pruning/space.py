"""What a prune search chooses from: plans of one dense model, given by a few knots and one strength.

A trial chooses *where* the model gives way (appetites at three knots along the depth) and how hard (strength). Blocks between knots
are interpolated, so that 60 trials are enough for 12 or 24 blocks. With a target latency the strength is not chosen but solved, so
that every trial lands near the target and the search compares shapes at equal latency.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nasvit.arch import keep_count
from nasvit.errors import ArchError, ConfigError
from nasvit.pruning.dense import check
from nasvit.pruning.families import Layout
from nasvit.pruning.plan import BlockPlan, Plan, PlanError
from nasvit.pruning.speed import OutOfReach
from nasvit.registry import unknown

CHOICES = ("tokens", "heads", "mlp", "depth", "embed")
KNOTS = 3
APPETITES = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST = {"tokens": 0.75, "heads": 0.75, "head_dim": 0.5, "mlp": 0.875, "depth": 0.5, "embed": 0.5}
"""Share that is taken away where appetite and strength are 1."""
DRAWS = 100
BEYOND = 20
"""So many plans are tried though they are predicted to miss the target, where all draws are: predictions learn from what they miss."""
STRENGTHS = 200
"""Steps of the strength."""
PROBED = 150
"""Strength of the plans that show what each choice is worth in time."""
GRANULES = {"fp32": 8, "int8": 16}
"""Widths are multiples of this, by the precision of the device: vector units read so many numbers at once (AVX2's eight in float32, and
every wider unit a multiple; NVIDIA asks for 8 in half precision and 16 in int8: Deep Learning Performance guide, matrix multiplication)."""

Solver = Callable[[Callable[[int, int], Plan]], tuple[int, int]]
"""From (strength, fine) to plans, to the two that are wanted. Raises ArchError where none will do."""
SOLVED = ("strength", "fine")
"""Parameters that are solved for where there is a target."""
NAMED = ("operator", "dropped")
"""Parameters whose values are names."""
PARTS = ("block", "attention", "mlp")
"""What depth takes away of the blocks that it chooses: all, or one of its two parts."""


def parse_choices(text: str) -> tuple[str, ...]:
    """`parse_choices("tokens,mlp")`; raises ConfigError naming the accepted ones."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CHOICES:
            raise ConfigError(unknown("choice of --space", name, list(CHOICES)))
    if not names:
        raise ConfigError(f"--space names nothing; accepted: {', '.join(CHOICES)}, with commas between")
    return tuple(name for name in CHOICES if name in names)


class _Drawn:
    """Answers like a trial: given values first, the rest at random."""

    def __init__(self, rng: random.Random | None, given: Mapping[str, Any]) -> None:
        self.rng, self.given, self.params = rng, given, dict[str, Any]()

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = self.given.get(name)
        if value not in choices:
            if self.rng is None:
                raise ArchError(f"{name} is missing, and nothing draws it")
            value = self.rng.choice(list(choices))
        self.params[name] = value
        return value

    def suggest_int(self, name: str, low: int, high: int) -> int:
        value = self.given.get(name)
        if low == high or value is None or not low <= value <= high:
            if low != high and self.rng is None:
                raise ArchError(f"{name} is missing, and nothing draws it")
            value = low if low == high or self.rng is None else self.rng.randint(low, high)
        self.params[name] = int(value)
        return int(value)


class PruneSpace:
    """Plans of `dense`. choices: of CHOICES; of all of them, what the layout cannot give is left out, and one that was chosen from them and
    that it cannot give is an error.

    orders: for each of PARTS, block indices from the least important; they go in this order. solve: finds the strength for a target, and
    the finer one of MLPs and tokens, which come in small steps where blocks and heads jump; without it, strength is a choice like the
    others. granule: what widths are multiples of.
    """

    def __init__(self, dense: Plan, *, layout: Layout, choices: Sequence[str], orders: Mapping[str, Sequence[int]],
                 solve: Solver | None = None, granule: int = GRANULES["fp32"]) -> None:
        self.dense, self.layout, self.solve, self.granule = dense, layout, solve, granule
        self.operators = tuple(o for o in layout.operators if o != "none")
        able = {"block": [b.drop_block for b in layout.blocks], "attention": [b.drop_attention and b.heads > 0 for b in layout.blocks],
                "mlp": [b.drop_mlp and b.mlp_dim > 0 for b in layout.blocks]}
        orders = {part: tuple(i for i in orders[part] if able[part][i]) for part in PARTS}
        self.orders = {part: order for part, order in orders.items() if len(order) > 1}
        possible = {"tokens": bool(self.operators), "heads": any(b.cut_heads or b.cut_head_dim for b in layout.blocks),
                    "mlp": any(b.cut_mlp for b in layout.blocks), "depth": bool(self.orders), "embed": layout.embed_granule > 0}
        self.choices = tuple(c for c in CHOICES if c in choices and possible[c])
        if not self.choices or (len(self.choices) < len(choices) and set(choices) != set(CHOICES)):
            raise ConfigError(f"{dense.source.name} cannot be pruned by {', '.join(c for c in choices if not possible[c])}; "
                              f"possible: {', '.join(c for c in CHOICES if possible[c])}")
        self._params: dict[str, dict[str, Any]] = {}
        self._beyond: set[frozenset[tuple[str, Any]]] = set()

    # ---- what a search needs of a space ------------------------------------------------------------------------------------

    def suggest(self, trial: Any) -> Plan:
        """The plan of a trial's choices. Raises ArchError for one that touches nothing, or none at the target."""
        shape = {name: trial.suggest_categorical(name, values) for name, values in self.parameters().items()}
        if not any(value for name, value in shape.items() if name not in NAMED):
            raise ArchError("a plan that takes nothing away is no pruning")
        if self.solve is None:
            solved = {"strength": trial.suggest_int("strength", 1, STRENGTHS)}
        else:
            known = getattr(trial, "params", {})
            strength, fine = (known["strength"], known.get("fine", known["strength"])) if "strength" in known else self._solved(shape)
            # on record like what was chosen
            solved = {name: trial.suggest_int(name, step, step) for name, step in (("strength", strength), ("fine", fine))}
        made = self.plan(shape, **solved)
        if made == self.dense:
            raise ArchError("a plan that takes nothing away is no pruning")
        if (why := _impossible(made)) is not None:  # the loop draws another where an Arch is impossible, and this is one
            raise ArchError(why)
        self._params[made.id] = {**shape, **solved}
        return made

    def sample(self, rng: random.Random) -> Plan:
        """A random plan; raises ArchError where a hundred draws give none."""
        return self.from_parameters({}, rng=rng)

    def from_parameters(self, params: Mapping[str, Any], *, rng: random.Random | None = None) -> Plan:
        """The plan of these parameters, missing ones drawn. Where every draw is predicted to miss the target, the one that is predicted
        to miss it by least, at its strongest (BEYOND times). Raises ArchError."""
        kept = {k: v for k, v in params.items() if self.solve is None or k not in SOLVED or rng is None}
        last: object = "it was tried before"
        far: list[tuple[float, dict[str, Any]]] = []
        for _ in range(DRAWS if rng is not None else 1):
            drawn = _Drawn(rng, kept)
            try:
                made = self.suggest(drawn)
                if rng is None or not self._was_beyond(drawn.params):
                    return made
            except OutOfReach as error:
                last = error
                far.append((error.ms, drawn.params))
            except ArchError as error:
                last = error
        for _, shape in sorted(far, key=lambda one: one[0]) if rng is not None and len(self._beyond) < BEYOND else ():
            self._beyond.add(frozenset(shape.items()))
            try:
                return self.suggest(_Drawn(None, shape))
            except ArchError as error:  # the strongest of these choices cannot be built
                self._beyond.remove(frozenset(shape.items()))
                last = error
        raise ArchError(f"no plan was found in {DRAWS} draws; the last: {last}")

    def _was_beyond(self, params: Mapping[str, Any]) -> bool:
        """Whether these are choices that were tried at the strongest though they were predicted to miss."""
        return params["strength"] == STRENGTHS and frozenset((k, v) for k, v in params.items() if k not in SOLVED) in self._beyond

    def _solved(self, shape: Mapping[str, Any]) -> tuple[int, int]:
        """Strength and fine for the target; the strongest for a shape that is tried though it is predicted to miss."""
        assert self.solve is not None
        try:
            return self.solve(lambda strength, fine: self.plan(shape, strength, fine))
        except OutOfReach:
            if frozenset(shape.items()) not in self._beyond:
                raise
            return STRENGTHS, STRENGTHS

    def size(self) -> int:
        """How many choices there are, rounded duplicates included."""
        count = 1 if self.solve is not None else STRENGTHS
        for values in self.parameters().values():
            count *= len(values)
        return count

    def arch_parameters(self, arch: Plan) -> Mapping[str, Any]:
        """The parameters that gave this plan here."""
        return self._params[arch.id]

    def probes(self) -> list[Plan]:
        """A plan for each choice that takes away by it alone, tokens by each operator: what a device needs to be asked before strengths can
        be solved for."""
        names = self.parameters()

        def alone(begins: str, value: float, **named: str) -> dict[str, Any]:
            return {**{n: value if n.startswith(begins) else 0.0 for n in names if n not in NAMED}, **named}

        shapes = [alone("tokens.", 0.5, operator=operator) for operator in self.operators if "tokens" in self.choices]
        shapes += [alone(begins, 1.0) for begins in ("heads.", "mlp.", "embed")] + [alone("head_dim", 0.5)]
        shapes += [alone("depth", 1.0, dropped=part) for part in list(self.orders)[:1] if "depth" in self.choices]  # one shows it
        plans = {made.id: made for made in (self.plan(shape, PROBED) for shape in shapes) if made != self.dense}
        return [made for made in plans.values() if _impossible(made) is None]

    # ---- from choices to a plan ---------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, tuple[Any, ...]]:
        """Name to values of everything chosen but the strength."""
        found: dict[str, tuple[Any, ...]] = {}
        if "tokens" in self.choices:
            if len(self.operators) > 1:
                found["operator"] = self.operators
            found |= {f"tokens.{k}": APPETITES for k in range(KNOTS)}
        if "heads" in self.choices:
            if any(b.cut_heads for b in self.layout.blocks):
                found |= {f"heads.{k}": APPETITES for k in range(KNOTS)}
            if any(b.cut_head_dim for b in self.layout.blocks):
                found["head_dim"] = APPETITES[:3]
        if "mlp" in self.choices:
            found |= {f"mlp.{k}": APPETITES for k in range(KNOTS)}
        found |= {name: APPETITES for name in ("depth", "embed") if name in self.choices}
        if "depth" in self.choices and len(self.orders) > 1:
            found["dropped"] = tuple(self.orders)
        return found

    def plan(self, shape: Mapping[str, Any], strength: int, fine: int | None = None) -> Plan:
        """The plan of these appetites at this strength (1 to STRENGTHS); fine: that of MLPs and tokens (None: the same)."""
        s, small = strength / STRENGTHS, (strength if fine is None else fine) / STRENGTHS
        heads, mlp = (_between([shape.get(f"{c}.{k}", 0.0) for k in range(KNOTS)], len(self.dense.blocks)) for c in ("heads", "mlp"))
        dropped = shape.get("dropped", next(iter(self.orders), "block"))
        order = self.orders.get(dropped, ())
        gone = set(order[: round(s * shape.get("depth", 0.0) * MOST["depth"] * len(order))])
        operator = shape.get("operator", self.operators[0] if self.operators else "none")
        ratios = _keep_ratios([small * shape.get(f"tokens.{k}", 0.0) for k in range(KNOTS)], len(self.dense.blocks), operator=operator,
                              tokens=self.layout.tokens)
        blocks: list[BlockPlan] = []
        for i, block in enumerate(self.dense.blocks):
            before = blocks[-1].keep_ratio if blocks else 1.0
            if i in gone and dropped == "block":  # it takes no tokens away either
                blocks.append(BlockPlan(heads=0, head_dim=0, mlp_dim=0, keep_ratio=before))
                continue
            no_attention, no_mlp = (i in gone and dropped == part for part in ("attention", "mlp"))
            form = self.layout.blocks[i]
            cut_heads = _granular(block.heads, s * heads[i] * MOST["heads"] * form.cut_heads, granule=form.head_step)
            cut_dim = _granular(block.head_dim, s * shape.get("head_dim", 0.0) * MOST["head_dim"] * form.cut_head_dim, granule=self.granule)
            cut_mlp = _granular(block.mlp_dim, small * mlp[i] * MOST["mlp"] * form.cut_mlp, granule=self.granule)
            blocks.append(BlockPlan(heads=0 if no_attention else cut_heads, head_dim=0 if no_attention else cut_dim,
                                    mlp_dim=0 if no_mlp else cut_mlp, keep_ratio=before if no_attention or not form.tokens else ratios[i]))
        granule = math.lcm(self.granule, max(1, self.layout.embed_granule))
        widths = tuple(_granular(dim, s * shape.get("embed", 0.0) * MOST["embed"], granule=granule) for dim in self.dense.embed_dims)
        return Plan(source=self.dense.source, blocks=tuple(blocks), embed_dims=widths,
                    operator=operator if any(b.keep_ratio < 1 for b in blocks) else "none")


def _impossible(plan: Plan) -> str | None:
    """Why the plan cannot be built; None where it can."""
    try:
        check(plan)
    except PlanError as error:
        return str(error)
    return None


def _between(knots: Sequence[float], count: int) -> list[float]:
    """Values at `count` places, linear between knots at the ends and evenly between."""
    if count == 1:
        return [knots[0]]
    found = []
    for i in range(count):
        place = i / (count - 1) * (len(knots) - 1)
        low = min(int(place), len(knots) - 2)
        found.append(knots[low] + (place - low) * (knots[low + 1] - knots[low]))
    return found


def _granular(size: int, share: float, *, granule: int) -> int:
    """`size` less this share, a multiple of the granule where it is less at all; 0 stays 0."""
    kept = round(size * (1 - share) / granule) * granule
    return size if share == 0 or kept >= size else max(min(granule, size), kept)


def _keep_ratios(appetites: Sequence[float], depth: int, *, operator: str, tokens: int) -> list[float]:
    """Shares of the tokens behind each block, falling; multiples of 0.01, and of those that keep equally many always the same one.

    slow_fast and topk_fuse choose anew at three places (a quarter, a half and three quarters of the depth, as EViT does), merge takes
    some away in every block, a third of the depth for each knot (ToMe takes equally many in each).
    """
    left, ratios = 1.0, []
    levels = []
    for appetite in appetites:
        levels.append(left * (1 - appetite * MOST["tokens"]))
        left = levels[-1]
    for i in range(depth):
        if operator == "merge":
            place = (i + 1) / depth * len(levels)
            low = min(int(place), len(levels) - 1)
            before = ([1.0, *levels])[low]
            value = before + (place - low) * (levels[low] - before) if place < len(levels) else levels[-1]
        else:
            passed = sum(i >= -(-(k + 1) * depth // (len(levels) + 1)) for k in range(len(levels)))
            value = ([1.0, *levels])[passed]
        ratios.append(_ratio_of(keep_count(tokens, max(0.01, round(value, 2))), tokens=tokens))
    return ratios


def _ratio_of(kept: int, *, tokens: int) -> float:
    """The multiple of 0.01 that stands for all that keep so many: plans that are one network have one id, and are tried once."""
    return next(h / 100 for h in itertools.count(max(1, 100 * kept // tokens)) if keep_count(tokens, h / 100) == kept)
