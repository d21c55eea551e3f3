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

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    with open(path, "wb") as file:
        file.write(lowered.to_executorch().buffer)


def litert(program: Any, path: str) -> None:
    """Through StableHLO."""
    import litert_torch

    inputs = program.example_inputs[0]
    litert_torch.convert(program.module(), inputs).export(path)


CONVERTERS: dict[str, Callable[[Any, str], None]] = {"executorch": executorch, "litert": litert}


def main() -> None:
    """Convert."""
    import torch

    name, source, target = sys.argv[1:]
    CONVERTERS[name](torch.export.load(source), target)


if __name__ == "__main__":
    main()
