"""Runtimes: what executes a network. A new one is one file and one line here."""

from nasvit.runtimes import aotinductor, compile, eager, executorch, graphs, litert, onnxruntime, openvino, tensorrt  # noqa: F401 (importing registers)
from nasvit.runtimes.base import RUNTIMES, FileRuntime, Runtime, make_runtime

__all__ = ["RUNTIMES", "FileRuntime", "Runtime", "make_runtime"]
