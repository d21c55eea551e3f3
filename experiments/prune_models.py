"""Prune 60 named timm models at ratios 0.3 and 0.5: forward, backward, ONNX in agreement; prints a table and the totals.

    python experiments/prune_models.py [--only NAME ...] [--ratios 0.3 0.5] [--shallow] [--out FILE.jsonl [--resume]] [--minutes M]

Weights are untrained (zero gammas and layer scales randomised, so that no branch is silent); images are small where a model can be built
for small ones, which changes no kind of module. Families with token operators take turns through them. A model counts as pruned if at
every ratio its owned copy is the model, the pruned network has finite outputs and a finite gradient on every parameter, fused and
written-out attention agree, the file round trip is exact, and ONNX Runtime agrees with torch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)
import torch  # noqa: E402
from torch import nn  # noqa: E402

from nasvit.pruning import UnsupportedModelError, importance, input_shape, load, prepare, save, set_fused, slice_weights, uniform  # noqa: E402
from nasvit.runtimes.onnx_file import write_onnx  # noqa: E402

SMALL = {"img_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": SMALL, "vit_small_patch16_224": SMALL, "vit_base_patch16_224": SMALL, "vit_small_patch32_224": SMALL,
    "vit_medium_patch16_gap_240": SMALL, "vit_little_patch16_reg4_gap_256": SMALL, "vit_mediumd_patch16_reg4_gap_256": SMALL,
    "vit_wee_patch16_reg1_gap_256": SMALL, "vit_pwee_patch16_reg1_gap_256": SMALL, "vit_betwixt_patch16_reg4_gap_256": SMALL,
    "vit_base_patch16_clip_224": SMALL, "vit_base_patch16_siglip_gap_224": {**SMALL, "num_classes": 10}, "flexivit_small": SMALL,
    "vit_base_patch16_rpn_224": SMALL, "vit_relpos_small_patch16_224": SMALL,
    "deit_tiny_patch16_224": SMALL, "deit_small_patch16_224": SMALL, "deit_base_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL, "deit_small_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL, "deit3_medium_patch16_224": SMALL, "deit3_base_patch16_224": SMALL,
    "vit_small_patch14_dinov2": {"img_size": 56, "num_classes": 10}, "vit_small_patch14_reg4_dinov2": {"img_size": 56, "num_classes": 10},
    "vit_base_patch14_dinov2": {"img_size": 56, "num_classes": 10}, "vit_base_patch14_reg4_dinov2": {"img_size": 56, "num_classes": 10},
    "vit_small_patch16_dinov3": {**SMALL, "num_classes": 10}, "vit_small_patch16_rope_224": SMALL,
    "vit_small_patch16_rope_mixed_224": SMALL,
    "eva02_tiny_patch14_224": {"img_size": 56, "num_classes": 10}, "eva02_small_patch14_224": {"img_size": 56, "num_classes": 10},
    "eva02_base_patch14_224": {"img_size": 56, "num_classes": 10}, "eva_large_patch14_196": {"img_size": 56, "depth": 6},
    "vit_pe_spatial_tiny_patch16_512": {**SMALL, "num_classes": 10}, "vit_small_patch16_rope_ape_224": SMALL,
    "beit_base_patch16_224": SMALL, "beitv2_base_patch16_224": SMALL,
    "cait_xxs24_224": SMALL, "cait_xxs36_224": SMALL, "cait_xs24_384": SMALL, "cait_s24_224": SMALL,
    "swin_tiny_patch4_window7_224": SMALL, "swin_small_patch4_window7_224": SMALL, "swin_base_patch4_window7_224": SMALL,
    "swin_s3_tiny_224": SMALL, "swinv2_tiny_window8_256": SMALL, "swinv2_tiny_window16_256": SMALL, "swinv2_small_window8_256": SMALL,
    "swinv2_cr_tiny_224": SMALL,
    "pvt_v2_b0": {}, "pvt_v2_b1": {}, "pvt_v2_b2": {}, "pvt_v2_b2_li": {}, "pvt_v2_b3": {},
    "levit_128s": SMALL, "levit_128": SMALL, "levit_192": SMALL, "levit_256": SMALL, "levit_conv_128s": SMALL}
FIXED_SIZE = {"pvt_v2_b0": (64, 64), "pvt_v2_b1": (64, 64), "pvt_v2_b2": (64, 64), "pvt_v2_b2_li": (224, 224), "pvt_v2_b3": (64, 64)}
AGREES = 1e-4
SHALLOW: dict[str, dict[str, Any]] = {"swin": {"depths": (1, 1, 2, 1)}, "pvt": {"depths": (1, 1, 1, 1)},
                                      "levit": {"depth": (1, 1, 1)}, "": {"depth": 3}}
"""Few blocks of each kind, by the beginning of the name, for a quick look (--shallow); the last entry is for all others."""


@torch.no_grad()
def wake(model: nn.Module) -> None:
    """Randomise what untrained models have at zero or almost: no branch is silent, so no fault is."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "gamma" in name or float(parameter.abs().max()) < 1e-3:
            parameter.copy_(0.5 * torch.rand(parameter.shape, generator=generator) + 0.1)


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    """The largest difference, relative to the largest output."""
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-12))


