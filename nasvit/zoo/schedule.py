"""One set of weights under several slow-fast schedules: Evo-ViT (arXiv 2108.01390) trains layer by layer, then stage by stage."""

from __future__ import annotations

import re

from torch import Tensor

from nasvit.arch import Arch
from nasvit.errors import CheckpointError
from nasvit.models.network import Network
from nasvit.zoo.checkpoint import fill


def reschedule(source: Network, target: Network) -> None:
    """Copy the weights of `source` into `target`, which differs from it in its schedule alone: where tokens are selected, how many are
    kept, whether a representative leads the others.

    A trade-off that `target` learns and `source` does not have keeps its initial value; one that `target` does not have is left out.
    Raises CheckpointError, and changes nothing, where the blocks differ in more than that.
    """
    names = {where: name for name, where in _places(target).items()}
    state = source.state_dict()
    converted: dict[str, Tensor] = {}
    for name, where in _places(source).items():
        if where in names:
            converted[names[where]] = state[name]
        elif not where.endswith(".learn_tradeoff"):
            raise CheckpointError(f"{name} has no place in the other model; reschedule takes models that differ in their schedule alone")
    own = {n: v for n, v in target.state_dict().items() if n.endswith(".learn_tradeoff") and n not in converted}
    fill(target, converted | own)


def _places(model: Network) -> dict[str, str]:
    """Each tensor's name, to one that does not depend on how the schedule cuts the blocks into stages."""
    number = _numbers(model.arch)
    places = {}
    for name in model.state_dict():
        match = re.match(r"stages\.(\d+)\.(?:(blocks)\.(\d+)\.)?(.*)", name)
        if match is None:
            places[name] = name
            continue
        s, blocks, b, rest = match.groups()
        first, resolution = number[int(s)]
        places[name] = f"block {first + int(b)}.{rest}" if blocks else f"map {resolution}.{rest}"
    return places


def _numbers(arch: Arch) -> list[tuple[int, int]]:
    """Of each stage: how many blocks precede it, and which map, counted through the network, it works on."""
    numbers, blocks, maps = [], 0, 0
    for s, stage in enumerate(arch.stages):
        maps += s > 0 and stage.downsample != "none"
        numbers.append((blocks, maps))
        blocks += len(stage.blocks)
    return numbers
