"""The plan that cuts every part alike: what a search has to beat, and a start for one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from nasvit.errors import ConfigError
from nasvit.pruning.dense import check, dense_plan, layout_of
from nasvit.pruning.families import Layout
from nasvit.pruning.plan import BlockPlan, Plan, Source
from nasvit.vocabulary import is_int

PARTS = ("heads", "head_dim", "mlp", "embed")


def uniform(source: Source, *, keep: float, parts: Sequence[str] = ("heads", "mlp", "embed"), granule: int = 8, operator: str = "none",
            keep_ratio: float = 1.0) -> Plan:
    """The share `keep` of every part, rounded down to multiples of the granule (heads: to whole heads, at least 1).

    operator and keep_ratio: the token operator, with the ratio falling evenly over the blocks to keep_ratio ("merge" and "topk_fuse"), or
    from the second third of the blocks on ("slow_fast"). Raises ConfigError or PlanError.
    """
    layout, dense = layout_of(source), dense_plan(source)
    unknown = [p for p in parts if p not in PARTS]
    if unknown or not 0 < keep <= 1:
        raise ConfigError(f"parts {', '.join(parts)} with keep {keep} are not possible; accepted: {', '.join(PARTS)}, and keep in (0, 1]")
    if not 0 < keep_ratio <= 1 or (operator == "none" and keep_ratio < 1):
        raise ConfigError(f"keep_ratio {keep_ratio} with operator {operator} is not possible; accepted: a number in (0, 1], and 1 where no "
                          "operator takes tokens away")
    if not is_int(granule) or granule < 1:
        raise ConfigError(f"granule must be an integer from 1, not {granule!r}")
    able = sum(form.tokens for form in layout.blocks)
    ratios = _ratios(able, operator=operator, keep_ratio=keep_ratio)
    ratios += ratios[-1:] * (len(dense.blocks) - able)  # blocks that take no tokens away stand last
    blocks = []
    for left, form, ratio in zip(dense.blocks, layout.blocks, ratios, strict=True):
        step = form.head_step
        heads = max(step, round(left.heads * keep / step) * step) if "heads" in parts and form.cut_heads and left.heads else left.heads
        head_dim = _cut(left.head_dim, keep, granule) if "head_dim" in parts and form.cut_head_dim else left.head_dim
        mlp_dim = _cut(left.mlp_dim, keep, granule) if "mlp" in parts and form.cut_mlp else left.mlp_dim
        blocks.append(BlockPlan(heads=heads, head_dim=head_dim, mlp_dim=mlp_dim, keep_ratio=ratio))
    plan = replace(dense, blocks=tuple(blocks), embed_dims=_widths(layout, keep, granule) if "embed" in parts else layout.embed_dims,
                   operator=operator)
    check(plan)
    return plan


def _cut(size: int, keep: float, granule: int) -> int:
    """The share of a size, a multiple of the granule where it is at least one."""
    wanted = int(size * keep)
    return max(2, wanted - wanted % 2) if size < 2 * granule and size > 1 else max(granule, wanted - wanted % granule) if size > 1 else size


def _widths(layout: Layout, keep: float, granule: int) -> tuple[int, ...]:
    if not layout.embed_granule:
        return layout.embed_dims
    step = math.lcm(granule, layout.embed_granule)
    return tuple(min(dim, max(step, int(dim * keep) // step * step)) for dim in layout.embed_dims)


def _ratios(depth: int, *, operator: str, keep_ratio: float) -> list[float]:
    if operator == "none" or keep_ratio == 1:
        return [1.0] * depth
    if operator == "slow_fast":
        return [1.0 if i < max(1, depth // 3) else keep_ratio for i in range(depth)]
    return [1 - (1 - keep_ratio) * (i + 1) / depth for i in range(depth - 1)] + [keep_ratio]
