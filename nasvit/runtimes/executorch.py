"""ExecuTorch with its XNNPACK back end, in an environment of its own."""

from __future__ import annotations

from typing import final

import torch

from nasvit.runtimes.base import RUNTIMES
from nasvit.runtimes.foreign import ForeignRuntime


@RUNTIMES.register("executorch")
@final
class ExecuTorch(ForeignRuntime):
    """ExecuTorch with XNNPACK; its process is pinned to as many cores as it may have threads."""

    name = "executorch"
    suffix = ".pte"
    packages = ("executorch", "torch", "numpy")

    @property
    def install(self) -> str:
        return f"python -m venv FOLDER && FOLDER/bin/pip install executorch torch=={torch.__version__.partition('+')[0]}"
