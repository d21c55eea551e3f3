"""The file format of a search space: parsed, and checked so that every point of the space can be built.

A value is a scalar (fixed), `{choice: [..]}`, or `{range: [low, high], step: s}`, both ends included. The space speaks
in ratios (`mlp_ratio`, `head_dim`, `overlap_ratio`); an Arch holds the integers. The whole format: search_spaces/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

from nasvit.arch import Arch, Block, Grid, MixerSpec, Scalar, Stage, Stem, keep_count
from nasvit.errors import ArchError, ConfigError
from nasvit.registry import unknown
from nasvit.space.rules import ARCH_NAME, LATE, Impossible, Params, StageRules, Values, half_up, mixer_params, outcomes
from nasvit.yaml_file import KeyPath

MAX_STAGES, MAX_DEPTH, MAX_VALUES, MAX_WIDTH, MAX_IMAGE = 8, 64, 256, 8192, 2048
MAX_MIXER_POINTS = 20_000
PER_BLOCK = ("mixers", "mixer_params", "mlp_ratio", "keep_ratio")
STAGE_KEYS = ("embed_dim", "depth", "mixers", "per_block", "mlp_ratio", "keep_ratio", "segments")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceFile:
    """A parsed file: nothing is bound to an image size yet."""

    path: str
    text: str
    lines: Mapping[KeyPath, int]
    name: str
    description: str
    sizes: tuple[int, ...]
    default_size: Grid
    stem: Stem
    num_stages: Values
    stages: tuple[StageRules, ...]

    def fail(self, key: KeyPath, text: str) -> NoReturn:
        """Raise ConfigError naming file, line and key."""
        raise ConfigError(_located(self.path, self.lines, key, text))

    def grids(self, image_size: Grid) -> list[Grid]:
        """(height, width) in tokens of every stage; ConfigError where the stem cannot take this size."""
        stage = Stage(embed_dim=1, blocks=(Block(mixers=(MixerSpec.of("any"),), mlp_dim=1),))
        try:
            probe = Arch(image_size=image_size, in_channels=1, num_classes=1, stem=self.stem, stages=(stage,) * len(self.stages))
        except ArchError as error:
            self.fail(("stem", "stride"), str(error))
        return [probe.grid(s) for s in range(len(self.stages))]

    def check(self, image_size: Grid) -> None:
        """Raise ConfigError unless every point of the space can be built at this image size, and no two points are the same network."""
        for s, (rules, grid) in enumerate(zip(self.stages, self.grids(image_size), strict=True)):
            _check_stage(self, s, rules, grid)

    def check_all_sizes(self) -> None:
        """`check` at every image size the file allows, H != W included."""
        seen: set[tuple[int, Grid]] = set()
        for height in self.sizes:
            for width in self.sizes:
                for s, (rules, grid) in enumerate(zip(self.stages, self.grids((height, width)), strict=True)):
                    if (s, grid) not in seen:
                        seen.add((s, grid))
                        _check_stage(self, s, rules, grid)


def _check_stage(file: SpaceFile, s: int, rules: StageRules, grid: Grid) -> None:
    """Enumerate embed_dim x mixer x its own parameters, and embed_dim x mlp_ratio: what can go wrong in a stage."""
    if grid == (1, 1) and min(float(v) for v in rules.keep_ratio.values) < 1:
        file.fail(rules.keep_ratio.key, f"stage {s} has a 1x1 map: keep_ratio below 1.0 needs at least 2 tokens; accepted: 1.0")
    kept: dict[int, Scalar] = {}
    for share in rules.keep_ratio.values:
        first = kept.setdefault(keep_count(grid[0] * grid[1], float(share)), share)
        if first != share:
            same = f"keep_ratio {first} and {share} keep the same number of tokens of stage {s} ({grid[0]}x{grid[1]})"
            file.fail(rules.keep_ratio.key, same)
    for dim in rules.embed_dim.values:
        hidden: dict[int, Scalar] = {}
        for ratio in rules.mlp_ratio.values:
            made = half_up(int(dim) * float(ratio))
            if made < 1 or made in hidden:
                clash = f"the same mlp_dim {made} as {hidden[made]}" if made in hidden else "no hidden channel"
                file.fail(rules.mlp_ratio.key, f"mlp_ratio {ratio} gives {clash} at embed_dim {dim} of stage {s}")
            hidden[made] = ratio
        for mixer in rules.mixer_names():
            where = f"stage {s} ({grid[0]}x{grid[1]} tokens, embed_dim {dim}): mixer {mixer}"
            _check_mixer(file, where, rules.params[mixer], int(dim), grid)


def _check_mixer(file: SpaceFile, where: str, params: Params, dim: int, grid: Grid) -> None:
    seen: dict[frozenset[tuple[str, Scalar]], dict[str, Scalar]] = {}
    try:
        for answers, made in outcomes(lambda pick: mixer_params(params, embed_dim=dim, grid=grid, pick=pick)):
            first = seen.setdefault(frozenset(made.items()), answers)
            if first is not answers:
                name = next(n for n in answers if answers[n] != first.get(n))
                file.fail(params[name].key, f"{where}: {name} {first[name]!r} and {answers[name]!r} build the same network {made}")
    except Impossible as error:
        file.fail(params[error.name].key, f"{where}: {error}")


# ---- parsing --------------------------------------------------------------------------------------------------------


def parse_space(data: object, lines: Mapping[KeyPath, int], *, path: str, text: str) -> SpaceFile:
    """The SpaceFile of what `read_yaml` gave; raises ConfigError naming file, line and what is accepted."""
    read = _Reader(path, lines)
    top = read.mapping(data, (), required=("name", "image_size", "stem", "stages"), optional=("description", "mixers", "num_stages"))
    for key in ("name", "description"):
        if not isinstance(top.get(key, ""), str):
            read.fail((key,), f"must be text, not {top[key]!r}")
    sizes, default = read.image_size(top["image_size"])
    stem = read.mapping(top["stem"], ("stem",), required=("kind", "stride"), optional=("pos_embed", "class_token"))
    try:
        made_stem = Stem(**stem)
    except (ArchError, TypeError) as error:
        read.fail(("stem",), str(error))
    count = len(top["stages"]) if isinstance(top["stages"], list) else 0
    if not 1 <= count <= MAX_STAGES:
        read.fail(("stages",), f"must be a list of 1 to {MAX_STAGES} stages")
    num_stages = read.numbers(top.get("num_stages", count), ("num_stages",), low=1, high=count, whole=True)
    shared = {name: read.params(raw, ("mixers", name)) for name, raw in read.mapping(top.get("mixers", {}), ("mixers",)).items()}
    stages = tuple(read.stage(raw, ("stages", s), shared) for s, raw in enumerate(top["stages"]))
    used = sorted({name for stage in stages for name in stage.mixer_names()})
    for name in shared:
        if name not in used:
            read.fail(("mixers", name), unknown("mixer", name, used) + "; no stage chooses it")
    return SpaceFile(path=path, text=text, lines=lines, name=top["name"], description=top.get("description", ""), sizes=sizes,
                     default_size=default, stem=made_stem, num_stages=num_stages, stages=stages)


def _located(path: str, lines: Mapping[KeyPath, int], key: KeyPath, text: str) -> str:
    known = key
    while known and known not in lines:
        known = known[:-1]
    name = ".".join(str(part) for part in key)
    return f"{path}:{lines.get(known, 1)}: {name + ': ' if name else ''}{text}"


class _Reader:
    """Turns plain data into the parsed form, with the place of every error."""

    def __init__(self, path: str, lines: Mapping[KeyPath, int]) -> None:
        self.path, self.lines = path, lines

    def fail(self, key: KeyPath, text: str) -> NoReturn:
        raise ConfigError(_located(self.path, self.lines, key, text))

    def mapping(self, data: object, key: KeyPath, *, required: tuple[str, ...] = (),
                optional: tuple[str, ...] | None = None) -> dict[str, Any]:
        """A mapping with these keys; without `optional`, any keys beside the required ones."""
        if not isinstance(data, dict):
            self.fail(key, f"must be a mapping, not {data!r}")
        accepted_keys = [*required, *(optional or ())]
        for given in data:
            if optional is not None and given not in accepted_keys:
                self.fail((*key, given), unknown("key", given, accepted_keys))
        for name in required:
            if name not in data:
                self.fail(key, f"the key {name!r} is missing (accepted: {', '.join(accepted_keys)})")
        return data

    def values(self, raw: object, key: KeyPath) -> Values:
        """A scalar, `{choice: [..]}` or `{range: [low, high], step: s}`."""
        items: list[Any]
        if isinstance(raw, dict) and "range" in raw:
            items = self.range(self.mapping(raw, key, required=("range",), optional=("step",)), key)
        elif isinstance(raw, dict):
            items = self.mapping(raw, key, required=("choice",), optional=("range", "step"))["choice"]
            if set(raw) != {"choice"}:
                self.fail(key, "choice stands alone; step belongs to range")
            if not isinstance(items, list) or not 1 <= len(items) <= MAX_VALUES:
                self.fail((*key, "choice"), f"must be a list of 1 to {MAX_VALUES} values, not {items!r}")
        else:
            items = [raw]
        for item in items:
            if not isinstance(item, (bool, int, float, str)) or (isinstance(item, float) and not math.isfinite(item)):
                self.fail(key, f"must be a number, true, false or a name, {{choice: [..]}} or {{range: [low, high]}}, not {item!r}")
        if len({_kind(item) for item in items}) > 1:
            self.fail(key, f"mixes numbers, names or booleans: {items!r}")
        if len(set(items)) < len(items):
            self.fail(key, f"names a value twice: {items!r}")
        if any(isinstance(item, float) for item in items):
            items = [float(item) for item in items]
        return Values(values=tuple(items) if isinstance(items[0], str) else tuple(sorted(items)), key=key)

    def range(self, raw: dict[str, Any], key: KeyPath) -> list[int] | list[float]:
        ends, step = raw["range"], raw.get("step", 1)
        if not isinstance(ends, list) or len(ends) != 2 or any(_kind(v) != "number" or not math.isfinite(v) for v in [*ends, step]):
            self.fail(key, f"must be {{range: [low, high], step: number}}, not {raw!r}")
        low, high, by = (Decimal(str(v)) for v in (*ends, step))
        if high < low or by <= 0:
            self.fail(key, f"range must run upwards with a step above 0, not {ends} by {step}")
        count = (high - low) / by
        if count != count.to_integral_value() or count >= MAX_VALUES:
            self.fail(key, f"step {step} does not lead from {low} to {high} in at most {MAX_VALUES - 1} steps")
        if all(isinstance(v, int) for v in [*ends, step]):
            return list(range(ends[0], ends[1] + 1, step))
        return [float(low + by * i) for i in range(int(count) + 1)]

    def numbers(self, raw: object, key: KeyPath, *, low: float, high: float, whole: bool) -> Values:
        values = self.values(raw, key)
        for value in values.values:
            if _kind(value) != "number" or (whole and not isinstance(value, int)) or not low <= value <= high:  # type: ignore[operator]
                self.fail(key, f"must be {'whole numbers' if whole else 'numbers'} from {low:g} to {high:g}, not {value!r}")
        return values if whole else Values(values=tuple(float(v) for v in values.values), key=key)

    def image_size(self, raw: object) -> tuple[tuple[int, ...], Grid]:
        key: KeyPath = ("image_size",)
        size = self.mapping(raw, key, required=("min", "max", "default"), optional=("multiple_of",))
        step = size.get("multiple_of", 1)
        for name, value in (("min", size["min"]), ("max", size["max"]), ("multiple_of", step)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_IMAGE:
                self.fail((*key, name), f"must be a whole number from 1 to {MAX_IMAGE}, not {value!r}")
        sizes = tuple(v for v in range(size["min"], size["max"] + 1) if v % step == 0)
        if not sizes or len(sizes) > MAX_VALUES or sizes[0] != size["min"] or sizes[-1] != size["max"]:
            self.fail(key, f"min and max must be multiples of multiple_of {step}, min first, at most {MAX_VALUES} sizes")
        default = size["default"]
        pair = default if isinstance(default, list) else [default, default]
        if len(pair) != 2 or any(v not in sizes or isinstance(v, bool) for v in pair):
            self.fail((*key, "default"), f"must be one or two (height, width) of {', '.join(map(str, sizes))}, not {default!r}")
        return sizes, (pair[0], pair[1])

    def params(self, raw: object, key: KeyPath) -> dict[str, Values]:
        for name in self.mapping(raw, key):
            if not name.isidentifier():  # a dot would make another path of it
                self.fail((*key, name), f"a parameter of a mixer is a name of letters, digits and underscores, not {name!r}")
            if name == "name":  # an Arch has the mixer's own name there
                self.fail((*key, name), f"no parameter of a mixer is called {name!r}; take the line out")
        return {name: self.values(value, (*key, name)) for name, value in self.mapping(raw, key).items()}

    def mixers(self, raw: object, key: KeyPath) -> Values:
        """One name, a list of names (branches of one block), or a choice of these."""
        options = raw["choice"] if isinstance(raw, dict) and set(raw) == {"choice"} else [raw]
        labels = []
        for option in options if isinstance(options, list) and options else self.fail(key, "must be mixers or {choice: [mixers, ..]}"):
            names = option if isinstance(option, list) else [option]
            if not names or len(set(map(str, names))) < len(names) or not all(isinstance(n, str) and n.isidentifier() for n in names):
                self.fail(key, f"a block's mixers are one name or a list of different names, not {option!r}")
            labels.append("+".join(names))
        if len(set(labels)) < len(labels):
            self.fail(key, f"names the same mixers twice: {', '.join(labels)}")
        return Values(values=tuple(labels), key=key)

    def stage(self, raw: object, key: KeyPath, shared: Mapping[str, Params]) -> StageRules:
        raw = self.mapping(raw, key, required=("embed_dim", "depth", "mixers", "mlp_ratio"))
        labels = self.mixers(raw["mixers"], (*key, "mixers"))
        names = sorted({name for label in labels.values for name in str(label).split("+")})
        self.mapping(raw, key, optional=(*STAGE_KEYS, *names))
        params = {name: _merged(shared.get(name, {}), self.params(raw.get(name, {}), (*key, name))) for name in names}
        for name in names:
            for target in ARCH_NAME.values():
                both = [n for n in params[name] if ARCH_NAME.get(n, n) == target]
                if len(both) > 1:
                    self.fail(params[name][both[1]].key, f"mixer {name} has both {' and '.join(both)}, which say the same")
            if math.prod(len(v.values) for v in params[name].values()) > MAX_MIXER_POINTS:
                self.fail(key, f"mixer {name} has more than {MAX_MIXER_POINTS} combinations of parameters")
        depth = self.numbers(raw["depth"], (*key, "depth"), low=1, high=MAX_DEPTH, whole=True)
        per_block, segments = self.scopes(raw, key, shallowest=int(depth.values[0]))
        return StageRules(
            embed_dim=self.numbers(raw["embed_dim"], (*key, "embed_dim"), low=1, high=MAX_WIDTH, whole=True), depth=depth, mixers=labels,
            mlp_ratio=self.numbers(raw["mlp_ratio"], (*key, "mlp_ratio"), low=0.01, high=16, whole=False),
            keep_ratio=self.numbers(raw.get("keep_ratio", 1.0), (*key, "keep_ratio"), low=0.01, high=1, whole=False),
            per_block=per_block, segments=segments, params=params)

    def scopes(self, raw: dict[str, Any], key: KeyPath, *, shallowest: int) -> tuple[frozenset[str], int | None]:
        """Which choices are made per block (mixers bring their parameters along), and keep_ratio's segments."""
        listed = raw.get("per_block", [])
        if not isinstance(listed, list):
            self.fail((*key, "per_block"), f"must be a list of {', '.join(PER_BLOCK)}, not {listed!r}")
        for name in listed:
            if name not in PER_BLOCK:
                self.fail((*key, "per_block"), unknown("choice", str(name), list(PER_BLOCK)))
        per_block = frozenset(listed) | (frozenset({"mixer_params"}) if "mixers" in listed else frozenset())
        segments = raw.get("segments")
        if segments is not None:
            if not isinstance(segments, int) or isinstance(segments, bool) or not 1 <= segments <= shallowest:
                self.fail((*key, "segments"), f"must be a whole number from 1 to the smallest depth {shallowest}, not {segments!r}")
            if "keep_ratio" in per_block:
                self.fail((*key, "segments"), "keep_ratio is chosen per segment or per block, not both")
        return per_block, segments


def _kind(value: object) -> str:
    if isinstance(value, (bool, str)):
        return type(value).__name__
    return "number" if isinstance(value, (int, float)) else "other"


def _merged(shared: Params, own: Params) -> dict[str, Values]:
    """The stage's own parameters over the shared ones; `num_heads` replaces `head_dim` and the reverse. Dependent ones last."""
    replaced = {ARCH_NAME.get(name, name) for name in own}
    kept = {name: values for name, values in shared.items() if ARCH_NAME.get(name, name) not in replaced}
    return dict(sorted({**kept, **own}.items(), key=lambda item: (item[0] in LATE, item[0])))
