"""Arch: a network as frozen data. It holds the integers that get built, nothing derived and nothing unused.

Two Archs that build the same network are equal and have the same `id`, because a parameter exists only where it is
used and has one spelling. Everything else in nasvit (search, measuring, records, export, pruning) exchanges Archs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nasvit.errors import ArchError

Scalar = int | float | bool | str
Grid = tuple[int, int]

STEMS = ("conv", "patch")
HEADS = ("mean",)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerSpec:
    """One token mixer by name, with its parameters as sorted pairs (hashable); make it with `MixerSpec.of`."""

    name: str
    params: tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ArchError(f"a mixer's name must be an identifier, not {self.name!r}")
        for key, value in self.params:
            if not isinstance(key, str) or not isinstance(value, (bool, int, float, str)):
                raise ArchError(f"mixer {self.name}: parameter {key!r} must be a number, a bool or a string, not {value!r}")
        object.__setattr__(self, "params", tuple(sorted(self.params)))

    @classmethod
    def of(cls, name: str, **params: Scalar) -> MixerSpec:
        """`MixerSpec.of("window", window_size=7, shift=False, num_heads=4)`."""
        return cls(name=name, params=tuple(params.items()))

    @property
    def kwargs(self) -> dict[str, Scalar]:
        """The parameters as keyword arguments of the mixer's constructor."""
        return dict(self.params)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.kwargs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One or more token mixers, each in its own residual branch, then an MLP of `mlp_dim` hidden channels.

    keep_ratio: share of the tokens updated on the slow path, in (0, 1]; 1.0 is the plain block.
    """

    mixers: tuple[MixerSpec, ...]
    mlp_dim: int
    keep_ratio: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixers", tuple(self.mixers))
        if not self.mixers:
            raise ArchError("a block needs at least one token mixer")
        _positive("mlp_dim", self.mlp_dim)
        if isinstance(self.keep_ratio, bool) or not isinstance(self.keep_ratio, (int, float)) or not 0 < self.keep_ratio <= 1:
            raise ArchError(f"keep_ratio must be in (0, 1], not {self.keep_ratio!r}")
        object.__setattr__(self, "keep_ratio", float(self.keep_ratio))

    def to_dict(self) -> dict[str, Any]:
        return {"mixers": [m.to_dict() for m in self.mixers], "mlp_dim": self.mlp_dim, "keep_ratio": self.keep_ratio}


def keep_count(tokens: int, keep_ratio: float) -> int:
    """How many of N tokens are kept: int(N * keep_ratio), the papers' truncation, at least 1. A Python integer, so that shapes are static."""
    return max(1, int(tokens * keep_ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Blocks at one resolution and one width; the depth is `len(blocks)`."""

    embed_dim: int
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        _positive("embed_dim", self.embed_dim)
        if not self.blocks:
            raise ArchError("a stage needs at least one block")

    def to_dict(self) -> dict[str, Any]:
        return {"embed_dim": self.embed_dim, "blocks": [b.to_dict() for b in self.blocks]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stem:
    """From image to the first grid of tokens.

    kind: "conv", overlapping 3x3 stride-2 convolutions (stride 2, 4, 8 or 16; any image size, grids round up), or
    "patch", one convolution with kernel = stride (the image size must be divisible by it).
    pos_embed: learned absolute positions are added. class_token: the network has a class token from the start.
    """

    kind: str
    stride: int
    pos_embed: bool = False
    class_token: bool = False

    def __post_init__(self) -> None:
        if self.kind not in STEMS:
            raise ArchError(f"stem kind must be one of {', '.join(STEMS)}, not {self.kind!r}")
        _positive("stem stride", self.stride)
        if self.kind == "conv" and self.stride not in (2, 4, 8, 16):
            raise ArchError(f"a conv stem has stride 2, 4, 8 or 16, not {self.stride}")
        for name in ("pos_embed", "class_token"):
            if not isinstance(getattr(self, name), bool):
                raise ArchError(f"stem {name} must be true or false, not {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "stride": self.stride, "pos_embed": self.pos_embed, "class_token": self.class_token}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """From tokens to classes. kind "mean": average of the patch tokens, norm, linear."""

    kind: str = "mean"

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise ArchError(f"head kind must be one of {', '.join(HEADS)}, not {self.kind!r}")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """A whole network. image_size is (H, W) in pixels. Raises ArchError naming stage and block where it cannot be built."""

    image_size: Grid
    in_channels: int
    num_classes: int
    stem: Stem
    stages: tuple[Stage, ...]
    head: Head = Head()

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "stages", tuple(self.stages))
        if len(self.image_size) != 2:
            raise ArchError(f"image_size must be (height, width), not {self.image_size!r}")
        for name, value in (("image height", self.image_size[0]), ("image width", self.image_size[1]),
                            ("in_channels", self.in_channels), ("num_classes", self.num_classes)):
            _positive(name, value)
        if not self.stages:
            raise ArchError("an Arch needs at least one stage")
        stride = self.stem.stride
        if self.stem.kind == "patch" and (self.image_size[0] % stride or self.image_size[1] % stride):
            raise ArchError(f"a patch stem of stride {stride} needs an image size divisible by it, not {self.image_size}")
        for s, stage in enumerate(self.stages):
            for b, block in enumerate(stage.blocks):
                if block.keep_ratio < 1 and self.grid(s) == (1, 1):
                    raise ArchError(f"stage {s}, block {b}: keep_ratio {block.keep_ratio} needs at least 2 tokens; use 1.0 on a 1x1 map")
                for mixer in block.mixers:
                    check_mixer(mixer, embed_dim=stage.embed_dim, grid=self.grid(s), where=f"stage {s}, block {b}")

    def grid(self, stage: int) -> Grid:
        """(height, width) in tokens of a stage: the stem divides by its stride, each later stage by 2, rounding up."""
        divisor = self.stem.stride * 2**stage
        return -(-self.image_size[0] // divisor), -(-self.image_size[1] // divisor)

    def to_dict(self) -> dict[str, Any]:
        return {"image_size": list(self.image_size), "in_channels": self.in_channels, "num_classes": self.num_classes,
                "stem": self.stem.to_dict(), "stages": [s.to_dict() for s in self.stages], "head": self.head.to_dict()}

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. `Arch.from_json` gives back an equal Arch."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def id(self) -> str:
        """12 hexadecimal digits of SHA-256 over the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Arch:
        """Strict: an unknown or missing key, or a wrong type, raises ArchError."""
        top = _take(data, "arch", ("image_size", "in_channels", "num_classes", "stem", "stages", "head"))
        stages = []
        for s, raw_stage in enumerate(_sequence(top["stages"], "stages")):
            stage = _take(raw_stage, f"stage {s}", ("embed_dim", "blocks"))
            blocks = []
            for b, raw_block in enumerate(_sequence(stage["blocks"], f"stage {s}: blocks")):
                where = f"stage {s}, block {b}"
                block = _take(raw_block, where, ("mixers", "mlp_dim", "keep_ratio"))
                mixers = []
                for raw in _sequence(block["mixers"], f"{where}: mixers"):
                    if not isinstance(raw, Mapping) or "name" not in raw:
                        raise ArchError(f"{where}: a mixer must be a mapping with a name, not {raw!r}")
                    mixers.append(MixerSpec(name=raw["name"], params=tuple((k, v) for k, v in raw.items() if k != "name")))
                try:
                    blocks.append(Block(mixers=tuple(mixers), mlp_dim=block["mlp_dim"], keep_ratio=block["keep_ratio"]))
                except ArchError as error:
                    raise ArchError(f"{where}: {error}") from None
            try:
                stages.append(Stage(embed_dim=stage["embed_dim"], blocks=tuple(blocks)))
            except ArchError as error:
                raise ArchError(f"stage {s}: {error}") from None
        stem = _take(top["stem"], "stem", ("kind", "stride", "pos_embed", "class_token"))
        head = _take(top["head"], "head", ("kind",))
        size = tuple(_sequence(top["image_size"], "image_size"))
        return cls(image_size=size, in_channels=top["in_channels"], num_classes=top["num_classes"],  # type: ignore[arg-type]
                   stem=Stem(**stem), stages=tuple(stages), head=Head(**head))

    @classmethod
    def from_json(cls, text: str) -> Arch:
        """The inverse of `to_json`; raises ArchError on anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArchError(f"not an Arch: the text is not JSON ({error})") from None
        return cls.from_dict(data)


# ---- the vocabulary: what a mixer parameter of a given name means, wherever it stands -------------------------------

Rule = Callable[[Any, int, Grid, Mapping[str, Scalar]], str | None]


def _heads(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    if _is_int(value) and value >= 1 and dim % value == 0:
        return None
    return f"a divisor of embed_dim {dim}: {_listed(d for d in range(1, dim + 1) if dim % d == 0)}"


def _window(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    return None if _is_int(value) and 1 <= value <= min(grid) else f"1 to {min(grid)}, the shorter side of the {grid[0]}x{grid[1]} map"


def _shift(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    if not isinstance(value, bool):
        return "true or false"
    return "false where the window covers the map" if value and forced("shift", params, grid=grid) is False else None


def _kernel(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    return None if _is_int(value) and value >= 3 and value % 2 else "an odd number from 3"


def _depth(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    tokens = grid[0] * grid[1]
    deepest = (tokens & -tokens).bit_length() - 1  # 2-adic valuation: clusters must come out equal
    return None if _is_int(value) and 0 <= value <= deepest else f"0 to {deepest}: 2**cluster_depth must divide {tokens} tokens"


def _overlap(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    depth: Any = params.get("cluster_depth", 0)
    most = 0 if not _is_int(depth) or depth <= 0 else grid[0] * grid[1] // 2 ** int(depth)
    return None if _is_int(value) and 0 <= value <= most else f"0 to {most} tokens at cluster_depth {depth}"


VOCABULARY: dict[str, Rule] = {"num_heads": _heads, "window_size": _window, "shift": _shift, "kernel_size": _kernel,
                               "cluster_depth": _depth, "overlap": _overlap}


def accepted(name: str, params: Mapping[str, Scalar], *, embed_dim: int, grid: Grid) -> str | None:
    """None if parameter `name` of `params` is possible at this width and grid, else what would be accepted there.

    A name outside the vocabulary is the mixer's own; its constructor checks it.
    """
    rule = VOCABULARY.get(name)
    return rule(params[name], embed_dim, grid, params) if rule else None


def forced(name: str, params: Mapping[str, Scalar], *, grid: Grid) -> Scalar | None:
    """The only value that `name` can have beside `params`, or None where there is a choice.

    A window that covers the map's shorter side is not shifted (Swin's rule); an uncut map has no neighbour cluster.
    """
    if name == "shift" and "window_size" in params:
        return False if int(params["window_size"]) >= min(grid) else None
    if name == "overlap" and params.get("cluster_depth") == 0:
        return 0
    return None


def check_mixer(mixer: MixerSpec, *, embed_dim: int, grid: Grid, where: str) -> None:
    """Raise ArchError naming `where`, the value given and the values accepted."""
    params = mixer.kwargs
    for name, value in mixer.params:
        wanted = accepted(name, params, embed_dim=embed_dim, grid=grid)
        if wanted is not None:
            raise ArchError(f"{where}: mixer {mixer.name}: {name} {value!r} is not possible; accepted: {wanted}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(name: str, value: Any) -> None:
    if not _is_int(value) or value < 1:
        raise ArchError(f"{name} must be a positive integer, not {value!r}")


def _listed(values: Any) -> str:
    return ", ".join(str(v) for v in values)


def _sequence(value: Any, where: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ArchError(f"{where} must be a list, not {value!r}")
    return list(value)


def _take(data: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ArchError(f"{where} must be a mapping with the keys {', '.join(keys)}, not {data!r}")
    extra, missing = set(data) - set(keys), set(keys) - set(data)
    if extra or missing:
        raise ArchError(f"{where}: unknown keys {sorted(map(str, extra))}, missing keys {sorted(missing)}; accepted: {', '.join(keys)}")
    return dict(data)
