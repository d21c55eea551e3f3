"""torch as it is: the module's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from nasvit.runtimes.base import RUNTIMES, Runtime


@RUNTIMES.register("eager")
@final
class Eager(Runtime):
    """torch, calling the module."""

    name = "eager"
    form = "deployed"
    devices = ("cpu", "cuda")

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        return module

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def missing(self) -> str | None:
        return None
