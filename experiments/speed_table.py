"""A row of the table of speeds: two forms, checked against each other and then measured; and the table as Markdown."""

from __future__ import annotations

import argparse
import copy
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from interleaved import MODES, Limits, Timing, difference, forward, forward_backward, race
from torch import Tensor, nn

from nasvit.devices.memory import peak_bytes
from nasvit.models.deploy import InferenceLinear, deploy
from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (it needs torchvision importable first)

SAME = 1e-4
"""The largest relative difference of two forms of one function, in float32 (float64 where clusters are cut: a border flips on noise)."""

ROUNDS = {1: 30, 8: 8, 32: 4}
QUICK = {1: 5, 8: 3, 32: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. make: () -> (ours, reference), eval modules of the same input; shape: of one image's input.

    same: both compute one function. exact: it is compared in float64. kind: "forward", "backward", "live" or "resident" (MB).
    deployed: ours has an inference form, which is what is measured in a forward.
    """

    group: str
    what: str
    against: str
    batch: int
    make: Callable[[], tuple[nn.Module, nn.Module]]
    shape: tuple[int, ...] = (3, 224, 224)
    goal: float | None = None
    same: bool = True
    exact: bool = False
    kind: str = "forward"
    deployed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured of a row: medians in ms, or MB; `apart` is None where both forms compute different functions."""

    row: Row
    ours: float
    reference: float
    ratio: float
    least_ratio: float
    apart: float | None
    limits: str = ""


def must_agree(row: Row, ours: nn.Module, reference: nn.Module, x: Tensor) -> float:
    """How far the two forms are apart, in output or, for a backward row, in the input's gradient; stops if that is too far."""
    x = x[:2]
    if row.exact:
        ours, reference, x = copy.deepcopy(ours).double(), copy.deepcopy(reference).double(), x.double()
    if row.kind == "backward":
        torch.manual_seed(1)
        mine = forward_backward(ours, x)()
        torch.manual_seed(1)
        apart = difference(mine, forward_backward(reference, x)())
    else:
        apart = difference(forward(ours, x)(), forward(reference, x)())
    if not apart < SAME:
        sys.exit(f"{row.what}: ours differs from {row.against} by {apart:.1e}, more than {SAME:.0e}: a ratio of their times means nothing")
    return apart


def with_our_products(module: nn.Module) -> nn.Module:
    """Its linear layers multiply by the matrix library that our inference form takes."""
    for name, child in module.named_children():
        setattr(module, name, InferenceLinear.of(child) if type(child) is nn.Linear else with_our_products(child))
    return module


def resident_megabytes(options: argparse.Namespace, *, index: int) -> list[float]:
    """Peak resident memory that a forward adds, of ours and of the reference, each in a process of its own."""
    plain = ["--plain"] if options.plain else []
    commands = [[sys.executable, sys.argv[0], "--resident", f"{index}:{which}", "--seed", str(options.seed), *plain] for which in (0, 1)]
    return [float(subprocess.run(c, check=True, capture_output=True, text=True).stdout) for c in commands]


def memory_of_process(field: str) -> float:
    """MB of this process by Linux's account: VmRSS now, VmHWM the most. (getrusage's peak is inherited from the parent.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) for text in lines if text.startswith(f"{field}:")) * 1024 / 1e6


def measure(row: Row, options: argparse.Namespace, limits: Limits, *, index: int) -> Result:
    """One row, the `index`-th of all, from building both forms to what bounds a missed goal."""
    torch.manual_seed(options.seed)
    ours, reference = row.make()
    x = torch.randn(row.batch, *row.shape)
    if not options.plain and row.kind != "backward" and row.deployed:
        ours = deploy(ours)
        if options.same_products:
            reference = with_our_products(copy.deepcopy(reference)).requires_grad_(False)
    ours, reference, x = ours.to(options.device), reference.to(options.device), x.to(options.device)
    apart = must_agree(row, ours, reference, x) if row.same else None
    if row.kind in ("live", "resident"):
        used = (resident_megabytes(options, index=index) if row.kind == "resident" else
                [peak_bytes(module, x) / 1e6 for module in (ours, reference)])
        return Result(row=row, ours=used[0], reference=used[1], least_ratio=used[0] / used[1], ratio=used[0] / used[1], apart=apart)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[options.dtype]
    ours, reference, x = ours.to(dtype), reference.to(dtype), x.to(dtype)
    call = forward_backward if row.kind == "backward" else MODES[options.mode]
    rounds = options.rounds or (QUICK if options.quick else ROUNDS)[row.batch]
    timing: Timing = race(call(ours, x), call(reference, x), rounds=rounds, device=options.device, warm_up=2 if row.batch > 1 else 3)
    missed = row.goal is not None and timing.ratio > row.goal
    bound = limits.roofline(ours, x, reference_ms=timing.reference, backward=row.kind == "backward") if missed else ""
    return Result(row=row, ours=timing.ours, reference=timing.reference, least_ratio=timing.least_ratio, ratio=timing.ratio, apart=apart,
                  limits=bound)


HEADER = ("| what | against | batch | ours | reference | ratio | least ratio | goal | reached | largest difference |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")


def line(result: Result) -> str:
    """A row of the table, and below a missed goal what bounds it."""
    row, unit = result.row, "MB" if result.row.kind in ("live", "resident") else "ms"
    reached = "" if row.goal is None else "yes" if result.ratio <= row.goal else "**no**"
    goal = "" if row.goal is None else f"{row.goal:.2f}"
    apart = "another function" if result.apart is None else f"{result.apart:.0e}"
    return (f"| {row.what} | {row.against} | {row.batch} | {result.ours:.2f} {unit} | {result.reference:.2f} {unit} | {result.ratio:.3f} | "
            f"{result.least_ratio:.3f} | {goal} | {reached} | {apart} |")


def device_name(device: str) -> str:
    """The processor's or the GPU's own name."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else platform.processor()


def products(options: argparse.Namespace) -> str:
    """Which of our forms was measured, and by which matrix library each side multiplies."""
    if options.plain:
        return "Ours in its form that trains (--plain): both sides multiply by the same library."
    if options.same_products:
        return "Ours in its inference form; the references' linear layers multiply by oneDNN as ours do (--same-products)."
    return ("Ours in its inference form, whose linear layers multiply by oneDNN in float32 on a CPU, while the references' multiply by "
            "MKL, as nn.Linear does. On a processor that is not Intel's this alone is a part of the gain: --same-products and --plain "
            "show the rest.")


def allocator(options: argparse.Namespace) -> str:
    """Whether memory is mapped anew in each call, which costs the forms with large maps more than their arithmetic."""
    if options.device != "cpu":
        return "Memory by torch's caching allocator."
    kept = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    if kept:
        return "C library's allocator set by " + ", ".join(f"`{name}={value}`" for name, value in sorted(kept.items())) + "."
    return ("C library's allocator as it comes: large tensors may be mapped anew in each call, and whether they are depends on what ran "
            "before. That is over half of the time of two depthwise convolutions to k*k*C maps; README.md says how to keep memory.")


def write(path: str, results: list[Result], limits: Limits, options: argparse.Namespace) -> None:
    """The table as Markdown, with what it was made with and by."""
    bounds = [f"- {r.row.what}, batch {r.row.batch}, against {r.row.against}: {r.limits}." for r in results if r.limits]
    reached = [r.ratio <= r.row.goal for r in results if r.row.goal is not None]
    text = [f"# Speed of our forms against the published ones ({options.device}, {options.dtype}, {options.mode})", "",
            f"`python experiments/block_speed.py {' '.join(sys.argv[1:])}`", "",
            f"{device_name(options.device)}, one thread; torch {torch.__version__}, timm {timm.__version__}; "
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Copy {limits.bytes_per_second / 1e9:.1f} GB/s (read and written), "
            f"matrix product {limits.macs_per_second / 1e9:.0f} G multiply-adds/s.", "",
            "ratio: of the medians of rounds run in turns; least ratio: of the minima. Milliseconds are the process's CPU time (GPU: time "
            "between events). largest difference: of both forms' outputs (gradients), relative.", "",
            products(options), "", allocator(options), "",
            f"Goals reached: {sum(reached)} of {len(reached)}.", "", HEADER, *(line(r) for r in results)]
    text += ["", "## What bounds a missed goal", "", *bounds] if bounds else []
    Path(path).write_text("\n".join(text) + "\n")
