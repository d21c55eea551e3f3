"""What a family of dense models gives to pruning: how a model is read, how a plan is built, and what each tensor's axes belong to.

The axes are the whole knowledge of the slicer and of the importance: every axis of every tensor is a run of parts, each of one group
of channels, and a group is ranked and cut alike wherever it stands. Groups: "embed.S" the residual stream of stage S; of block I
"heads.I", "qk.I" (all heads' query and key channels), "v.I" (values), "qd.I" (query channels of one head, shared by all heads),
"mlp.I". Other names are the family's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nasvit.errors import ConfigError
from nasvit.pruning.plan import Plan, Source
from nasvit.registry import Registry

Axis = tuple[str, ...] | None
"""Groups standing one behind the other along an axis; None: an axis that is never cut."""


class UnsupportedModelError(ConfigError):
    """A model that cannot be pruned; the message names the modules. The model is as it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayout:
    """One dense block. stage: whose residual stream it stands on. heads, head_dim and mlp_dim as in BlockPlan; 0 where it has none.

    value_ratio: value channels for each query channel of a head. pairs: rotary positions tie query channels, "interleaved" (2j, 2j + 1)
    or "half" (j, j + head_dim / 2); then, and where `joint`, all heads keep the same channels. cut_heads, cut_head_dim,
    cut_mlp, drop_attention, drop_mlp, drop_block: what a plan may change; a block may be dropped whole where neither part can alone.
    head_step: what a smaller number of heads must be a multiple of.
    tokens: whether token operators may take tokens away here; else the block repeats the keep_ratio before it.
    """

    stage: int
    heads: int
    head_dim: int
    mlp_dim: int
    value_ratio: int = 1
    pairs: str | None = None
    joint: bool = False
    cut_heads: bool = True
    head_step: int = 1
    cut_head_dim: bool = True
    cut_mlp: bool = True
    drop_attention: bool = True
    drop_mlp: bool = True
    drop_block: bool = True
    tokens: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A dense model as the search sees it. operators: the token operators that are possible, and `refused`, for the others, why not.

    embed_granule: 0 where the width cannot be cut, else what it must be a multiple of. tokens: of the grid (of a ViT; else of stage 0).
    read: of how many tokens the last block gives its output in the inference form, None: of all.
    """

    blocks: tuple[BlockLayout, ...]
    embed_dims: tuple[int, ...]
    tokens: int
    operators: tuple[str, ...] = ("none",)
    refused: Mapping[str, str]
    embed_granule: int = 1
    read: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """A group of a family's own: `count` units of `width` channels, of which a plan keeps `keep`. by: the name of the units themselves,
    which several groups may share; they are then chosen once, for all."""

    count: int
    keep: int
    width: int = 1
    by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What an adapter found: the family's description (JSON data) and the tensors under the owned network's names."""

    description: dict[str, Any]
    state: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """read: raises UnsupportedModelError, and never changes the model. axes: of the tensor of this name, one Axis per dimension.

    extra: the family's own groups under a plan. names: from a tensor's name in a plan's module to that in the dense one.
    check: raises PlanError for what only the family can know. any_size: whether its models take images of any size, so that a plan's
    size is a choice.
    """

    name: str
    recognises: Callable[[nn.Module], bool]
    read: Callable[[nn.Module], Read]
    layout: Callable[[Source], Layout]
    build: Callable[[Plan], nn.Module]
    axes: Callable[[Source, str], tuple[Axis, ...]]
    extra: Callable[[Plan], dict[str, Units]] = lambda plan: {}
    names: Callable[[Plan], Callable[[str], str]] = lambda plan: str
    check: Callable[[Plan], object] = lambda plan: None
    any_size: bool = False


FAMILIES: Registry[Family] = Registry("pruning family")


def of_timm(model: nn.Module, *names: str) -> bool:
    """Whether the model is exactly one of timm's classes of these names."""
    return type(model).__module__.startswith("timm.") and type(model).__name__ in names
