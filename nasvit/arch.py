"""Arch: a network as frozen data. It holds the integers that get built, nothing derived and nothing unused.

Two Archs that build the same network are equal and have the same `id`, because a parameter exists only where it is
used and has one spelling. Everything else in nasvit (search, measuring, records, export, pruning) exchanges Archs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nasvit.drawing import draw
from nasvit.errors import ArchError
from nasvit.vocabulary import MAX_SIZE, accepted, is_int
from nasvit.vocabulary import Grid as Grid
from nasvit.vocabulary import Scalar as Scalar

STEMS = ("conv", "conv_bias", "patch", "patch_norm", "overlap_norm", "cswin", "levit")
DOWNSAMPLES = ("conv", "conv_bias", "none", "merge", "patch_norm", "overlap_norm", "levit")
MLPS = ("gelu", "conv", "levit")
HEADS = ("mean", "norm_mean", "class_token", "mean_kept")
NORMS = ("layer", "batch")
# Written only where they differ from their defaults, so that what most networks do not use is in no file.
_OPTIONAL = {"arch": ("norm_eps", "representative"), "stage": ("downsample", "pos_embed", "norm"), "block": ("mlp",),
             "head": ("norm", "distillation", "feature_norms")}


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ArchError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ArchError(f"{name} must be true or false, not {value!r}")


def _positive(name: str, value: Any) -> None:
    if not is_int(value) or not 1 <= value <= MAX_SIZE:
        raise ArchError(f"{name} must be a positive integer up to {MAX_SIZE}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerSpec:
    """One token mixer by name, with its parameters as sorted pairs (hashable); make it with `MixerSpec.of`."""

    name: str
    params: tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ArchError(f"a mixer's name must be an identifier, not {self.name!r}")
        for key, value in self.params:
            finite = math.isfinite(value) if isinstance(value, float) else isinstance(value, (bool, int, str))
            if not isinstance(key, str) or not finite:
                raise ArchError(f"mixer {self.name}: parameter {key!r} must be a finite number, a bool or a string, not {value!r}")
        names = [key for key, _ in self.params]
        if "name" in names or len(set(names)) < len(names):  # as a mapping it would lose one of them
            raise ArchError(f"mixer {self.name}: parameters have different names, none of them 'name', not {', '.join(names)}")
        object.__setattr__(self, "params", tuple(sorted(self.params)))

    @classmethod
    def of(cls, name: str, /, **params: Scalar) -> MixerSpec:
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

    keep_ratio: share of the tokens updated on the slow path, in (0, 1]; 1.0 is the plain block. mlp: "gelu" (linear, GELU,
    linear), "conv" (PVTv2's, with a depthwise 3x3 convolution before the GELU; not beside a class token, not with a keep_ratio below 1)
    or "levit" (batch norms and hardswish).
    """

    mixers: tuple[MixerSpec, ...]
    mlp_dim: int
    keep_ratio: float = 1.0
    mlp: str = "gelu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixers", tuple(self.mixers))
        if not self.mixers:
            raise ArchError("a block needs at least one token mixer")
        _positive("mlp_dim", self.mlp_dim)
        if isinstance(self.keep_ratio, bool) or not isinstance(self.keep_ratio, (int, float)) or not 0 < self.keep_ratio <= 1:
            raise ArchError(f"keep_ratio must be in (0, 1], not {self.keep_ratio!r}")
        object.__setattr__(self, "keep_ratio", float(self.keep_ratio))
        _one_of("mlp", self.mlp, MLPS)

    def to_dict(self) -> dict[str, Any]:
        return _filled({"mixers": [m.to_dict() for m in self.mixers], "mlp_dim": self.mlp_dim, "keep_ratio": self.keep_ratio},
                       self, "mlp")


