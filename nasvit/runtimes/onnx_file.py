"""The ONNX file of a module, from torch.export: what ONNX Runtime and others read."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

PACKAGES = ("onnx", "onnxscript")


def write_onnx(module: nn.Module, example: Tensor, path: Path, *, dynamic_batch: bool = False) -> None:
    """Write one file, weights inside, static shapes (with `dynamic_batch` any number of images), input named `image`.

    By the exporter that stands on torch.export: the older one fails on token merging.
    """
    loud = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [logger.level for logger in loud]
    for logger in loud:  # they tell of every operator of libraries that are not installed, and of every norm that cannot be folded
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
            with torch.no_grad():  # a bias that could learn makes torch trace another attention kernel than it then decomposes
                program = torch.onnx.export(module, (example,), input_names=["image"], dynamo=True, verbose=False, optimize=True,
                                            dynamic_shapes=shapes)
    finally:
        for logger, level in zip(loud, before, strict=True):
            logger.setLevel(level)
    assert program is not None
    program.save(str(path), external_data=False)