def through_onnx(module: nn.Module, image: torch.Tensor, folder: str) -> torch.Tensor:
    """The output of ONNX Runtime on the exported module."""
    import onnxruntime

    path = str(Path(folder) / "model.onnx")
    write_onnx(module, image, Path(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])


def arguments(name: str, *, shallow: bool) -> dict[str, Any]:
    """What the model is created with."""
    fewer = next(v for prefix, v in SHALLOW.items() if name.startswith(prefix)) if shallow else {}
    return {**MODELS[name], **fewer}


def try_one(name: str, *, ratios: list[float], turn: int, shallow: bool) -> dict[str, Any]:
    """One model at every ratio: what happened, in numbers."""
    start = time.perf_counter()
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments(name, shallow=shallow)).eval()
    wake(model)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    row: dict[str, Any] = {"model": name, "status": "pruned", "operator": "none"}
    try:
        dense = prepare(model, name=f"timm:{name}", image_size=FIXED_SIZE.get(name))
    except UnsupportedModelError as error:
        row |= {"status": "refused", "why": str(error)[:160]}
        unchanged = all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        return row | {"status": "refused" if unchanged else "broken", "seconds": round(time.perf_counter() - start, 1)}
    operators = dense.layout.operators
    row["operator"] = operators[turn % len(operators)]
    images = torch.randn(2, *input_shape(dense.plan), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        row["identity"] = relative(model(images), dense.module(images))
    scores = importance(dense, images, torch.tensor([0, 1]), criterion="taylor").scores
    worst = {"fused": 0.0, "file": 0.0, "onnx": 0.0}
    for ratio in ratios:
        plan = uniform(dense.plan.source, keep=1 - ratio, operator=row["operator"],
                       keep_ratio=1 - ratio if row["operator"] != "none" else 1.0)
        pruned = slice_weights(dense, plan, scores)
        out = pruned(images)
        out.square().mean().backward()
        finite = bool(out.isfinite().all()) and all(p.grad is not None and bool(p.grad.isfinite().all()) for p in pruned.parameters())
        pruned.zero_grad(set_to_none=True)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            set_fused(pruned, False)
            written_out = pruned(images)
            set_fused(pruned, True)
            fused = pruned(images)
            worst["fused"] = max(worst["fused"], relative(written_out, fused))
            worst["file"] = max(worst["file"], relative(pruned(images), load(*save(pruned, folder))(images)))
            worst["onnx"] = max(worst["onnx"], relative(pruned(images[:1]), through_onnx(pruned, images[:1], folder)))
        if not finite:
            row |= {"status": "broken", "why": f"ratio {ratio}: an output or a gradient is missing or not finite"}
        row[f"params_{ratio}"] = round(sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in model.parameters()), 3)
    row |= worst
    if max(*worst.values(), row["identity"]) > AGREES:
        row |= {"status": "broken", "why": "outputs disagree"}
    if not all(torch.equal(v, before[n]) for n, v in model.state_dict().items()):
        row |= {"status": "broken", "why": "the dense model was changed"}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def shown(row: dict[str, Any], ratios: list[float]) -> str:
    """A line of the table."""
    numbers = " | ".join(f"{row[k]:.0e}" if k in row else "" for k in ("identity", "fused", "file", "onnx"))
    shares = ", ".join(str(row[f"params_{r}"]) for r in ratios if f"params_{r}" in row)
    return (f"| {row['model']} | {row['status']} {row.get('why', '')} | {row.get('operator', '')} | {numbers} | {shares} | "
            f"{row.get('seconds', '')} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.3, 0.5])
    parser.add_argument("--shallow", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--resume", action="store_true", help="take what FILE.jsonl has of these models, and do the rest")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no model after this time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, known = time.monotonic(), {}
    if options.resume and options.out is not None and options.out.exists():
        known = {row["model"]: row for row in map(json.loads, options.out.read_text().splitlines())}
    rows = []
    print("| model | status | operator | identity | fused | file | onnx | params | s |\n|---|---|---|---|---|---|---|---|---|")
    for turn, name in enumerate(options.only or MODELS):
        row = known.get(name)
        if row is None:
            if time.monotonic() - begun > 60 * options.minutes:
                continue
            try:
                place = list(MODELS).index(name) if name in MODELS else turn
                row = try_one(name, ratios=options.ratios, turn=place, shallow=options.shallow)
            except Exception as error:  # a crash is what this table is to show
                row = {"model": name, "status": "broken", "why": f"{type(error).__name__}: {str(error)[:300]}"}
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(shown(row, options.ratios), flush=True)
    counts = {status: sum(r["status"] == status for r in rows) for status in ("pruned", "refused", "broken")}
    print(f"\n{len(rows)} models: " + ", ".join(f"{n} {status}" for status, n in counts.items()))


if __name__ == "__main__":
    main()
