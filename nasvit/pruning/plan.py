"""Plan: a pruned network as frozen data, in the integers that get built; equal networks have one spelling and one `id`.

A plan says what is left of a dense model: its source (family and dense description), the width of the residual stream in
every stage, and for every block heads, head_dim, mlp_dim and the share of the tokens behind it. 0 heads is a block without attention,
an mlp_dim of 0 a block without MLP, both a block that is gone. Which heads and channels stay is no part of the plan: the
importance says that when the weights are sliced, and the weights file holds the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nasvit.arch import keep_count
from nasvit.errors import ConfigError
from nasvit.vocabulary import is_int

OPERATORS = ("none", "slow_fast", "merge", "topk_fuse")


class PlanError(ConfigError):
    """A plan that cannot be built; the message names the block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The dense model a plan is taken from: `name` for people (timm:deit_small_patch16_224), `family`, and the family's description.

    `description` is JSON data from which the owned dense network can be built without the library it came from; it is kept as canonical
    JSON text, so that a Source is hashable. Make one with `Source.of`.
    """

    name: str
    family: str
    description: str

    @classmethod
    def of(cls, name: str, *, family: str, description: Mapping[str, Any]) -> Source:
        return cls(name=name, family=family, description=_canonical(description))

    @property
    def options(self) -> dict[str, Any]:
        """The description as a new dictionary."""
        data: dict[str, Any] = json.loads(self.description)
        return data

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "family": self.family, "description": self.options}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """What is left of one block. heads 0 (and then head_dim 0): no attention; mlp_dim 0: no MLP.

    keep_ratio: share of the grid's tokens behind this block's attention (merge, topk_fuse) or on the slow path of this block
    (slow_fast), of the dense model's tokens; 1.0 is all.
    """

    heads: int
    head_dim: int
    mlp_dim: int
    keep_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "mlp_dim"):
            value = getattr(self, name)
            if not is_int(value) or value < 0:
                raise PlanError(f"{name} must be an integer from 0, not {value!r}")
        if (self.heads == 0) != (self.head_dim == 0):
            raise PlanError(f"heads {self.heads} and head_dim {self.head_dim}: a block without attention has 0 of both")
        if isinstance(self.keep_ratio, bool) or not isinstance(self.keep_ratio, (int, float)) or not 0 < self.keep_ratio <= 1:
            raise PlanError(f"keep_ratio must be in (0, 1], not {self.keep_ratio!r}")
        object.__setattr__(self, "keep_ratio", float(self.keep_ratio))

    @property
    def gone(self) -> bool:
        """Whether nothing of the block is left."""
        return self.heads == 0 and self.mlp_dim == 0

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"heads": self.heads, "head_dim": self.head_dim, "mlp_dim": self.mlp_dim}
        return data if self.keep_ratio == 1 else {**data, "keep_ratio": self.keep_ratio}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A pruned network. embed_dims: width of each stage (one for a ViT). operator: what the keep ratios below 1.0 are done with.

    "merge" and "topk_fuse" take tokens away for good, so their keep ratios never rise; a block that takes nothing away repeats the
    ratio before it. "slow_fast" restores all tokens behind each run of equal ratios. "none" is the operator where all ratios are 1.0.
    Raises PlanError. What the family cannot do is refused by `nasvit.pruning.check`.
    """

    source: Source
    blocks: tuple[BlockPlan, ...]
    embed_dims: tuple[int, ...]
    operator: str = field(default="none")

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "embed_dims", tuple(self.embed_dims))
        if not self.blocks or not self.embed_dims or not all(is_int(d) and d > 0 for d in self.embed_dims):
            raise PlanError(f"a plan needs blocks and positive embed_dims, not {len(self.blocks)} blocks and {self.embed_dims}")
        if self.operator not in OPERATORS:
            raise PlanError(f"operator must be one of {', '.join(OPERATORS)}, not {self.operator!r}")
        ratios = [b.keep_ratio for b in self.blocks]
        if (min(ratios) == 1) != (self.operator == "none"):
            raise PlanError(f"operator {self.operator} with keep ratios from {min(ratios)} to {max(ratios)}: "
                            "an operator goes with ratios below 1.0, and none with 1.0 everywhere")
        if self.operator in ("merge", "topk_fuse"):
            for i in range(1, len(ratios)):
                if ratios[i] > ratios[i - 1]:
                    raise PlanError(f"block {i}: keep_ratio {ratios[i]} after {ratios[i - 1]}: {self.operator} takes tokens away for good, "
                                    "so ratios may only fall")

    @property
    def depth(self) -> int:
        """The number of blocks that are left in part or whole."""
        return sum(not b.gone for b in self.blocks)

    def kept(self, tokens: int) -> tuple[int, ...]:
        """How many of `tokens` each block keeps (int(N * keep_ratio), at least 1)."""
        return tuple(keep_count(tokens, b.keep_ratio) for b in self.blocks)

    def with_blocks(self, *, operator: str | None = None, **values: Any) -> Plan:
        """A plan whose blocks all take these values; `operator` goes with keep_ratio."""
        blocks = tuple(replace(b, **values) for b in self.blocks)
        return replace(self, blocks=blocks, operator=self.operator if operator is None else operator)

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source.to_dict(), "blocks": [b.to_dict() for b in self.blocks], "embed_dims": list(self.embed_dims),
                "operator": self.operator}

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. `Plan.from_json` gives back an equal Plan."""
        return _canonical(self.to_dict())

    @property
    def id(self) -> str:
        """12 hexadecimal digits of SHA-256 over the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Strict: an unknown or missing key, or a wrong type, raises PlanError."""
        top = _take(data, "plan", ("source", "blocks", "embed_dims", "operator"))
        raw = _take(top["source"], "source", ("name", "family", "description"))
        for name in ("name", "family"):
            if not isinstance(raw[name], str):
                raise PlanError(f"source: {name} must be a string, not {raw[name]!r}")
        if not isinstance(raw["description"], Mapping):
            raise PlanError(f"source: description must be a mapping, not {raw['description']!r}")
        if not isinstance(top["blocks"], (list, tuple)) or not isinstance(top["embed_dims"], (list, tuple)):
            raise PlanError("blocks and embed_dims must be lists")
        blocks = []
        for i, item in enumerate(top["blocks"]):
            try:
                blocks.append(BlockPlan(**_take(item, "block", ("heads", "head_dim", "mlp_dim"), ("keep_ratio",))))
            except PlanError as error:
                raise PlanError(f"block {i}: {error}") from None
        return cls(source=Source.of(raw["name"], family=raw["family"], description=raw["description"]), blocks=tuple(blocks),
                   embed_dims=tuple(top["embed_dims"]), operator=top["operator"])

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`; raises PlanError on anything else."""
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise PlanError(f"not a plan: the text is not JSON ({error})") from None


def _canonical(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _take(data: Any, where: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise PlanError(f"{where} must be a mapping with the keys {', '.join(keys)}, not {data!r}")
    extra, missing = set(data) - set(keys) - set(optional), set(keys) - set(data)
    if extra or missing:
        raise PlanError(f"{where}: unknown keys {sorted(map(str, extra))}, missing keys {sorted(missing)}; "
                        f"accepted: {', '.join(keys + optional)}")
    return dict(data)
