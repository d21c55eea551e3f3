"""torch.compile: the inductor compiler inside this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from nasvit.runtimes.base import RUNTIMES, Runtime, failed


@RUNTIMES.register("compile")
@final
class Compile(Runtime):
    """torch.compile with the inductor back end, static shapes, the whole network in one graph."""

    name = "compile"
    devices = ("cpu", "cuda")

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        self.check()
        try:
            with torch.no_grad():
                # A module's class compiles at most eight of its objects, and torch then goes on uncompiled; the exported graph has
                # code of its own.
                graph = torch.export.export(module, (example,)).module()
            with torch.inference_mode():
                compiled = torch.compile(graph, fullgraph=True, dynamic=False)
                compiled(example)
        except Exception as error:  # a compiler may fail with any exception; the user must know for which network
            raise failed(error, what=f"compile cannot take {type(module).__name__} for an input of shape {tuple(example.shape)}") from error
        return compiled

    def version(self) -> str:
        return f"torch {torch.__version__} inductor"

    def missing(self) -> str | None:
        return compiler_missing()


def compiler_missing() -> str | None:
    """What to install where there is no C++ compiler, else None."""
    wanted = os.environ.get("CXX", "g++")
    return None if shutil.which(wanted) else f"it needs a C++ compiler and {wanted} is not on the path; install g++, or set CXX to another"
