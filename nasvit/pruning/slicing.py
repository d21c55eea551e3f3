"""From a dense model and a plan to a pruned module: rank the groups, cut every tensor along its axes.

What is cut is said by the family's axes alone, so a group is cut alike wherever it stands: the residual stream of a stage in every
norm, projection and table that touches it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.pruning.families.base import FAMILIES, Axis, BlockLayout, Units
from nasvit.pruning.plan import BlockPlan, Plan, PlanError

Scores = Mapping[str, Tensor]
"""Group -> one importance for each of its units, higher is kept. What is missing keeps the first units."""


def group_sizes(plan: Plan) -> dict[str, int]:
    """How many units each group of the source's dense network has."""
    layout = FAMILIES[plan.source.family].layout(plan.source)
    sizes = {f"embed.{s}": dim for s, dim in enumerate(layout.embed_dims)}
    for i, b in enumerate(layout.blocks):
        sizes |= {f"heads.{i}": b.heads, f"qd.{i}": b.head_dim, f"qk.{i}": b.heads * b.head_dim,
                  f"v.{i}": b.heads * b.head_dim * b.value_ratio, f"mlp.{i}": b.mlp_dim}
    for group, units in FAMILIES[plan.source.family].extra(plan).items():
        sizes[group] = units.count * units.width
        if units.by:
            sizes[units.by] = units.count
    return sizes


def choose(plan: Plan, scores: Scores) -> dict[str, Tensor]:
    """The indices that stay of every group, ascending. Raises PlanError for scores that are none of these groups'."""
    _check_scores(plan, scores)
    layout = FAMILIES[plan.source.family].layout(plan.source)
    chosen = {f"embed.{s}": best(scores.get(f"embed.{s}"), keep=plan.embed_dims[s], of=dim) for s, dim in enumerate(layout.embed_dims)}
    for i, (dense, left) in enumerate(zip(layout.blocks, plan.blocks, strict=True)):
        chosen[f"mlp.{i}"] = best(scores.get(f"mlp.{i}"), keep=left.mlp_dim, of=dense.mlp_dim)
        if left.heads:
            chosen |= _choose_heads(i, dense, left, scores)
    return chosen | _choose_units(FAMILIES[plan.source.family].extra(plan), scores)


def _check_scores(plan: Plan, scores: Scores) -> None:
    sizes = group_sizes(plan)
    for name, score in scores.items():
        if name not in sizes:
            raise PlanError(f"scores of {name}, which is no group of {plan.source.name}; accepted: {', '.join(list(sizes)[:8])}, ..")
        if score.shape != (sizes[name],) or not bool(score.isfinite().all()):
            raise PlanError(f"the scores of {name} must be {sizes[name]} finite numbers, not of shape {tuple(score.shape)}"
                            + ("" if bool(score.isfinite().all()) else " with what is no number"))


def _choose_units(groups: Mapping[str, Units], scores: Scores) -> dict[str, Tensor]:
    """Whole units of the family's own groups; those that share their units keep the same."""
    chosen: dict[str, Tensor] = {}
    for name, units in groups.items():
        by = units.by or name
        if by not in chosen:
            shared = [scores[g].view(u.count, u.width).sum(dim=1) for g, u in groups.items() if (u.by or g) == by and g in scores]
            score = scores.get(by) if units.by else None
            total = [*shared, *([score] if score is not None else [])]
            chosen[by] = best(sum(total[1:], total[0]) if total else None, keep=units.keep, of=units.count)
        if units.by:
            chosen[name] = (chosen[by][:, None] * units.width + torch.arange(units.width)).flatten()
    return chosen


def _choose_heads(i: int, dense: BlockLayout, left: BlockPlan, scores: Scores) -> dict[str, Tensor]:
    values = dense.head_dim * dense.value_ratio
    qk = scores.get(f"qk.{i}", torch.zeros(dense.heads * dense.head_dim)).view(dense.heads, dense.head_dim)
    v = scores.get(f"v.{i}", torch.zeros(dense.heads * values)).view(dense.heads, values)
    heads = best(scores.get(f"heads.{i}", qk.sum(1) + v.sum(1)), keep=left.heads, of=dense.heads)
    qk, v = qk[heads], v[heads]
    if dense.joint:
        dims = _best_channels(qk.sum(0), keep=left.head_dim, pairs=dense.pairs).expand(len(heads), -1)
    else:
        dims = torch.stack([best(row, keep=left.head_dim, of=dense.head_dim) for row in qk])
    value_dims = torch.stack([best(row, keep=left.head_dim * dense.value_ratio, of=values) for row in v])
    return {f"heads.{i}": heads, f"qd.{i}": dims[0], f"qk.{i}": (heads[:, None] * dense.head_dim + dims).flatten(),
            f"v.{i}": (heads[:, None] * values + value_dims).flatten()}


def _best_channels(score: Tensor, *, keep: int, pairs: str | None) -> Tensor:
    """The channels all heads keep; those that rotary positions tie together stay together."""
    size = len(score)
    if pairs is None:
        return best(score, keep=keep, of=size)
    if pairs == "half":
        first = best(score[: size // 2] + score[size // 2 :], keep=keep // 2, of=size // 2)
        return torch.cat([first, first + size // 2])
    first = best(score.view(-1, 2).sum(1), keep=keep // 2, of=size // 2)
    return torch.stack([2 * first, 2 * first + 1], dim=1).flatten()


def best(score: Tensor | None, *, keep: int, of: int) -> Tensor:
    """The indices of the `keep` highest of `of` scores, ascending; equal scores keep the first."""
    if score is None or keep == of:
        return torch.arange(keep)
    return score.double().cpu().argsort(descending=True, stable=True)[:keep].sort().values


def cut(value: Tensor, axes: tuple[Axis, ...], *, chosen: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Tensor:
    """A tensor with only the chosen units left along every axis."""
    for dim, axis in enumerate(axes):
        if axis is None:
            continue
        index, offset = [], 0
        for group in axis:
            index.append(chosen[group] + offset)
            offset += sizes[group]
        if offset != value.shape[dim]:
            raise RuntimeError(f"axis {dim} of a tensor of shape {tuple(value.shape)} is described as {axis}, which has {offset} units")
        value = value.index_select(dim, torch.cat(index).to(value.device))
    return value


def sliced_state(plan: Plan, target: nn.Module, state: Mapping[str, Tensor], scores: Scores) -> dict[str, Any]:
    """The tensors of `target`, the module of the plan, out of the dense ones."""
    family, chosen, sizes, taken = FAMILIES[plan.source.family], choose(plan, scores), group_sizes(plan), {}
    dense_name = family.names(plan)
    for name in target.state_dict():
        source = dense_name(name)
        if source not in state:
            raise PlanError(f"the plan needs {name}, and the dense model has no such weights; change what it asks of that part")
        taken[name] = cut(state[source], family.axes(plan.source, source), chosen=chosen, sizes=sizes)
    return taken
