"""The ONNX file of a module, from torch.export: what ONNX Runtime and others read."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PACKAGES = ("onnx", "onnxscript", "onnx_ir")


def write_onnx(module: nn.Module, example: Tensor, path: Path, *, dynamic_batch: bool = False, convolve: bool = True) -> None:
    """Write one file, weights inside, static shapes (with `dynamic_batch` any number of images), input named `image`.

    convolve: linear layers beside convolutions become some themselves (`nasvit.runtimes.channels_first`), which is faster in float32.
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
                program = torch.onnx.export(module, (example,), input_names=["image"], dynamo=True, verbose=False, optimize=False,
                                            dynamic_shapes=shapes)
        assert program is not None
        _tidy(program.model, convolve=convolve)
    finally:
        for logger, level in zip(loud, before, strict=True):
            logger.setLevel(level)
    program.save(str(path), external_data=False)


def _tidy(model: Any, *, convolve: bool) -> None:
    """Fold constants, merge reshapes: what ONNX Runtime does not do by itself when it opens the file (measured: 20 % of the latency).

    The whole optimiser of onnxscript tries some sixty patterns at every node, for as long as all the rest of the export, and leaves
    ONNX Runtime with the same operators (measured: 566 where these four leave 569, 803 where they leave 816).
    """
    from onnx_ir.passes import common as passes
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules.common import no_op_expand_rule, reshape_reshape_rule, transpose_transpose_rule, unsqueeze_unsqueeze_rule

    from nasvit.runtimes.channels_first import channels_first

    optimizer.inline(model)
    for _ in range(2):  # merging makes more of them constant
        optimizer.fold_constants(model)
        rewriter.rewrite(model, [no_op_expand_rule, reshape_reshape_rule, transpose_transpose_rule, unsqueeze_unsqueeze_rule])
    for step in (passes.RemoveUnusedNodesPass(), passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
                 passes.DeduplicateInitializersPass(), passes.CommonSubexpressionEliminationPass(),
                 *((channels_first, passes.RemoveUnusedNodesPass()) if convolve else ()), passes.OutputFixPass(), passes.NameFixPass()):
        step(model)
