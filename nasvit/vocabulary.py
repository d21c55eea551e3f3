"""The vocabulary of mixer parameters: what a parameter of a given name means and accepts, wherever it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Scalar = int | float | bool | str
Grid = tuple[int, int]

MAX_SIZE = 2**20
"""No width, side or number of classes is larger: what lies above is a slip or an attack, and is refused before anything counts to it."""

Rule = Callable[[Any, int, Grid, Mapping[str, Scalar]], str | None]


def _heads(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    split: Any = params.get("split_size")
    step = 2 if is_int(split) and int(split) < max(grid) else 1  # stripes both ways: half of the heads each
    if "key_dim" in params or "head_dim" in params:  # heads of a width of their own
        return None if is_int(value) and value >= 1 and value % step == 0 else f"a positive {'even number' if step == 2 else 'integer'}"
    if is_int(value) and value >= 1 and dim % value == 0 and value % step == 0:
        return None
    which = "an even divisor" if step == 2 else "a divisor"
    return f"{which} of embed_dim {dim}: {_listed(d for d in range(step, dim + 1, step) if dim % d == 0)}"


def _head_dim(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    heads: Any = params.get("num_heads")
    if not is_int(value) or value < 1 or (is_int(heads) and heads * value > MAX_SIZE):
        return f"a positive integer, times num_heads up to {MAX_SIZE}"
    fills = is_int(heads) and heads * value == dim  # a network has one spelling
    return f"leaving it out where {heads} heads of it fill embed_dim {dim}" if fills else None


def _window(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    return None if is_int(value) and 1 <= value <= min(grid) else f"1 to {min(grid)}, the shorter side of the {grid[0]}x{grid[1]} map"


def _shift(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    if not isinstance(value, bool):
        return "true or false"
    return "false where the window is one token or covers the map" if value and forced("shift", params, grid=grid) is False else None


def _kernel(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    return None if is_int(value) and value >= 3 and value % 2 else "an odd number from 3"


def _split(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    return None if is_int(value) and 1 <= value <= max(grid) else f"1 to {max(grid)}, the longer side of the {grid[0]}x{grid[1]} map"


def _reduction(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    most = min(grid)
    if is_int(value) and 2 <= value <= most:
        return None
    return f"2 to {most}, the shorter side of the {grid[0]}x{grid[1]} map" if most > 1 else "none on a map one token wide"


def _depth(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    tokens = grid[0] * grid[1]
    deepest = (tokens & -tokens).bit_length() - 1  # 2-adic valuation: clusters must come out equal
    return None if is_int(value) and 0 <= value <= deepest else f"0 to {deepest}: 2**cluster_depth must divide {tokens} tokens"


def _overlap(value: Any, dim: int, grid: Grid, params: Mapping[str, Scalar]) -> str | None:
    depth: Any = params.get("cluster_depth", 0)
    most = 0 if not is_int(depth) or depth <= 0 else grid[0] * grid[1] >> min(depth, 63)  # 2**depth may be too large to be written
    return None if is_int(value) and 0 <= value <= most else f"0 to {most} tokens at cluster_depth {depth}"


VOCABULARY: dict[str, Rule] = {"num_heads": _heads, "head_dim": _head_dim, "window_size": _window, "shift": _shift, "kernel_size": _kernel,
                               "split_size": _split, "reduction": _reduction,
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
        size = params["window_size"]
        return False if is_int(size) and (size >= min(grid) or size == 1) else None  # type: ignore[operator]
    if name == "overlap" and params.get("cluster_depth") == 0:
        return 0
    return None


def is_int(value: Any) -> bool:
    """Whether it is an integer, and not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(values: Any) -> str:
    return ", ".join(str(v) for v in values)
