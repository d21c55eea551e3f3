"""What a pruning leaves in `pruned/`: the network's two files, its ONNX file, and timm's own weights where timm has those shapes.

Everything is held against the network in memory before it counts: what the loader reads back, what ONNX Runtime computes, what timm's
module computes, and both forms of attention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.errors import MeasurementError, RunError
from nasvit.models.weight_file import write_weights
from nasvit.pruning import files
from nasvit.pruning.blocks import set_fused
from nasvit.pruning.plan import Plan, PlanError
from nasvit.pruning.to_timm import timm_arguments, to_timm
from nasvit.runtimes import FileRuntime, make_runtime
from nasvit.runtimes.description import attach, description
from nasvit.runtimes.parity import BOUND, compare
from nasvit.runtimes.predict import predict_script
from nasvit.whole_file import whole

FUSED = 1e-5
"""The largest difference of fused and written-out attention, relative to the largest logit (dense models: 1e-6)."""
BACK = 1e-6
"""The largest difference of what is read back and what was written, relative to the largest logit. Its tensors are equal bit by bit; the
outputs need not be, because a product's rounding depends on how its operands lie in memory (LeViT: one unit in the last place)."""
OTHERS = ("model.onnx", "predict.py", "timm.safetensors", "timm.json")
"""What may stand in the folder beside the network's own two files."""
INPUTS = 4
"""Random images that ONNX Runtime is compared on."""


def write_result(module: nn.Module, folder: Path, *, shape: tuple[int, int, int], images: Mapping[str, Any]) -> dict[str, Any]:
    """Write the chosen network, and say what was found: fused (difference of both attentions), onnx and timm (file, or why there is none).

    shape: (C, H, W). images: labels, mean, std and what else is told to users of the ONNX file (`description`).
    Raises RunError where the attentions disagree or the files do not give the network back.
    """
    module = module.cpu().eval()
    probe = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    fused = attentions_differ(module, probe)
    if not fused <= FUSED:
        raise RunError(f"the pruned network's fused and written-out attention differ by {fused:.1e} (at most {FUSED:.0e}); "
                       "nothing was written")
    for name in OTHERS:  # of another result, before a resume
        (folder / name).unlink(missing_ok=True)
    arch, weights = files.save(module, folder)
    if not _gives_back(files.load(arch, weights), module, probe):
        raise RunError(f"{weights} does not give back the network that was written; do not use it")
    return {"fused": fused, "onnx": _onnx(module, folder, shape=shape, about=images), "timm": _timm(module, folder)}


def _gives_back(back: nn.Module, module: nn.Module, probe: Tensor) -> bool:
    """Whether the network read back is the one that was written: every tensor, and what it computes."""
    ours, theirs = module.state_dict(), back.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(value, theirs[name]) for name, value in ours.items()):
        return False
    with torch.inference_mode():
        written, read = module(probe), back(probe)
    return relative_difference(read, written) <= BACK


def relative_difference(logits: Tensor, truth: Tensor) -> float:
    """Largest difference of two networks' logits, relative to the largest of `truth` (at least to 1)."""
    return float((logits - truth).abs().max() / truth.abs().max().clamp(min=1.0))


def attentions_differ(module: nn.Module, images: Tensor) -> float:
    """Largest difference of the logits with fused and with written-out attention, relative to the largest; the module is left fused."""
    found = []
    with torch.inference_mode():
        for form in (False, True):
            set_fused(module, form)
            found.append(module(images))
    return relative_difference(found[0], found[1])


def _onnx(module: nn.Module, folder: Path, *, shape: tuple[int, int, int], about: Mapping[str, Any]) -> dict[str, Any]:
    """Export with a predict.py, and compare ONNX Runtime with torch; a file that computes something else does not stay."""
    runtime = make_runtime("onnxruntime")
    assert isinstance(runtime, FileRuntime)
    reason = runtime.missing()
    if reason is not None:
        return {"file": None, "why": reason}
    target = folder / f"model{runtime.suffix}"
    try:
        target = runtime.export(module, torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)), folder / "model")
        attach(target, description(runtime, shape=shape, **about))
        found = compare(module, runtime=runtime, shape=(1, *shape), inputs=INPUTS, seed=1,
                        ready=lambda images: runtime.run_file(target, [image.numpy() for image in images], threads=1))
    except (MeasurementError, OSError) as error:
        target.unlink(missing_ok=True)
        return {"file": None, "why": str(error)}
    if not found.agrees:
        target.unlink()
        return {"file": None, "why": f"ONNX Runtime does not compute what torch computes: the logits differ by {found.worst:.1e} of their "
                                     f"size (at most {BOUND:.0e})"}
    if shape[0] in (1, 3):  # what an image file holds
        with whole(folder / "predict.py") as temporary:
            temporary.write_text(predict_script(runtime.name, file=target), encoding="utf-8")
    return {"file": target.name, "error": found.error, "unstable": found.unstable}


def _timm(module: nn.Module, folder: Path) -> dict[str, Any]:
    """timm.safetensors, and in timm.json what timm.create_model is called with, where timm has a module of these shapes."""
    plan = getattr(module, "plan", None)
    try:
        model = to_timm(module)
        assert isinstance(plan, Plan)
        name, arguments = timm_arguments(plan)
    except PlanError as error:
        return {"file": None, "why": str(error)}
    write_weights(folder / "timm.safetensors", model.state_dict())
    (folder / "timm.json").write_text(json.dumps({"name": name, "arguments": arguments}, indent=1) + "\n", encoding="utf-8")
    return {"file": "timm.safetensors"}
