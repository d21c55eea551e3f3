"""LiteRT (once TensorFlow Lite) with its XNNPACK delegate, in an environment of its own."""

from __future__ import annotations

from typing import final

import torch

from nasvit.runtimes.base import RUNTIMES
from nasvit.runtimes.foreign import ForeignRuntime


@RUNTIMES.register("litert")
@final
class LiteRt(ForeignRuntime):
    """LiteRT with XNNPACK."""

    name = "litert"
    suffix = ".tflite"
    packages = ("ai-edge-litert", "litert-torch", "torch", "numpy")

    @property
    def install(self) -> str:
        return f"python -m venv FOLDER && FOLDER/bin/pip install litert-torch torch=={torch.__version__.partition('+')[0]}"
