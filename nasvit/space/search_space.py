"""SearchSpace: which Archs there are. Anything that can suggest values (an Optuna trial, a random generator) picks one.

Parameter names are paths and part of the on-disk format; stages, blocks and segments count from 0, as in an ArchError:
`s1.embed_dim`, `s1.depth`, `s1.mixers`, `s1.slide.kernel_size` (shared by the stage), `s1.b2.mixers`,
`s1.b2.slide.kernel_size` (per block), `s0.g2.keep_ratio` (per segment), and `num_stages`. Only what is a choice on the
branch is asked.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from nasvit.arch import Arch, Grid, Scalar, Stage
from nasvit.errors import ConfigError
from nasvit.registry import unknown
from nasvit.space.exclusion import without
from nasvit.space.file import SpaceFile, parse_space
from nasvit.space.rules import (
    ARCH_NAME,
    Ask,
    Parameter,
    Values,
    blocks_of,
    build_stage,
    first_block,
    half_up,
    mixer_answer,
    outcomes,
    stage_size,
)
from nasvit.yaml_file import KeyPath, parse_yaml, read_yaml

MAX_SIZE = 10**60
SHIPPED = Path(__file__).resolve().parents[1] / "spaces"  # a link to search_spaces/ in a checkout, package data in a wheel

class Trial(Protocol):
    """What `suggest` needs: the three methods of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerUse:
    """A mixer in a stage; `params` are (name in the space, name in an Arch, "file:line")."""

    stage: int
    mixer: str
    where: str
    params: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A space file bound to one image size, number of channels and number of classes; make it with `SearchSpace.load`."""

    file: SpaceFile
    image_size: Grid
    in_channels: int
    num_classes: int
    grids: tuple[Grid, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for side in self.image_size:
            if side not in self.file.sizes:
                sides = ", ".join(map(str, self.file.sizes))
                self.file.fail(("image_size",), f"image size {self.image_size} is not allowed; accepted sides: {sides}")
        object.__setattr__(self, "grids", tuple(self.file.grids(self.image_size)))
        self.file.check(self.image_size)
        if self.size() > MAX_SIZE:
            self.file.fail((), f"the space has more than 1e{len(str(MAX_SIZE)) - 1} architectures; make choices shared or fixed")

    @classmethod
    def load(cls, path: str | Path, *, image_size: Grid | None = None, in_channels: int | None = None,
             num_classes: int | None = None) -> SearchSpace:
        """Read and check a space file, or a shipped space by name; 3 channels, 10 classes and the file's default size if not given.

        Raises ConfigError naming file, line, value and what is accepted, also where any point of the space could not be built.
        """
        found = resolve(path)
        data, lines = read_yaml(found)
        file = parse_space(data, lines, path=str(found), text=found.read_text(encoding="utf-8"))
        return cls(file=file, image_size=file.default_size if image_size is None else (image_size[0], image_size[1]),
                   in_channels=3 if in_channels is None else in_channels, num_classes=10 if num_classes is None else num_classes)

    @classmethod
    def from_yaml(cls, text: str, *, name: str = "space.yaml", image_size: Grid | None = None, in_channels: int = 3,
                  num_classes: int = 10) -> SearchSpace:
        """`load` on a text; `name` stands for the file in error messages."""
        data, lines = parse_yaml(text, name=name)
        file = parse_space(data, lines, path=name, text=text)
        return cls(file=file, image_size=image_size or file.default_size, in_channels=in_channels, num_classes=num_classes)

    @property
    def name(self) -> str:
        """The name the file gives."""
        return self.file.name

    def to_yaml(self) -> str:
        """The file's own text: loading it with the same bindings gives the same space."""
        return self.file.text

    def without(self, excluded: Collection[str]) -> SearchSpace:
        """The space without these choices, such as `slide`, `window+fsla`, `slide.kernel_size=9`, `keep_ratio=0.5`; see `exclusion`."""
        return replace(self, file=without(self.file, excluded)) if excluded else self

    def check_all_sizes(self) -> None:
        """Raise ConfigError unless every point can be built at every image size the file allows."""
        self.file.check_all_sizes()

    def fit_image_size(self, natural: Grid) -> Grid:
        """Per side, the smallest allowed size at or above the natural one, else the largest allowed."""
        height, width = (next((size for size in self.file.sizes if size >= side), self.file.sizes[-1]) for side in natural)
        return height, width

    def suggest(self, trial: Trial) -> Arch:
        """Ask a trial for every choice; evenly spaced numbers are asked as integers or floats, the rest as categories."""
        return self._build(lambda parameter: _suggest(trial, parameter))

    def sample(self, rng: random.Random) -> Arch:
        """Every choice drawn uniformly among its values."""
        return self._build(lambda parameter: rng.choice(parameter.values))

    def from_parameters(self, params: Mapping[str, Scalar], *, rng: random.Random | None = None) -> Arch:
        """The Arch of these choices; one that is missing is drawn from `rng`. Raises ConfigError without `rng`, or for a foreign value."""

        return self._build(lambda parameter: self.answer(parameter, params, rng=rng))

    def answer(self, parameter: Parameter, params: Mapping[str, Scalar], *, rng: random.Random | None) -> Scalar:
        """What these choices say of one parameter, for `from_parameters`, which says what is drawn and what is raised."""
        if parameter.path not in params:
            if rng is None:
                raise ConfigError(f"space {self.name}: {parameter.path} is missing; accepted: {_listed(parameter.values)}")
            return rng.choice(parameter.values)
        if params[parameter.path] not in parameter.values:
            raise ConfigError(f"space {self.name}: {parameter.path} {params[parameter.path]!r} is not in the space; "
                              f"accepted: {_listed(parameter.values)}")
        return params[parameter.path]

    def arch_parameters(self, arch: Arch) -> dict[str, Scalar]:
        """The choices that give this Arch, by path: the inverse of `suggest`. Raises ConfigError for one outside the space."""
        asked: dict[str, Scalar] = {}

        def ask(parameter: Parameter) -> Scalar:
            value = self._answer(arch, parameter)
            if value not in parameter.values:
                raise ConfigError(f"arch {arch.id} is not in space {self.name}: {parameter.path} {value!r}; "
                                  f"accepted: {_listed(parameter.values)}")
            asked[parameter.path] = value
            return value

        if len(arch.stages) not in self.file.num_stages.values:
            raise ConfigError(f"arch {arch.id} is not in space {self.name}: {len(arch.stages)} stages; "
                              f"accepted: {_listed(self.file.num_stages.values)}")
        if self._build(ask) != arch:
            raise ConfigError(f"arch {arch.id} is not in space {self.name}: the nearest point of the space differs")
        return asked

    def parameters_of(self, arch: Arch) -> list[Parameter]:
        """The choices that were asked for this Arch, in the order of asking, with all their values."""
        answers, asked = self.arch_parameters(arch), []

        def ask(parameter: Parameter) -> Scalar:
            asked.append(parameter)
            return answers[parameter.path]

        self._build(ask)
        return asked

    def values_of(self, path: str) -> tuple[Scalar, ...]:
        """The values of the choice at this path, wherever it is asked. Raises ConfigError for a path that the space does not have."""
        if path == "num_stages":
            return self.file.num_stages.values
        head, *rest = path.split(".")
        if rest and rest[0][:1] in ("b", "g") and rest[0][1:].isdigit():
            rest = rest[1:]
        try:
            rules = self.file.stages[int(head[1:])]
            values: Values = getattr(rules, rest[0]) if len(rest) == 1 else rules.params[rest[0]][rest[1]]
        except (ValueError, IndexError, KeyError, AttributeError):
            raise ConfigError(f"space {self.name} has no choice {path!r}") from None
        return values.values

    def contains(self, arch: Arch) -> bool:
        """Whether some choices give exactly this Arch."""
        try:
            self.arch_parameters(arch)
        except ConfigError:
            return False
        return True

    def enumerate(self) -> Iterator[Arch]:
        """Every Arch of the space, by walking all answers: for spaces small enough to walk."""
        for _, arch in outcomes(lambda pick: self._build(lambda p: pick(p.path, Values(values=p.values, key=())))):
            yield arch

    def size(self) -> int:
        """The exact number of different Archs."""
        sizes = [stage_size(rules, grid=grid) for rules, grid in zip(self.file.stages, self.grids, strict=True)]
        return sum(math.prod(sizes[: int(count)]) for count in self.file.num_stages.values)

    def encoding_names(self) -> list[str]:
        """What each number of `encode` is; a choice with one value has no place."""
        first = ["num_stages"] if len(self.file.num_stages.values) > 1 else []
        return first + [name for s in range(len(self.file.stages)) for name, _ in self._columns(s, None)]

    def encode(self, arch: Arch, *, choices: Mapping[str, Scalar] | None = None) -> list[float]:
        """Numbers from 0 to 1, always as many: per stage width, depth, mean ratios, shares of the mixers, mean mixer parameters.

        Ordered values count by rank. A mixer parameter is the mean over the blocks that have it, 0 where none has; a stage that
        is not there is 0 throughout.
        choices: the Arch's `arch_parameters`, where they are at hand. Raises ConfigError for an Arch outside the space.
        """
        choices = self.arch_parameters(arch) if choices is None else choices
        return self.encode_count(len(arch.stages)) + [
            value for s in range(len(self.file.stages))
            for value in self.encode_stage(s, arch.stages[s] if s < len(arch.stages) else None, choices=choices)]

    def encode_count(self, stages: int) -> list[float]:
        """The first number of `encode`, from how many stages there are; none where that is no choice."""
        counts = self.file.num_stages.values
        return [counts.index(stages) / (len(counts) - 1)] if len(counts) > 1 else []

    def encode_stage(self, s: int, stage: Stage | None, *, choices: Mapping[str, Scalar]) -> list[float]:
        """The part of `encode` that is about stage s, None where it is not there. choices: at least those of the stage."""
        return [value for _, value in self._columns(s, None if stage is None else (stage, choices))]

    # ---- how it is done ----

    def _build(self, ask: Ask) -> Arch:
        return self.joined(self.build_stage(s, ask) for s in range(self.ask_count(ask)))

    def ask_count(self, ask: Ask) -> int:
        """How many stages there are: the first choice of a configuration, where it is one."""
        counts = self.file.num_stages.values
        return int(counts[0] if len(counts) == 1 else ask(Parameter(path="num_stages", values=counts, ordered=True)))

    def build_stage(self, s: int, ask: Ask) -> Stage:
        """Stage s of these answers; it depends on no other stage."""
        return build_stage(self.file.stages[s], stage=s, grid=self.grids[s], ask=ask)

    def joined(self, stages: Iterable[Stage]) -> Arch:
        """The Arch of these stages. Raises ArchError where they cannot follow each other."""
        return Arch(image_size=self.image_size, in_channels=self.in_channels, num_classes=self.num_classes, stem=self.file.stem,
                    stages=tuple(stages))

    def _answer(self, arch: Arch, parameter: Parameter) -> Scalar | None:
        """The value of one choice in an Arch, read from the first block that the choice is about."""
        if parameter.path == "num_stages":
            return len(arch.stages)
        head, *rest = parameter.path.split(".")
        s = int(head[1:])
        rules, stage, b = self.file.stages[s], arch.stages[s], 0
        if rest[0][0] in "bg" and rest[0][1:].isdigit():
            scope = rest.pop(0)
            b = int(scope[1:])
            if scope[0] == "g":
                b = first_block(b, depth=len(stage.blocks), segments=rules.segments or 1)
        if rest[0] == "embed_dim":
            return stage.embed_dim
        if rest[0] == "depth":
            return len(stage.blocks)
        block = stage.blocks[b] if b < len(stage.blocks) else None
        if block is None:
            return None
        if rest[0] == "mixers":
            return "+".join(mixer.name for mixer in block.mixers)
        if rest[0] == "keep_ratio":
            return block.keep_ratio
        if rest[0] == "mlp_ratio":
            return next((v for v in parameter.values if half_up(stage.embed_dim * float(v)) == block.mlp_dim), None)
        spec = next((mixer for mixer in block.mixers if mixer.name == rest[0]), None)
        return None if spec is None else mixer_answer(
            spec.kwargs, name=rest[1], values=parameter.values, dim=stage.embed_dim, grid=self.grids[s])

    def _columns(self, s: int, given: tuple[Stage, Mapping[str, Scalar]] | None) -> Iterator[tuple[str, float]]:
        """(name, value) of a stage's part of the encoding; the value is 0 where no stage is given."""
        rules = self.file.stages[s]

        def mean_rank(suffix: str, values: Values) -> float:
            if given is None:
                return 0.0
            depth = len(given[0].blocks)
            found = [(values.values.index(value), blocks_of(path, depth=depth, rules=rules)) for path, value in given[1].items()
                     if path.startswith(f"s{s}.") and path.endswith(suffix)]
            blocks = sum(count for _, count in found)
            return sum(rank * count for rank, count in found) / blocks / (len(values.values) - 1) if blocks else 0.0

        for name in ("embed_dim", "depth", "mlp_ratio", "keep_ratio"):
            values: Values = getattr(rules, name)
            if len(values.values) > 1:
                yield f"s{s}.{name}", mean_rank(f".{name}", values)
        for mixer in rules.mixer_names():
            if len(rules.mixers.values) > 1:
                blocks = given[0].blocks if given else ()
                share = sum(any(m.name == mixer for m in block.mixers) for block in blocks) / max(len(blocks), 1)
                yield f"s{s}.{mixer}", share
            for name, values in rules.params[mixer].items():
                if len(values.values) > 1:
                    yield f"s{s}.{mixer}.{name}", mean_rank(f".{mixer}.{name}", values)

    def mixer_parameters(self) -> list[MixerUse]:
        """Every mixer of every stage with its parameters, for a check against the mixers' own signatures."""

        def place(key: KeyPath) -> str:
            return f"{self.file.path}:{self.file.lines.get(key, 1)}"

        return [MixerUse(stage=s, mixer=mixer, where=place(rules.mixers.key),
                         params=tuple((name, ARCH_NAME.get(name, name), place(values.key)) for name, values in rules.params[mixer].items()))
                for s, rules in enumerate(self.file.stages) for mixer in rules.mixer_names()]


def shipped() -> dict[str, Path]:
    """The spaces that come with nasvit, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def resolve(name_or_path: str | Path) -> Path:
    """The file of a space: a path, or the name of a shipped space. Raises ConfigError naming the shipped ones."""
    path, named = Path(name_or_path), shipped()
    if path.is_file():
        return path
    if str(name_or_path) in named:
        return named[str(name_or_path)]
    raise ConfigError(f"no such file, and no shipped search space: {unknown('space', str(name_or_path), sorted(named))}")


def _suggest(trial: Trial, parameter: Parameter) -> Scalar:
    low, high, step = parameter.values[0], parameter.values[-1], parameter.step
    if isinstance(step, int):
        return int(trial.suggest_int(parameter.path, int(low), int(high), step=step))
    if step is not None:
        found = trial.suggest_float(parameter.path, float(low), float(high), step=step)
        return min(parameter.values, key=lambda v: abs(float(v) - found))  # 0.30000000000000004 is 0.3
    value: Scalar = trial.suggest_categorical(parameter.path, list(parameter.values))
    return value


def _listed(values: tuple[Scalar, ...]) -> str:
    return ", ".join(str(value) for value in values)