def keep_count(tokens: int, keep_ratio: float) -> int:
    """How many of N tokens are kept: int(N * keep_ratio), the papers' truncation, at least 1. A Python integer: shapes are static."""
    return max(1, int(tokens * keep_ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Blocks at one resolution and one width; the depth is `len(blocks)`.

    downsample: how the stage begins, unless it is the first. "conv" (3x3 stride 2, batch norm), "conv_bias" (the same with
    biases; CAS-ViT), "merge" (Swin's patch merging), "patch_norm" (2x2 stride 2, layer norm; PVT), "overlap_norm" (3x3 stride 2,
    layer norm; PVTv2, CSWin) and "levit" (attention with every second query) halve the grid; "none" keeps grid and width, and only
    begins a new slow-fast segment.
    pos_embed: learned positions are added to its first tokens (for the first stage the stem says that). norm: a layer norm ends it
    (PVTv2); not in the last stage, where the head has its norm.
    """

    embed_dim: int
    blocks: tuple[Block, ...]
    downsample: str = "conv"
    pos_embed: bool = False
    norm: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        _positive("embed_dim", self.embed_dim)
        if not self.blocks:
            raise ArchError("a stage needs at least one block")
        _one_of("downsample", self.downsample, DOWNSAMPLES)
        _boolean("stage pos_embed", self.pos_embed)
        _boolean("stage norm", self.norm)

    def to_dict(self) -> dict[str, Any]:
        return _filled({"embed_dim": self.embed_dim, "blocks": [b.to_dict() for b in self.blocks]}, self, "downsample", "pos_embed",
                       "norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stem:
    """From image to the first grid of tokens.

    kind: "conv", overlapping 3x3 stride-2 convolutions with batch norm and ReLU (stride 2, 4, 8 or 16), "conv_bias", the
    same with biases (CAS-ViT), "levit", with hardswish, none behind the last; "patch", one convolution with kernel = stride (ViT),
    "patch_norm", with layer norm (Swin, PVT); "overlap_norm", kernel 2 * stride - 1 and layer norm (PVTv2), "cswin", the same with
    padding stride / 2. Image sizes must be divisible by the stride for "patch", "patch_norm" and "cswin"; elsewhere grids round up.
    pos_embed: learned absolute positions are added. class_token: the network has a class token from the start.
    """

    kind: str
    stride: int
    pos_embed: bool = False
    class_token: bool = False

    def __post_init__(self) -> None:
        _one_of("stem kind", self.kind, STEMS)
        _positive("stem stride", self.stride)
        if self.kind in ("conv", "conv_bias", "levit") and self.stride not in (2, 4, 8, 16):
            raise ArchError(f"a {self.kind} stem has stride 2, 4, 8 or 16, not {self.stride}")
        for name in ("pos_embed", "class_token"):
            _boolean(f"stem {name}", getattr(self, name))

    @property
    def divides(self) -> bool:
        """Whether the image size must be divisible by the stride."""
        return self.kind in ("patch", "patch_norm", "cswin")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "stride": self.stride, "pos_embed": self.pos_embed, "class_token": self.class_token}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """From tokens to classes.

    kind: "mean" (mean of the patch tokens, norm, linear), "norm_mean" (norm, mean, linear), "class_token" (layer norm of the class
    token, linear; the token begins in the last stage unless the stem has it), "mean_kept" ("mean" over the tokens kept by the last
    segment). norm: "layer" or "batch". distillation: a second classifier beside it; the prediction is the mean of both.
    feature_norms: each stage has one more norm, for its output as a feature map alone (CAS-ViT as a pyramid).
    """

    kind: str = "mean"
    norm: str = "layer"
    distillation: bool = False
    feature_norms: bool = False

    def __post_init__(self) -> None:
        _one_of("head kind", self.kind, HEADS)
        _one_of("head norm", self.norm, NORMS)
        _boolean("head distillation", self.distillation)
        _boolean("head feature_norms", self.feature_norms)

    def to_dict(self) -> dict[str, Any]:
        return _filled({"kind": self.kind}, self, "norm", "distillation", "feature_norms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """A whole network. Raises ArchError naming stage and block where it cannot be built.

    image_size: (H, W) in pixels. norm_eps: of every layer norm but those of embeddings (stems, downsampling), which have 1e-5 as in
    all published systems. representative: whether placeholders of a slow-fast segment follow
    a representative token through it (Evo-ViT's paper and LeViT form) or pass by unchanged (its DeiT form).
    """

    image_size: Grid
    in_channels: int
    num_classes: int
    stem: Stem
    stages: tuple[Stage, ...]
    head: Head = Head()
    norm_eps: float = 1e-5
    representative: bool = True

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
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < 1:
            raise ArchError(f"norm_eps must be a number above 0 and below 1, not {self.norm_eps!r}")
        _boolean("representative", self.representative)
        stride = self.stem.stride
        if self.stem.divides and (self.image_size[0] % stride or self.image_size[1] % stride):
            raise ArchError(f"a {self.stem.kind} stem of stride {stride} needs an image size divisible by it, not {self.image_size}")
        if self.stages[-1].norm:
            raise ArchError("the last stage has no norm of its own, the head has one; set its norm to false")
        slow = [s for s, stage in enumerate(self.stages) if any(b.keep_ratio < 1 for b in stage.blocks)]
        if not slow and not self.representative:
            raise ArchError("representative is false, but no block has a keep_ratio below 1.0; leave it true")
        if self.head.kind == "mean_kept" and self.stages[-1].blocks[-1].keep_ratio == 1:
            raise ArchError("head kind mean_kept needs a keep_ratio below 1.0 in the last block")
        for s, stage in enumerate(self.stages):
            self._check_join(s, stage)
            for b, block in enumerate(stage.blocks):
                if block.keep_ratio < 1 and self.grid(s) == (1, 1):
                    raise ArchError(f"stage {s}, block {b}: keep_ratio {block.keep_ratio} needs at least 2 tokens; use 1.0 on a 1x1 map")
                for mixer in block.mixers:
                    check_mixer(mixer, embed_dim=stage.embed_dim, grid=self.grid(s), where=f"stage {s}, block {b}")

    def _check_join(self, s: int, stage: Stage) -> None:
        """What a stage's beginning asks of the stage before."""
        if s == 0:
            if stage.downsample != "conv" or stage.pos_embed:
                raise ArchError("stage 0 begins with the stem: it has no downsample, and its pos_embed is the stem's")
            return
        before, grid = self.stages[s - 1], self.grid(s - 1)
        if stage.downsample == "none" and stage.embed_dim != before.embed_dim:
            raise ArchError(f"stage {s}: downsample none keeps the width {before.embed_dim}, not {stage.embed_dim}")
        last = before.blocks[-1].mixers[-1].name
        if stage.downsample == "levit" and last != "levit":
            raise ArchError(f"stage {s}: downsample levit has keys as wide as those of the levit mixer before it, and there is {last}; "
                            f"accepted: {', '.join(d for d in DOWNSAMPLES if d != 'levit')}")
        if stage.downsample == "patch_norm" and (grid[0] % 2 or grid[1] % 2):
            raise ArchError(f"stage {s}: downsample patch_norm needs an even map before it, not {grid[0]}x{grid[1]}")

    def grid(self, stage: int) -> Grid:
        """(height, width) in tokens of a stage: the stem divides by its stride, each later stage that downsamples by 2, rounding up."""
        halvings = sum(s.downsample != "none" for s in self.stages[1 : stage + 1])
        divisor = self.stem.stride * 2**halvings
        return -(-self.image_size[0] // divisor), -(-self.image_size[1] // divisor)

    def to_dict(self) -> dict[str, Any]:
        return _filled({"image_size": list(self.image_size), "in_channels": self.in_channels, "num_classes": self.num_classes,
                        "stem": self.stem.to_dict(), "stages": [s.to_dict() for s in self.stages], "head": self.head.to_dict()},
                       self, "norm_eps", "representative")

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. `Arch.from_json` gives back an equal Arch."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def id(self) -> str:
        """12 hexadecimal digits of SHA-256 over the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def _repr_html_(self) -> str:
        """The drawing, in a notebook."""
        return draw(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Arch:
        """Strict: an unknown or missing key, or a wrong type, raises ArchError."""
        top = _take(data, "arch", ("image_size", "in_channels", "num_classes", "stem", "stages", "head"), _OPTIONAL["arch"])
        stages = []
        for s, raw_stage in enumerate(_sequence(top["stages"], "stages")):
            stage = _take(raw_stage, f"stage {s}", ("embed_dim", "blocks"), _OPTIONAL["stage"])
            blocks = []
            for b, raw_block in enumerate(_sequence(stage["blocks"], f"stage {s}: blocks")):
                where = f"stage {s}, block {b}"
                block = _take(raw_block, where, ("mixers", "mlp_dim", "keep_ratio"), _OPTIONAL["block"])
                listed = _sequence(block["mixers"], f"{where}: mixers")
                for raw in listed:
                    if not isinstance(raw, Mapping) or "name" not in raw:
                        raise ArchError(f"{where}: a mixer must be a mapping with a name, not {raw!r}")
                try:
                    mixers = [MixerSpec(name=raw["name"], params=tuple((k, v) for k, v in raw.items() if k != "name")) for raw in listed]
                    blocks.append(Block(**{**block, "mixers": tuple(mixers)}))
                except ArchError as error:
                    raise ArchError(f"{where}: {error}") from None
            try:
                stages.append(Stage(**{**stage, "blocks": tuple(blocks)}))
            except ArchError as error:
                raise ArchError(f"stage {s}: {error}") from None
        stem = _take(top["stem"], "stem", ("kind", "stride", "pos_embed", "class_token"))
        head = _take(top["head"], "head", ("kind",), _OPTIONAL["head"])
        size = tuple(_sequence(top["image_size"], "image_size"))
        return cls(**{**top, "image_size": size, "stem": Stem(**stem), "stages": tuple(stages), "head": Head(**head)})

    @classmethod
    def from_json(cls, text: str) -> Arch:
        """The inverse of `to_json`; raises ArchError on anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArchError(f"not an Arch: the text is not JSON ({error})") from None
        return cls.from_dict(data)


def check_mixer(mixer: MixerSpec, *, embed_dim: int, grid: Grid, where: str) -> None:
    """Raise ArchError naming `where`, the value given and the values accepted."""
    params = mixer.kwargs
    for name, value in mixer.params:
        wanted = accepted(name, params, embed_dim=embed_dim, grid=grid)
        if wanted is not None:
            raise ArchError(f"{where}: mixer {mixer.name}: {name} {value!r} is not possible; accepted: {wanted}")


def _sequence(value: Any, where: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ArchError(f"{where} must be a list, not {value!r}")
    return list(value)


def _take(data: Any, where: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ArchError(f"{where} must be a mapping with the keys {', '.join(keys)}, not {data!r}")
    extra, missing = set(data) - set(keys) - set(optional), set(keys) - set(data)
    if extra or missing:
        raise ArchError(f"{where}: unknown keys {sorted(map(str, extra))}, missing keys {sorted(missing)}; "
                        f"accepted: {', '.join(keys + optional)}")
    return dict(data)


def _filled(data: dict[str, Any], item: Any, *optional: str) -> dict[str, Any]:
    """`data` with the optional fields that differ from their defaults: a network has one spelling."""
    defaults = {f.name: f.default for f in fields(item)}
    return {**data, **{name: getattr(item, name) for name in optional if getattr(item, name) != defaults[name]}}
