"""What an Arch is made of, piece by piece, as a latency sees it: stem, joins, mixers, MLPs, selections, head.

A piece's family says which code runs (a mixer on the grid, the same mixer inside a slow-fast segment, ..), its variant adds the
parameters, its key all sizes. The order of execution is that of `models.network`; nothing is built here but one mixer of each kind,
on the meta device, for its multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from nasvit.arch import Arch, Block, Grid, MixerSpec, Stage, keep_count
from nasvit.models.estimate import join_cost, mixer_cost, stem_cost
from nasvit.models.mixers import MIXERS
from nasvit.models.tokens import segments


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """macs_m: millions of multiply-adds. values_k: thousands of values that it reads and writes."""

    family: str
    variant: str
    key: str
    macs_m: float
    values_k: float


def pieces(arch: Arch) -> list[Piece]:
    """All pieces of the network in the order they run, for one image. Raises ArchError where a mixer cannot be built."""
    first, height_width = arch.stages[0].embed_dim, arch.image_size
    macs, _ = stem_cost(arch.stem, height_width, arch.in_channels, first)
    found = [_piece("stem", f"{arch.stem.kind} {arch.stem.stride}", f"{first} at {height_width[0]}x{height_width[1]}", macs,
                    math.prod(height_width) * arch.in_channels + math.prod(arch.grid(0)) * first)]
    begins, ends = _class_token_life(arch)
    for i, stage in enumerate(arch.stages):
        grid = arch.grid(i)
        alive = begins is not None and ends is not None and begins <= i <= ends
        if i:
            before = arch.stages[i - 1].embed_dim
            joined = join_cost(stage.downsample, before, stage.embed_dim, grid) if stage.downsample != "levit" else (0, 0)
            found.append(_piece("join", stage.downsample, f"{before}-{stage.embed_dim} to {_size(grid)}", joined[0],
                                math.prod(grid) * (4 * before + stage.embed_dim)))
            if alive and begins is not None and begins < i:
                found.append(_piece("class token", "enters", f"{before}-{stage.embed_dim}", before * stage.embed_dim, before))
        found += _stage(stage, grid, alive=alive)
    last, tokens = arch.stages[-1].embed_dim, math.prod(arch.grid(len(arch.stages) - 1))
    found.append(_piece("head", arch.head.kind, f"{last}-{arch.num_classes} of {tokens}", last * arch.num_classes, tokens * last))
    return found


def _size(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


def _piece(family: str, variant: str, key: str, macs: float, values: float) -> Piece:
    whole = f"{family} {variant}".strip()
    return Piece(family=family, variant=whole, key=f"{whole} {key}", macs_m=macs / 1e6, values_k=values / 1e3)


def _class_token_life(arch: Arch) -> tuple[int | None, int | None]:
    """The stages where the class token begins and ends, as in `models.network`."""
    last = len(arch.stages) - 1
    slow = [i for i, stage in enumerate(arch.stages) if any(b.keep_ratio < 1 for b in stage.blocks)]
    predicts = arch.head.kind == "class_token"
    begins = 0 if arch.stem.class_token else min([*slow, *([last] if predicts else [])], default=None)
    return begins, last if arch.stem.class_token or predicts else max(slow, default=None)


@lru_cache(maxsize=20_000)
def _stage(stage: Stage, grid: Grid, *, alive: bool) -> tuple[Piece, ...]:
    """The blocks of a stage, segment by segment."""
    found: list[Piece] = []
    dim, tokens = stage.embed_dim, math.prod(grid)
    parts = segments(stage.blocks)
    own, rows = _scores(stage, parts, alive=alive)
    for start, stop, ratio in parts:
        blocks = stage.blocks[start:stop]
        sets = alive and all(spec.name in _attending() for b in blocks for spec in b.mixers)
        slow = alive and ratio < 1
        kept = keep_count(tokens, ratio) + 1 if slow else tokens
        if slow:
            if start in own:
                found.append(_piece("class attention", "", f"{dim} on {tokens}", 2 * tokens * dim + 2 * dim * dim, 2 * tokens * dim))
            found.append(_piece("selection", "set" if sets else "grid", f"{dim}, {kept} of {tokens}", 0, 3 * tokens * dim))
        elif sets:
            found.append(_piece("selection", "all", f"{dim}, {tokens}", 0, 2 * tokens * dim))
        for i, block in enumerate(blocks, start=start):
            form = "set" if sets else "joint" if alive and _sees(block) else "grid"
            found += _block(block, dim, grid, mode=f"slow {form}" if slow else form, kept=kept, row=rows[i])
    return tuple(found)


def _scores(stage: Stage, parts: Sequence[tuple[int, int, float]], *, alive: bool) -> tuple[set[int], list[bool]]:
    """Where a segment begins with a class attention of its own, and which blocks compute their class row."""
    sees = [_sees(b) for b in stage.blocks]
    own, scored = set(), False
    for start, stop, ratio in parts:
        if ratio < 1 and not scored:
            own.add(start)
        scored = scored or ratio < 1 or any(sees[start:stop])
    rows, after = [False] * len(stage.blocks), False
    for start, stop, ratio in reversed(parts):
        for i in reversed(range(start, stop)):
            rows[i] = alive and after and sees[i]
            after = after and not (ratio == 1 and rows[i])
        after = (after or ratio < 1) and start not in own
    return own, rows


@lru_cache(maxsize=1)
def _attending() -> frozenset[str]:
    """Names of the mixers that attend with the class token."""
    return frozenset(name for name in MIXERS if MIXERS[name].token_sets)


def _sees(block: Block) -> bool:
    return any(spec.name in _attending() for spec in block.mixers)


def _block(block: Block, dim: int, grid: Grid, *, mode: str, kept: int, row: bool) -> list[Piece]:
    """mode: grid, joint (a class token beside it), set (tokens without a grid), slow grid, slow joint or slow set."""
    found = []
    tokens = math.prod(grid)
    for spec in block.mixers:
        macs, _, any_set = mixer_cost(spec, dim, grid)
        # a mixer that needs the grid runs on all of it, whatever the segment
        where, used = (mode, kept) if any_set else ("grid", tokens)
        family = f"{spec.name}, {where}{', row' if row and any_set else ''}"
        inner = int(spec.kwargs["head_dim"]) * int(spec.kwargs["num_heads"]) if "head_dim" in spec.kwargs else dim
        width = str(dim) if inner == dim else f"{dim}-{inner}"
        found.append(_piece(family, _parameters(spec, dim), f"{width} on {used} of {_size(grid)}", macs * used / tokens,
                            used * (dim + 3 * inner)))
    found.append(_piece(f"mlp {block.mlp}, {mode}", "", f"{dim}-{block.mlp_dim} on {kept}", 2 * kept * dim * block.mlp_dim,
                        kept * (2 * dim + 2 * block.mlp_dim)))
    return found


def _parameters(spec: MixerSpec, dim: int) -> str:
    """Widths of heads instead of their number, which follows from the width of the attention."""
    head_dim = spec.kwargs.get("head_dim")
    return " ".join(f"head_dim={head_dim or dim // int(value)}" if key == "num_heads" else f"{key}={value}"
                    for key, value in spec.params if key != "head_dim")
