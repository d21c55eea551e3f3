"""Sessions: run an exported file where there is no torch and no nasvit. Needs Python 3.8, numpy and the runtime itself.

This file travels to other machines inside the agent, so it imports nothing else of nasvit.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Arrays = list[np.ndarray[Any, Any]]


class Session:
    """An opened model: `run` maps input arrays to output arrays; `version` names what runs it."""

    def __init__(self, run: Callable[[Arrays], Arrays], *, version: str) -> None:
        self.run = run
        self.version = version


def open_session(runtime: str, path: str, *, threads: int, settings: dict[str, str]) -> Session:
    """Open an exported file with exactly this many threads.

    Raises ValueError for a runtime without sessions, ImportError where the runtime is not installed here, RuntimeError where it does
    not hold a setting; whatever the runtime raises for a file that it cannot run goes through.
    """
    if runtime not in OPENERS:
        raise ValueError(f"no session for runtime {runtime!r} (accepted: {', '.join(sorted(OPENERS))})")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return OPENERS[runtime](path, threads, settings)


def _onnxruntime(path: str, threads: int, settings: dict[str, str]) -> Session:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(arrays: Arrays) -> Arrays:
        return list(session.run(None, {name: arrays[index] for index, name in enumerate(names)}))

    return Session(run, version="onnxruntime " + ort.__version__)


def _openvino(path: str, threads: int, settings: dict[str, str]) -> Session:
    import numpy as np
    import openvino as ov

    core = ov.Core()
    wanted = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
              "ENABLE_CPU_PINNING": False}
    # Its default precision is bf16 where the processor has it: 0.5 to 1.4 % error, and slower than f32 on the machine it was measured on.
    if settings.get("precision") == "int8":
        wanted["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 32
    compiled = core.compile_model(path, "CPU", wanted)
    held = int(compiled.get_property("INFERENCE_NUM_THREADS"))
    if held != threads:
        raise RuntimeError(f"OpenVINO runs with {held} threads where {threads} were asked for")
    request = compiled.create_infer_request()
    outputs = len(compiled.outputs)

    def run(arrays: Arrays) -> Arrays:
        request.infer(arrays, share_inputs=True)
        return [np.array(request.get_output_tensor(index).data) for index in range(outputs)]

    return Session(run, version="openvino " + ov.__version__.split("-")[0])


def _aotinductor(path: str, threads: int, settings: dict[str, str]) -> Session:
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    model = torch._inductor.aoti_load_package(path)

    def run(arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            found = model(*[torch.from_numpy(array) for array in arrays])
        return [one.numpy() for one in (found if isinstance(found, (tuple, list)) else (found,))]

    return Session(run, version="torch " + torch.__version__)


def _executorch(path: str, threads: int, settings: dict[str, str]) -> Session:
    pin(threads)  # before its thread pool is made, which has a thread for every core it may use and no setting in Python
    import torch
    from executorch.runtime import Runtime

    torch.set_num_threads(threads)
    method = Runtime.get().load_program(path).load_method("forward")

    def run(arrays: Arrays) -> Arrays:
        return [one.numpy() for one in method.execute([torch.from_numpy(array) for array in arrays])]

    return Session(run, version="executorch " + _installed("executorch"))


def _litert(path: str, threads: int, settings: dict[str, str]) -> Session:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    inputs = [one["index"] for one in interpreter.get_input_details()]
    outputs = [one["index"] for one in interpreter.get_output_details()]

    def run(arrays: Arrays) -> Arrays:
        for number, index in enumerate(inputs):
            interpreter.set_tensor(index, arrays[number])
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return Session(run, version="ai-edge-litert " + _installed("ai-edge-litert"))


def pin(threads: int) -> None:
    """Let this process run on so many of its cores only. Raises RuntimeError where it has fewer, or cannot be pinned."""
    if not hasattr(os, "sched_setaffinity"):
        raise RuntimeError("this system cannot pin a process to its cores, which is how the threads of this runtime are limited")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise RuntimeError(f"{threads} threads were asked for and this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[-threads:])  # interrupts land on the first ones


def _installed(package: str) -> str:
    from importlib.metadata import version

    return version(package)


OPENERS: dict[str, Callable[[str, int, dict[str, str]], Session]] = {
    "aotinductor": _aotinductor,
    "executorch": _executorch,
    "litert": _litert,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def main() -> None:
    """Run a file on saved inputs: the request is the first argument, JSON."""
    import numpy as np

    request = json.loads(sys.argv[1])
    session = open_session(request["runtime"], request["path"], threads=request["threads"], settings=request["settings"])
    outputs: dict[str, Any] = {}
    with np.load(request["inputs"]) as inputs:
        for index in range(len(inputs.files)):
            for number, array in enumerate(session.run([inputs[str(index)]])):
                outputs[f"{index}-{number}"] = np.array(array)
    np.savez(request["outputs"], **outputs)


if __name__ == "__main__":
    main()
