"""ONNX Runtime on the CPU, in float32 or with linear layers in int8."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar, final

from torch import Tensor, nn

from nasvit.runtimes.base import RUNTIMES, FileRuntime, lacking, package_version
from nasvit.runtimes.onnx_file import PACKAGES, write_onnx


@RUNTIMES.register("onnxruntime")
@final
class OnnxRuntime(FileRuntime):
    """ONNX Runtime. Settings: precision=fp32|int8 (int8: linear layers, activations quantised while it runs)."""

    name = "onnxruntime"
    suffix = ".onnx"
    accepted: ClassVar = {"precision": ("fp32", "int8")}

    def write(self, module: nn.Module, example: Tensor, path: Path) -> None:
        if self.setting("precision") == "fp32":
            write_onnx(module, example, path)
            return
        plain = path.with_name(path.stem + "-fp32" + self.suffix)
        write_onnx(module, example, plain, convolve=False)
        quantise(plain, path)
        plain.unlink()

    def version(self) -> str:
        return package_version("onnxruntime")

    def missing(self) -> str | None:
        return lacking("onnxruntime", *PACKAGES, extra="onnx")


def quantise(source: Path, target: Path) -> None:
    """Dynamic int8: the weights of linear layers are kept in int8, a scale per output; activations get a scale in every run.

    Convolutions stay in float32: their integer kernels need static scales to be fast. Weights take seven of the eight bits: x86 processors
    without VNNI add two products of bytes in 16 bits, where full weights saturate without a word (DeiT-T: logits off by 14 % of the
    largest, with seven bits 5 %, as fast), and a file must give the same answers wherever it is run.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # the shapes noted for transposed weights contradict those that the quantiser infers
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)  # it advises on the root logger
    try:
        quantize_dynamic(model, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
                         reduce_range=True)
    finally:
        root.setLevel(before)
