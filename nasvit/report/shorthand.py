"""Arch to short text: what a person reads in a table, a tooltip and a picture.

`slide5×2 | window4+fsla@0.7 | catm`: stages divided by a bar, equal neighbours counted, the mixers of one block joined by a
plus, the keep ratio after an at sign where tokens are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from nasvit.arch import Arch, Block, MixerSpec, Stage

TIMES = "\u00d7"  # the multiplication sign
MIXER_ORDER = ("window", "slide", "fsla", "catm", "global", "integration")
_TELLING = {"slide": "kernel_size", "window": "window_size"}  # the one parameter worth its place in a short name


def mixer_rank(name: str) -> tuple[int, str]:
    """Sort key: the shipped mixers in their fixed order, then all others by name."""
    return (MIXER_ORDER.index(name) if name in MIXER_ORDER else len(MIXER_ORDER), name)


def mixer_text(mixer: MixerSpec) -> str:
    """`slide5`, `window4`, `fsla`."""
    return f"{mixer.name}{mixer.kwargs.get(_TELLING.get(mixer.name, ''), '')}"


def block_text(block: Block) -> str:
    """`window4+fsla@0.7`."""
    kept = f"@{block.keep_ratio:.2g}" if block.keep_ratio < 1 else ""
    return "+".join(mixer_text(m) for m in block.mixers) + kept


def stage_text(stage: Stage) -> str:
    """`slide5×2 catm`: equal neighbours are counted."""
    runs = [(text, len(list(group))) for text, group in groupby(block_text(b) for b in stage.blocks)]
    return " ".join(f"{text}{TIMES}{count}" if count > 1 else text for text, count in runs)


def arch_text(arch: Arch) -> str:
    """`slide5×2 | window4+fsla | catm`."""
    return " | ".join(stage_text(s) for s in arch.stages)


def stage_line(arch: Arch, *, stage: int) -> str:
    """One stage in full for a tooltip: `8×8 map, 32 wide: slide5×2`."""
    height, width = arch.grid(stage)
    return f"{height}{TIMES}{width} map, {arch.stages[stage].embed_dim} wide: {stage_text(arch.stages[stage])}"


def main_mixer(arch: Arch) -> str:
    """The mixer with the largest share of the blocks (a block of two mixers counts half for each); ties by the fixed order."""
    share: dict[str, float] = {}
    for stage in arch.stages:
        for block in stage.blocks:
            for mixer in block.mixers:
                share[mixer.name] = share.get(mixer.name, 0.0) + 1 / len(block.mixers)
    return min(share, key=lambda name: (-round(share[name], 9), *mixer_rank(name)))


def mean_keep_ratio(arch: Arch) -> float:
    """Mean over all blocks; 1.0 where every token takes the slow path everywhere."""
    ratios = [b.keep_ratio for s in arch.stages for b in s.blocks]
    return sum(ratios) / len(ratios)


def plan_facts(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What a table shows of a pruned model, from its Plan as a dictionary: depth, widths, text, mean keep ratio."""
    blocks = [b for b in plan["blocks"] if b["heads"] or b["mlp_dim"]]
    ratios = [float(b.get("keep_ratio", 1.0)) for b in plan["blocks"]]
    shown = (("heads", "heads"), ("of", "head_dim"), ("mlp", "mlp_dim"))
    parts = [f"{name} {_span([int(b[key]) for b in blocks if b[key]])}" for name, key in shown]
    tokens = f" {plan['operator']}@{min(ratios):.2g}" if min(ratios) < 1 else ""
    return {"depth": len(blocks), "widths": "-".join(map(str, plan["embed_dims"])), "mixers": " ".join(parts) + tokens,
            "main_mixer": plan["operator"], "keep_ratio": sum(ratios) / len(ratios)}


def _span(values: Sequence[int]) -> str:
    low, high = (min(values), max(values)) if values else (0, 0)
    return f"{low}" if low == high else f"{low}-{high}"
