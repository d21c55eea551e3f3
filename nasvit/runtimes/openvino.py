"""OpenVINO on the CPU, in float32 or with weights in int8."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from nasvit.runtimes.base import RUNTIMES, FileRuntime, lacking, package_version


@RUNTIMES.register("openvino")
@final
class OpenVino(FileRuntime):
    """OpenVINO. Settings: precision=fp32|int8 (int8: weights of linear layers, activations quantised while it runs)."""

    name = "openvino"
    suffix = ".xml"
    accepted: ClassVar = {"precision": ("fp32", "int8")}

    def write(self, module: nn.Module, example: Tensor, path: Path) -> None:
        import openvino as ov

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself: it copies the program
            program = torch.export.export(module, (example,))
            model = ov.convert_model(program, input=[tuple(example.shape)])
        if self.setting("precision") == "int8":
            model = self._compressed(model)
        ov.save_model(model, str(path), compress_to_fp16=False)

    def _compressed(self, model: Any) -> Any:
        with redirect_stdout(sys.stderr):  # where its log goes from then on
            import nncf
        nncf.set_log_level(logging.WARNING)
        with redirect_stdout(io.StringIO()):  # its progress bar, which would stand before the JSON of a command
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)

    def version(self) -> str:
        return package_version("openvino")

    def missing(self) -> str | None:
        needed = ("openvino", "nncf") if self.setting("precision") == "int8" else ("openvino",)
        return lacking(*needed, extra="openvino")
