"""A trained network as a file for a runtime: the inference form, with labels and preprocessing inside, held against torch."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nasvit.errors import ConfigError, MeasurementError, RunError
from nasvit.finals.trained import Trained, write_text
from nasvit.models.deploy import deploy
from nasvit.runtimes import RUNTIMES, FileRuntime
from nasvit.runtimes.description import attach, description
from nasvit.runtimes.onnx_file import write_onnx
from nasvit.runtimes.predict import PREDICTABLE, predict_script

IMAGES = 16
"""Random images on which file and torch are compared."""
TOLERANCE = 1e-3
"""Largest difference of logits in float32, as a share of the largest logit."""
DYNAMIC = ("onnxruntime", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How an exported file differs from torch: largest difference over largest logit, and the share of images with the same first class."""

    images: int
    relative_error: float
    agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export left: the model's file, everything beside it, and how it compares with torch."""

    file: Path
    files: tuple[Path, ...]
    parity: Parity
    about: dict[str, Any]


def parse_runtime(text: str) -> FileRuntime:
    """"onnxruntime" or "onnxruntime?precision=int8". Raises ConfigError for a runtime that runs no file."""
    name, _, query = text.partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    kind = RUNTIMES[name]
    if not issubclass(kind, FileRuntime):
        accepted = [n for n in RUNTIMES if issubclass(RUNTIMES[n], FileRuntime)]
        raise ConfigError(f"runtime {name} runs torch modules, not files; accepted: {', '.join(accepted)}")
    return kind(**{key: value for key, _, value in pairs})


def export(trained: Trained, *, runtime: FileRuntime, folder: Path, dynamic_batch: bool = False) -> Exported:
    """Write the network's inference form into `folder`, with its metadata and predict.py, and compare it with torch. What is refused
    leaves nothing, and what an earlier export made there as it is.

    Raises ConfigError where the runtime is missing or takes no dynamic batch, MeasurementError where it cannot take the network
    or computes something else.
    """
    runtime.check()
    _check_dynamic(runtime, dynamic_batch=dynamic_batch)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as making:
            file, parity, about = _made(trained, runtime=runtime, folder=Path(making), dynamic_batch=dynamic_batch)
            for path in Path(making).iterdir():
                path.replace(folder / path.name)
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise
    return Exported(file=folder / file, files=tuple(sorted(folder.iterdir())), parity=parity, about=about)


def _made(trained: Trained, *, runtime: FileRuntime, folder: Path, dynamic_batch: bool) -> tuple[str, Parity, dict[str, Any]]:
    """The name of the model's file in `folder`, how it compares, and what it says of itself."""
    module = deploy(trained.module)
    shape = (trained.in_channels, *trained.image_size)
    example = torch.randn(2 if dynamic_batch else 1, *shape, generator=torch.Generator().manual_seed(0))
    target = folder / f"model{runtime.suffix}"
    if dynamic_batch:
        _write_dynamic(module, example, target, runtime=runtime)
    else:
        target = runtime.export(module, example, folder / "model")
    about = describe(trained, runtime=runtime, dynamic_batch=dynamic_batch)
    try:
        attach(target, about)
    except OSError as error:
        raise RunError(f"cannot write {target.name} in {folder.parent}: {error.strerror}") from None
    parity = compare(module, target, runtime=runtime, shape=shape, dynamic_batch=dynamic_batch)
    if parity.relative_error > TOLERANCE and runtime.settings.get("precision", "fp32") == "fp32":
        raise MeasurementError(f"{target.name} of {runtime.name} does not compute what torch computes: the logits differ by "
                               f"{parity.relative_error:.2g} of their size (accepted: {TOLERANCE:g}), so it is not kept; choose another "
                               "runtime")
    if runtime.name in PREDICTABLE and trained.in_channels in (1, 3):  # what an image file holds
        write_text(folder / "predict.py", predict_script(runtime.name, file=target))
    return target.name, parity, about


def describe(trained: Trained, *, runtime: FileRuntime, dynamic_batch: bool) -> dict[str, Any]:
    """What a user of the file must know: labels, preprocessing, and where it comes from."""
    data = trained.metrics["data"]
    return description(runtime, shape=(trained.in_channels, *trained.image_size), labels=data["class_names"], mean=data["mean"],
                       std=data["std"], network=trained.subject.label, dynamic_batch=dynamic_batch,
                       test_accuracy=trained.metrics.get("test_accuracy"), trained=trained.metrics.get("trained", "in full"))


def _check_dynamic(runtime: FileRuntime, *, dynamic_batch: bool) -> None:
    if dynamic_batch and (runtime.name not in DYNAMIC or runtime.settings.get("precision", "fp32") != "fp32"):
        raise ConfigError(f"runtime {runtime.name} with settings {runtime.settings or 'none'} takes a fixed batch here; accepted with a "
                          f"dynamic one: {', '.join(DYNAMIC)} in fp32")


def _write_dynamic(module: torch.nn.Module, example: Tensor, target: Path, *, runtime: FileRuntime) -> None:
    plain = target if runtime.name == "onnxruntime" else target.with_suffix(".onnx")
    try:
        with torch.no_grad():
            write_onnx(module, example, plain, dynamic_batch=True)
    except Exception as error:  # an exporter may fail with any exception
        raise MeasurementError(f"{type(module).__name__} cannot be exported with a dynamic batch ({type(error).__name__}: "
                               f"{str(error)[:300]}); leave --dynamic-batch away") from error
    if runtime.name == "openvino":
        import openvino as ov

        ov.save_model(ov.convert_model(str(plain)), str(target), compress_to_fp16=False)
        plain.unlink()


def compare(module: torch.nn.Module, file: Path, *, runtime: FileRuntime, shape: tuple[int, ...], dynamic_batch: bool) -> Parity:
    """The file against the module on IMAGES random images, one at a time, or as batches of 1 and the rest with `dynamic_batch`."""
    images = torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(1))
    parts = [images[:1], images[1:]] if dynamic_batch else list(images.split(1))
    with torch.no_grad():
        wanted = torch.cat([module(part) for part in parts]).numpy()
    found = np.concatenate(run_file(file, runtime=runtime, batches=[part.numpy() for part in parts]))
    error = float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-12))
    return Parity(images=IMAGES, relative_error=error if np.isfinite(found).all() else float("inf"),
                  agreement=float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean()))


def run_file(file: Path, *, runtime: FileRuntime, batches: list[np.ndarray]) -> list[np.ndarray]:
    """The file's logits for each batch (B, C, H, W), from a process of the Python that has the runtime; MeasurementError if it crashes."""
    return [outputs[0] for outputs in runtime.run_file(file, batches, threads=1)]
