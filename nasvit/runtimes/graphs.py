"""CUDA graphs: the module's kernels recorded once and launched as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from nasvit.errors import MeasurementError
from nasvit.runtimes.base import RUNTIMES, Runtime, failed

WARM_UP = 3


@RUNTIMES.register("graphs")
@final
class Graphs(Runtime):
    """CUDA graphs of torch's own kernels: no time is lost on launching them one by one."""

    name = "graphs"
    form = "deployed"
    devices = ("cuda",)

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        self.check()
        if example.device.type != "cuda":
            raise MeasurementError(f"graphs runs on cuda, and the example is on {example.device.type}; use --device cuda/graphs")
        given = example.clone()
        try:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.inference_mode(), torch.cuda.stream(beside):
                for _ in range(WARM_UP):  # libraries choose their kernels and take their workspaces before the recording
                    module(given)
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.inference_mode(), torch.cuda.graph(graph):
                made = module(given)
        except RuntimeError as error:
            raise failed(error, what=f"graphs cannot take {type(module).__name__}") from error

        def call(image: Tensor) -> object:
            if image.data_ptr() != example.data_ptr():
                given.copy_(image)
            graph.replay()
            return made

        return call

    def version(self) -> str:
        return f"torch {torch.__version__} CUDA {torch.version.cuda} graphs"

    def missing(self) -> str | None:
        return None if torch.cuda.is_available() else "this torch finds no CUDA GPU"
