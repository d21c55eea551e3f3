"""Converts an exported program to another runtime's file: run as a script by an environment that has torch and that runtime.

Imports nothing of nasvit, which that environment does not have. Arguments: the runtime, the program (.pt2), the file to write.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def executorch(program: Any, path: str) -> None:
    """XNNPACK takes what it can, portable kernels the rest."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    _in_one_piece(program)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    with open(path, "wb") as file:
        file.write(lowered.to_executorch().buffer)


def _in_one_piece(program: Any) -> None:
    """Attention's results in one piece where they were traced so: ExecuTorch's decomposition of attention lays them out in another way, and
    views of them as rows fail then."""
    import torch

    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default):
        if node.meta["val"].is_contiguous():
            with graph.inserting_after(node):
                copied = graph.call_function(torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
            copied.meta = dict(node.meta)
            node.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
    program.graph_module.recompile()


def litert(program: Any, path: str) -> None:
    """Through StableHLO."""
    import litert_torch

    inputs = program.example_inputs[0]
    litert_torch.convert(program.module(), inputs).export(path)


def sorted_by_topk(program: Any) -> Any:
    """The program with every sort written as a top-k of everything, which both runtimes have: ExecuTorch has no kernel that sorts, and
    LiteRT's converter compares what is sorted and its places in one type. Equal values may change places, as sort lets them."""
    import torch

    def places(x: Any, dim: int = -1, descending: bool = False) -> Any:
        keys = x if x.is_floating_point() else x.float()  # places themselves, far below 2 ** 24
        return torch.topk(keys if descending else -keys, x.shape[dim], dim=dim, largest=True, sorted=True).indices

    def both(x: Any, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
        order = places(x, dim, descending)
        return torch.gather(x, dim, order), order

    return program.run_decompositions({torch.ops.aten.sort.default: both, torch.ops.aten.argsort.default: places})


CONVERTERS: dict[str, Callable[[Any, str], None]] = {"executorch": executorch, "litert": litert}


def main() -> None:
    """Convert."""
    import torch

    name, source, target = sys.argv[1:]
    CONVERTERS[name](sorted_by_topk(torch.export.load(source)), target)


if __name__ == "__main__":
    main()
