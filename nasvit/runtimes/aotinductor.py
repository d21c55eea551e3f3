"""torch.export and AOTInductor: a compiled library in a file, which needs torch to be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from nasvit.runtimes.base import RUNTIMES, FileRuntime
from nasvit.runtimes.compile import compiler_missing


@RUNTIMES.register("aotinductor")
@final
class AotInductor(FileRuntime):
    """torch.export and AOTInductor; the file runs on processors of the kind it was made on."""

    name = "aotinductor"
    suffix = ".pt2"

    def write(self, module: nn.Module, example: Tensor, path: Path) -> None:
        program = torch.export.export(module, (example,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))

    def version(self) -> str:
        return f"torch {torch.__version__} aotinductor"

    def missing(self) -> str | None:
        return compiler_missing()
