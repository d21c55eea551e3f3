"""Runtimes for tests: eager with a fault of choice."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nasvit.errors import MeasurementError
from nasvit.models.mixers import Mixer
from nasvit.runtimes import Runtime


class Faulty(Runtime):
    """Eager that refuses mixers, or changes what comes out."""

    name = "faulty"

    def __init__(self, *, refuses: Callable[[Mixer], bool] = lambda mixer: False,
                 change: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = lambda outputs: outputs) -> None:
        super().__init__()
        self.refuses, self.change, self.prepared = refuses, change, 0

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        self.prepared += 1
        for part in module.modules():
            if isinstance(part, Mixer) and self.refuses(part):
                raise MeasurementError(f"no {type(part).__name__} here")

        def call(image: Tensor) -> tuple[Tensor, ...]:
            out = module(image)
            return self.change(tuple(t.clone() for t in out) if isinstance(out, tuple) else (out.clone(),))

        return call

    def version(self) -> str:
        return "faulty 1.0"

    def missing(self) -> str | None:
        return None
