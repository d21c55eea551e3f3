"""TensorRT: an engine built from the ONNX file, run on torch's CUDA tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from nasvit.errors import MeasurementError
from nasvit.runtimes.base import RUNTIMES, Runtime, lacking, package_version
from nasvit.runtimes.onnx_file import PACKAGES, write_onnx


@RUNTIMES.register("tensorrt")
@final
class TensorRt(Runtime):
    """TensorRT in float32 (TF32 off)."""

    name = "tensorrt"
    devices = ("cuda",)

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        self.check()
        if example.device.type != "cuda":
            raise MeasurementError(f"tensorrt runs on cuda, and the example is on {example.device.type}; use --device cuda/tensorrt")
        with tempfile.TemporaryDirectory(prefix="nasvit-tensorrt-") as folder, torch.no_grad():
            path = Path(folder) / "model.onnx"
            write_onnx(module, example, path)
            engine = _engine(path)
        context = engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        stream = torch.cuda.Stream()
        outputs = [torch.empty(tuple(engine.get_tensor_shape(name)), device=example.device, dtype=_dtype(engine.get_tensor_dtype(name)))
                   for name in names[1:]]
        for name, tensor in zip(names[1:], outputs, strict=True):
            context.set_tensor_address(name, tensor.data_ptr())

        def call(image: Tensor) -> Tensor | tuple[Tensor, ...]:
            now = torch.cuda.current_stream()
            stream.wait_stream(now)
            context.set_tensor_address(names[0], image.data_ptr())
            if not context.execute_async_v3(stream.cuda_stream):
                raise MeasurementError("TensorRT did not run the network")
            now.wait_stream(stream)
            return outputs[0] if len(outputs) == 1 else tuple(outputs)

        return call

    def version(self) -> str:
        return package_version("tensorrt")

    def missing(self) -> str | None:
        if not torch.cuda.is_available():
            return "this torch finds no CUDA GPU"
        return lacking("tensorrt", *PACKAGES, extra="tensorrt")


def _dtype(kind: Any) -> torch.dtype:
    """torch's name of a TensorRT type."""
    import tensorrt as trt

    known = {trt.float32: torch.float32, trt.int64: torch.int64, trt.int32: torch.int32, trt.bool: torch.bool}
    if kind not in known:
        raise MeasurementError(f"the TensorRT engine has an output of type {kind}, which is none of float32, int64, int32 and bool")
    return known[kind]


def _engine(path: Path) -> Any:
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        faults = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise MeasurementError(f"TensorRT cannot take the network: {faults[:400]}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise MeasurementError("TensorRT cannot build an engine of the network")
    return trt.Runtime(logger).deserialize_cuda_engine(plan)
