"""Torch-Pruning on the models of prune_models.py, held to the same: prune, forward, backward, fused as written-out attention, ONNX.

    pip install -e ".[peers]"
    python experiments/prune_rival.py [--only NAME ...] [--ratios 0.3 0.5] [--shallow]

Used as its own examples for timm use it: `BasePruner` with GroupMagnitudeImportance, heads' number kept and their width cut (num_heads
given for every fused projection), the classifier left alone, widths in multiples of 8; afterwards every attention is told its head_dim
(and attn_dim, which newer attentions read). Models, sizes and random weights are those of prune_models.py.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
import warnings
from collections import Counter
from typing import Any

import torch
from prune_models import AGREES, FIXED_SIZE, MODELS, arguments, relative, through_onnx, wake
from torch import nn

from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

LONGEST = 150
"""Seconds for a model at one ratio; ours take at most 290 for both, with more to do."""


def pruned_by_rival(model: nn.Module, image: torch.Tensor, *, ratio: float) -> None:
    """Prune the model in place, as the tool's examples do."""
    import torch_pruning

    projections = {m: m.qkv for m in model.modules() if hasattr(m, "num_heads") and isinstance(getattr(m, "qkv", None), nn.Module)}
    classifiers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.num_classes]
    pruner = torch_pruning.pruner.BasePruner(
        model, image, importance=torch_pruning.importance.GroupMagnitudeImportance(), pruning_ratio=ratio, ignored_layers=classifiers,
        num_heads={projection: m.num_heads for m, projection in projections.items()}, prune_num_heads=False, prune_head_dims=True,
        round_to=8)
    pruner.step()
    for m, projection in projections.items():
        m.num_heads = pruner.num_heads.get(projection, m.num_heads)
        m.head_dim = projection.out_features // (3 * m.num_heads)
        if hasattr(m, "attn_dim"):
            m.attn_dim = m.num_heads * m.head_dim


def try_one(name: str, *, ratios: list[float], shallow: bool) -> tuple[str, str]:
    """(status, what went wrong) of one model at every ratio: "usable", "raised" or "inconsistent"."""
    for ratio in ratios:
        torch.manual_seed(0)
        model = timm.create_model(name, **arguments(name, shallow=shallow)).eval()
        wake(model)
        size = FIXED_SIZE.get(name) or arguments(name, shallow=shallow).get("img_size", 224)
        images = torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size)), generator=torch.Generator().manual_seed(2))
        before = sum(p.numel() for p in model.parameters())
        step = "pruning"
        signal.alarm(LONGEST)
        try:
            pruned_by_rival(model, images[:1], ratio=ratio)
            step = "forward"
            model(images).square().mean().backward()
            model.zero_grad(set_to_none=True)
            if sum(p.numel() for p in model.parameters()) > 0.97 * before:
                return "inconsistent", f"at {ratio}: hardly anything was pruned"
            apart = _fused_apart(model, images)
            if apart > AGREES:
                return "inconsistent", f"at {ratio}: fused and written-out attention differ by {apart:.0e}"
            step = "export"
            with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
                apart = relative(model(images[:1]), through_onnx(model, images[:1], folder))
            if apart > AGREES:
                return "inconsistent", f"at {ratio}: ONNX Runtime differs by {apart:.0e}"
        except Exception as error:  # whatever it raises is what the table is to show
            return "raised", f"at {ratio}, {step}: {type(error).__name__}: {str(error).splitlines()[0][:110] if str(error) else ''}"
        finally:
            signal.alarm(0)
    return "usable", ""


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"not done after {LONGEST} s")


@torch.no_grad()
def _fused_apart(model: nn.Module, images: torch.Tensor) -> float:
    attentions = [m for m in model.modules() if isinstance(getattr(m, "fused_attn", None), bool)]
    outs = []
    for fused in (True, False):
        for m in attentions:
            m.fused_attn = fused
        outs.append(model(images))
    return relative(*outs) if attentions else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.3, 0.5])
    parser.add_argument("--shallow", action="store_true")
    given = parser.parse_args()
    try:
        import torch_pruning
    except ImportError:
        print('Torch-Pruning is not installed here: pip install -e ".[peers]"')
        return
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    print(f"Torch-Pruning {torch_pruning.__version__}\n\n| model | what became of it | why | s |\n|---|---|---|---|")
    for name in given.only or MODELS:
        begun = time.perf_counter()
        status, why = try_one(name, ratios=given.ratios, shallow=given.shallow)
        counts[status] += 1
        print(f"| {name} | {status} | {why} | {time.perf_counter() - begun:.1f} |", flush=True)
    told: Any = ", ".join(f"{counts[status]} {status}" for status in ("usable", "raised", "inconsistent"))
    print(f"\n{counts.total()} models: {told}")


if __name__ == "__main__":
    main()
