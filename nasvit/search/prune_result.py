"""What a pruning leaves in `pruned/`: the network's two files, its file for the runtime that it was measured in, pictures of the tokens it
selects, and timm's own weights where timm has those shapes.

Everything is held against the network in memory before it counts: what the loader reads back, what the runtime computes, what timm's
module computes, and both forms of attention.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nasvit.data import Images
from nasvit.data.augment import Normaliser
from nasvit.errors import MeasurementError, RunError
from nasvit.models.deploy import deploy
from nasvit.models.weight_file import write_weights
from nasvit.pruning import files
from nasvit.pruning.blocks import set_fused
from nasvit.pruning.plan import Plan, PlanError
from nasvit.pruning.to_timm import timm_arguments, to_timm
from nasvit.runtimes import FileRuntime, Runtime, make_runtime
from nasvit.runtimes.accuracy import quantised_accuracy
from nasvit.runtimes.description import attach, description
from nasvit.runtimes.parity import BOUND, compare
from nasvit.runtimes.predict import PREDICTABLE, predict_script
from nasvit.search import tokens
from nasvit.whole_file import whole

ROUNDING, TIMES_DENSE = 1e-5, 2.0
"""The pruned network's fused and written-out attention may differ by so many times what the dense model's do, and always by rounding."""
BACK = 1e-6
"""The largest difference of what is read back and what was written, relative to the largest logit. Its tensors are equal bit by bit; the
outputs need not be, because a product's rounding depends on how its operands lie in memory (LeViT: one unit in the last place)."""
INPUTS = 4
"""Random images that the runtime is compared on."""
AT_ONCE = 200
"""Validation images that a runtime's process gets at a time: it has a time limit."""


def write_result(module: nn.Module, folder: Path, *, dense: nn.Module, runtime: Runtime, threads: int, val: Images,
                 shape: tuple[int, int, int], images: Mapping[str, Any]) -> dict[str, Any]:
    """Write the chosen network, and say what was found: fused and fused_dense (difference of both attentions, of it and of the dense
    model), export and timm (file, or why there is none), tokens (the picture, or None where nothing is selected).

    dense: the model it was pruned from. runtime, threads: of the device that measured it. val: validation images. shape: (C, H, W). images:
    labels, mean, std and what else is told to users of the exported file (`description`).
    Raises RunError where the attentions disagree or the files do not give the network back.
    """
    module, dense = module.cpu().eval(), dense.cpu().eval()  # they were evaluated where the device trains
    probe = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    fused, fused_dense = (attentions_differ(each, probe) for each in (module, dense))
    allowed = max(ROUNDING, TIMES_DENSE * fused_dense)
    if not fused <= allowed:
        raise RunError(f"the pruned network's fused and written-out attention differ by {fused:.1e} (at most {allowed:.0e}: the dense "
                       f"model's differ by {fused_dense:.1e}); nothing was written")
    _clear(folder, "model.*", "predict.py", "timm.*", tokens.FILE)  # of another result, before a resume
    arch, weights = files.save(module, folder)
    if not _gives_back(files.load(arch, weights), module, probe):
        raise RunError(f"{weights} does not give back the network that was written; do not use it")
    if not isinstance(runtime, FileRuntime):  # it called the module: no file was measured, and ONNX is what others read
        runtime = make_runtime("onnxruntime")
        assert isinstance(runtime, FileRuntime)
    export = _exported(module, folder, runtime=runtime, threads=threads, val=val, shape=shape, about=images)
    return {"fused": fused, "fused_dense": fused_dense, "export": export, "timm": _timm(module, folder),
            "tokens": tokens.draw(module, val, folder, mean=images["mean"], std=images["std"])}


def quantised(runtime: FileRuntime) -> bool:
    """Whether it computes in less than float32."""
    return runtime.settings.get("precision", "fp32") != "fp32"


def _clear(folder: Path, *patterns: str) -> None:
    """Remove what a result left; the network's own two files are replaced whole."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.name != "model.safetensors":
                path.unlink()


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


def _exported(module: nn.Module, folder: Path, *, runtime: FileRuntime, threads: int, val: Images, shape: tuple[int, int, int],
              about: Mapping[str, Any]) -> dict[str, Any]:
    """The file of this runtime and its settings, with a predict.py, held against torch; one that computes something else does not stay.

    In another precision than float32 the logits differ by design: then the file's accuracy is measured on `val`.
    """
    made: dict[str, Any] = {"file": None, "runtime": runtime.name, "settings": dict(runtime.settings)}
    reason = runtime.missing()
    if reason is not None:
        return {**made, "why": reason}
    form = deploy(module)  # as it was measured
    try:
        target = runtime.export(form, torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)), folder / "model")

        def run(images: Sequence[Tensor]) -> list[list[np.ndarray[Any, Any]]]:
            parts = [images[i : i + AT_ONCE] for i in range(0, len(images), AT_ONCE)]
            return [out for part in parts for out in runtime.run_file(target, [image.numpy() for image in part], threads=threads)]

        found = compare(form, runtime=runtime, shape=(1, *shape), inputs=INPUTS, seed=1, threads=threads, ready=run)
        if not (math.isfinite(found.worst) if quantised(runtime) else found.agrees):
            _clear(folder, "model.*")
            return {**made, "why": f"{runtime.name} does not compute what torch computes: the logits differ by {found.worst:.1e} of their "
                                   f"size (at most {BOUND:.0e} in float32)"}
        made |= {"file": target.name, "error": found.worst if quantised(runtime) else found.error, "unstable": found.unstable}
        if quantised(runtime):
            images = Normaliser.of(about["mean"], about["std"], device=torch.device("cpu"))(val.images)
            accuracy = quantised_accuracy(form, runtime=runtime, images=images, labels=val.labels, threads=threads, ready=run)
            made["accuracy"] = asdict(accuracy)
            about = {**about, "accuracy": accuracy.runtime, "accuracy_fp32": accuracy.eager}
        attach(target, description(runtime, shape=shape, **about))
    except (MeasurementError, OSError) as error:
        _clear(folder, "model.*")
        return {"file": None, "runtime": runtime.name, "settings": dict(runtime.settings), "why": str(error)}
    if runtime.name in PREDICTABLE and shape[0] in (1, 3):  # what an image file holds
        with whole(folder / "predict.py") as temporary:
            temporary.write_text(predict_script(runtime.name, file=target), encoding="utf-8")
    return made


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
