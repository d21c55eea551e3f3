"""Two forms of a computation timed against each other, round by round in one process; what a device can do at most.

Used by the benchmark drivers beside it. Ratios mean something where milliseconds do not: both forms meet the same machine.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nasvit.cost import count
from nasvit.errors import NasvitError
from nasvit.models.deploy import InferenceLinear

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of two forms over the same rounds: medians, and minima."""

    ours: float
    reference: float
    ours_least: float
    reference_least: float

    @property
    def ratio(self) -> float:
        return self.ours / self.reference

    @property
    def least_ratio(self) -> float:
        return self.ours_least / self.reference_least


def seconds(call: Call, *, device: str) -> float:
    """CPU time of the process in one call; on a GPU the time between two events around it."""
    if device == "cpu":
        begin = time.process_time()
        call()
        return time.process_time() - begin
    begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin_event.record()
    call()
    end_event.record()
    torch.cuda.synchronize()
    return begin_event.elapsed_time(end_event) / 1e3


def race(ours: Call, reference: Call, *, rounds: int, device: str, warm_up: int = 3) -> Timing:
    """ours, reference, ours, reference, ... after `warm_up` calls of each, with the garbage collector off."""
    for _ in range(warm_up):
        ours()
        reference()
    took: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for call, times in zip((ours, reference), took, strict=True):
                times.append(seconds(call, device=device) * 1e3)
    finally:
        gc.enable()
    return Timing(ours=median(took[0]), reference=median(took[1]), ours_least=min(took[0]), reference_least=min(took[1]))


def forward(module: nn.Module, x: Tensor) -> Call:
    """One call without gradients."""
    def call() -> Any:
        with torch.inference_mode():
            return module(x)
    return call


def forward_backward(module: nn.Module, x: Tensor) -> Call:
    """One call and the gradients of its inputs and parameters, in fresh memory each time."""
    x = x.detach().clone().requires_grad_()
    with torch.no_grad():
        towards = torch.randn_like(module(x))

    def call() -> Tensor:
        module.zero_grad(set_to_none=True)
        x.grad = None
        module(x).backward(towards)
        assert x.grad is not None
        return x.grad
    return call


def graphed(module: nn.Module, x: Tensor) -> Call:
    """One replay of a CUDA graph of the call."""
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                module(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            module(x)
    return graph.replay


def compiled(module: nn.Module, x: Tensor) -> Call:
    """One call of torch.compile's form of the module."""
    return forward(torch.compile(module), x)  # type: ignore[arg-type]


MODES: dict[str, Callable[[nn.Module, Tensor], Call]] = {"eager": forward, "compile": compiled, "graph": graphed}
"""How a forward is run on a GPU."""


def difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|"""
    return ((a - b).abs().max() / b.abs().max()).item()


class MovedBytes(TorchDispatchMode):
    """Adds up the bytes that operators read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        known = {t.untyped_storage().data_ptr() for t in read}
        if func._schema.is_mutable or any(t.untyped_storage().data_ptr() not in known for t in written):
            self.total += sum(t.numel() * t.element_size() for t in (*read, *written))
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a device does at most: bytes copied (read and written) and multiply-adds of a matrix product, per second, in float32."""

    bytes_per_second: float
    macs_per_second: float

    @classmethod
    def measure(cls, *, device: str) -> Limits:
        """The better of torch's two matrix libraries on a CPU."""
        source = torch.rand(2**26 if device != "cpu" else 2**24, device=device)  # 256 or 64 MiB: larger than a core's caches
        target, square = torch.empty_like(source), torch.rand(1024, 1024, device=device)
        copy = min(seconds(lambda: target.copy_(source), device=device) for _ in range(8))
        layers = [kind(1024, 1024, bias=False, device=device).requires_grad_(False) for kind in (nn.Linear, InferenceLinear)]
        product = min(seconds(forward(layer, square), device=device) for _ in range(8) for layer in layers)
        return cls(bytes_per_second=2 * source.numel() * 4 / copy, macs_per_second=1024**3 / product)

    def roofline(self, module: nn.Module, x: Tensor, *, reference_ms: float, backward: bool = False) -> str:
        """What bounds the module: its multiply-adds and the bytes its operators move, and the time both need here."""
        context: AbstractContextManager[Any] = nullcontext() if backward else torch.no_grad()
        with MovedBytes() as moved, context:
            forward_backward(module, x)() if backward else module(x)
        arithmetic, data_ms = "multiply-adds not counted", moved.total / self.bytes_per_second * 1e3
        try:
            # an image at a time: `count` takes (B, C, H, W), and any shape whose first axis is the batch
            macs = count(module, input_shape=tuple(x.shape)).macs * x.shape[0] * (3 if backward else 1)
            arithmetic_ms = macs / self.macs_per_second * 1e3
            arithmetic = f"{macs / 1e9:.2f} G multiply-adds need {arithmetic_ms:.2f} ms at {self.macs_per_second / 1e9:.0f} G/s"
        except NasvitError as error:
            arithmetic += f" ({error})"
        return (f"{arithmetic}; {moved.total / 1e6:.1f} MB moved between operators need {data_ms:.2f} ms at "
                f"{self.bytes_per_second / 1e9:.1f} GB/s; the reference takes {reference_ms:.2f} ms")


class Switched(AbstractContextManager[None]):
    """One thread, a fixed seed, and float32 that is float32 (no TF32), for the time of a benchmark."""

    def __init__(self, *, seed: int) -> None:
        self.seed, self.threads, self.tf32 = seed, torch.get_num_threads(), torch.backends.cudnn.allow_tf32

    def __enter__(self) -> None:
        torch.set_num_threads(1)
        torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = self.tf32
