"""prepare, build, slice: from a live model to an owned dense network, and from that to a pruned one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nasvit.arch import Arch
from nasvit.pruning.families import FAMILIES, Family, Layout, UnsupportedModelError
from nasvit.pruning.families.reading import same_eval
from nasvit.pruning.plan import BlockPlan, Plan, PlanError, Source
from nasvit.pruning.slicing import Scores, sliced_state

SAME = 1e-4
"""The largest relative difference between a model and its owned copy on one image; above it the adapter does not know the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """An owned dense network: its plan keeps everything, `module` has the copied weights. Treat both as read-only."""

    plan: Plan
    module: nn.Module

    @property
    def layout(self) -> Layout:
        """What a plan may choose."""
        return layout_of(self.plan.source)

    @property
    def state(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()


def layout_of(source: Source) -> Layout:
    """The dense model of a source as the search sees it."""
    return FAMILIES[source.family].layout(source)


def family_for(model: nn.Module) -> Family:
    """The family that recognises a model; raises UnsupportedModelError naming its class and the families."""
    for name in FAMILIES:
        if FAMILIES[name].recognises(model):
            return FAMILIES[name]
    raise UnsupportedModelError(f"{type(model).__module__}.{type(model).__name__} is of no family that can be pruned "
                                f"(accepted: {', '.join(FAMILIES)}); the model is unchanged")


def prepare(model: nn.Module, *, name: str | None = None, image_size: tuple[int, int] | None = None, check: bool = True) -> Dense:
    """An owned copy of a model, in eval mode on its device; the model itself is never changed.

    name: for people, such as timm:deit_small_patch16_224; the class's by default. image_size: of models that take any (PVTv2). check:
    compare both on one image, and refuse the model if they differ. A dense network that was owned before (`Dense.module`, or its files)
    keeps its name. Raises UnsupportedModelError naming the modules it does not know.
    """
    if isinstance(getattr(model, "plan", None), Plan):
        return _owned(model, image_size=image_size)
    family = family_for(model)
    read = family.read(model)
    description = dict(read.description)
    if image_size is not None and tuple(description["image_size"]) != tuple(image_size):
        if not family.any_size:
            raise UnsupportedModelError(f"{type(model).__name__} takes images of {tuple(description['image_size'])}, not {image_size}; "
                                        "create it for that size; the model is unchanged")
        description["image_size"] = list(image_size)
    source = Source.of(name or f"{type(model).__module__.split('.')[0]}:{type(model).__name__}", family=family.name,
                       description=description)
    plan = dense_plan(source)
    module = family.build(plan)
    module.load_state_dict(read.state)
    first = next(iter(model.parameters()))
    module.to(first.device, first.dtype).eval()
    if check:
        difference = same_eval(model, module, shape=input_shape(plan))
        if not difference <= SAME:
            raise UnsupportedModelError(f"{type(model).__name__} cannot be pruned: its owned copy differs by {difference:.1e} on an image, "
                                        "so the model does something that its modules do not show; the model is unchanged")
    return Dense(plan=plan, module=module)


def _owned(model: nn.Module, *, image_size: tuple[int, int] | None) -> Dense:
    """A copy of a network of `build`, if it is a dense one: which units of its dense model a pruned one has, no plan can name."""
    plan: object = model.plan
    assert isinstance(plan, Plan)
    if not touches_nothing(plan):
        raise UnsupportedModelError(f"{plan.source.name} was pruned before; prune its dense model further (the two files in dense/ "
                                    "of the run); the model is unchanged")
    if image_size is not None and input_shape(plan)[1:] != tuple(image_size):
        raise UnsupportedModelError(f"{plan.source.name} takes images of {input_shape(plan)[1:]}, not {image_size}; the model is unchanged")
    return Dense(plan=plan, module=copy.deepcopy(model).eval())


def dense_plan(source: Source) -> Plan:
    """The plan that keeps everything."""
    layout = layout_of(source)
    blocks = tuple(BlockPlan(heads=b.heads, head_dim=b.head_dim, mlp_dim=b.mlp_dim) for b in layout.blocks)
    return Plan(source=source, blocks=blocks, embed_dims=layout.embed_dims)


def input_shape(plan: Plan) -> tuple[int, int, int]:
    """(in_channels, H, W)"""
    options: dict[str, Any] = plan.source.options
    return options["in_channels"], *options["image_size"]


def check(plan: Plan) -> None:
    """Raise PlanError, naming the block, for what the source's dense model cannot give."""
    layout = layout_of(plan.source)
    if len(plan.blocks) != len(layout.blocks) or len(plan.embed_dims) != len(layout.embed_dims):
        raise PlanError(f"{len(plan.blocks)} blocks and {len(plan.embed_dims)} embed_dims for a model of {len(layout.blocks)} and "
                        f"{len(layout.embed_dims)}")
    if plan.operator not in layout.operators:
        raise PlanError(f"operator {plan.operator} is not possible for {plan.source.name}: {layout.refused.get(plan.operator, '')} "
                        f"(accepted: {', '.join(layout.operators)})")
    for s, (dim, dense_dim) in enumerate(zip(plan.embed_dims, layout.embed_dims, strict=True)):
        if dim != dense_dim and (not layout.embed_granule or dim > dense_dim or dim % layout.embed_granule):
            raise PlanError(f"embed_dims[{s}] {dim} is not possible; accepted: {dense_dim}"
                            + (f", or a smaller multiple of {layout.embed_granule}" if layout.embed_granule else ""))
    for i, (left, dense) in enumerate(zip(plan.blocks, layout.blocks, strict=True)):
        if left.gone and dense.drop_block:
            continue
        for name, droppable, cuttable, step in (("heads", dense.drop_attention, dense.cut_heads, dense.head_step),
                                                ("head_dim", dense.drop_attention, dense.cut_head_dim, 1),
                                                ("mlp_dim", dense.drop_mlp, dense.cut_mlp, 1)):
            value, limit = getattr(left, name), getattr(dense, name)
            if value == limit or (value == 0 and droppable) or (0 < value < limit and cuttable and value % step == 0):
                continue
            smaller = f", 1 to {limit - 1}" if step == 1 else f", a smaller multiple of {step}"
            raise PlanError(f"block {i}: {name} {value} is not possible; accepted: {limit}"
                            + (smaller if cuttable else "") + (", 0" if droppable else ""))
        if dense.pairs and left.head_dim % 2:
            raise PlanError(f"block {i}: head_dim {left.head_dim} is odd, and rotary positions turn pairs; accepted: even numbers")
        if plan.operator != "none":
            _check_tokens(plan, i, tokens=layout.tokens)
    FAMILIES[plan.source.family].check(plan)


def _check_tokens(plan: Plan, i: int, *, tokens: int) -> None:
    """Whether block i can do what its keep_ratio asks."""
    kept = plan.kept(tokens)
    if i and not layout_of(plan.source).blocks[i].tokens and plan.blocks[i].keep_ratio != plan.blocks[i - 1].keep_ratio:
        raise PlanError(f"block {i}: it updates the class token alone, so its keep_ratio repeats the one before it")
    before = kept[i - 1] if i else tokens
    if plan.operator == "slow_fast":
        if i == 0 and kept[0] < tokens:
            raise PlanError("block 0: slow_fast needs the attention of a block before it; its keep_ratio must be 1.0")
        if kept[i] < before and all(b.heads == 0 for b in plan.blocks[:i]):
            raise PlanError(f"block {i}: slow_fast needs the attention of a block before it, and none has any")
    elif kept[i] < before:
        if plan.blocks[i].heads == 0:
            raise PlanError(f"block {i}: {plan.operator} happens behind an attention, and the block has none; do it in another")
        if plan.operator == "merge" and before - kept[i] > before // 2:
            raise PlanError(f"block {i}: merge leaves at least half of the {before} tokens, not {kept[i]}; spread it over blocks")


def build(plan: Plan) -> nn.Module:
    """The module of a plan with untrained weights; raises PlanError."""
    check(plan)
    return FAMILIES[plan.source.family].build(plan)  # of an Arch's plan: the network of the smaller Arch


def arch_left(plan: Plan) -> Arch | None:
    """The Arch that a plan leaves of a network that was built from one; None of any other, which no Arch can say. Raises PlanError."""
    form = getattr(build(plan), "arch", None)
    return form if isinstance(form, Arch) else None


def slice_weights(dense: Dense, plan: Plan, scores: Scores) -> nn.Module:
    """The module of a plan with the dense model's most important weights, in eval mode. The dense model stays as it is.

    scores: of `nasvit.pruning.importance`. Raises PlanError for a plan of another source, or one that cannot be built.
    """
    if plan.source != dense.plan.source:
        raise PlanError(f"the plan is of {plan.source.name} and the dense model is {dense.plan.source.name}; "
                        "take plans from the dense model's own: dataclasses.replace(dense.plan, ...)")
    module = build(plan)
    first = next(iter(dense.module.parameters()))
    module.to(first.device, first.dtype)
    module.load_state_dict(sliced_state(plan, module, dense.state, scores))
    return module.eval()


def touches_nothing(plan: Plan) -> bool:
    """Whether a plan is the dense model."""
    return plan == dense_plan(plan.source)
