"""How much faster pruned networks are than their dense models, at equal MACs: one thread, call by call in turn with the dense model.

    python experiments/prune_speed.py [--model deit_small_patch16_224] [--pairs 30] [--onnx] [--share 0.5]
                                      [--only WORD ...]

Plans: everything cut alike, tokens alone by each operator, and tokens with heads and MLPs, each solved for the wanted share of the dense
MACs. The ratio is that of the medians; dense and pruned run in the same form ("eager": as built; "deployed": nasvit.models.deploy on
both), but in ONNX Runtime ("onnx") the dense file is the model as timm builds it, the pruned one what `nasvit prune` writes. Both shares of
MACs are of the dense model's: the plan's, which it is solved for, and those that are left in the inference form.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nasvit.cost import count as cost_of
from nasvit.models.deploy import deploy
from nasvit.pruning import Dense, Plan, PlanError, build, input_shape, prepare, slice_weights, uniform
from nasvit.runtimes.onnx_file import write_onnx
from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)


def count(plan: Plan) -> float:
    """Multiply-adds of one image."""
    return cost_of(build(plan).eval(), input_shape=(1, *input_shape(plan))).macs


def in_steps(plan: Plan, *, operator: str, keep_ratio: float, cuts: tuple[int, ...]) -> Plan:
    """Token ratios that fall at a few blocks only, by equal factors, down to keep_ratio behind the last."""
    ratios = []
    for i in range(len(plan.blocks)):
        done = sum(i >= cut for cut in cuts)
        ratios.append(round(keep_ratio ** (done / len(cuts)), 4))
    return replace(plan, operator=operator, blocks=tuple(replace(b, keep_ratio=r) for b, r in zip(plan.blocks, ratios, strict=True)))


def with_mlp(plan: Plan, *, keep: float) -> Plan:
    """The share of every MLP, in multiples of 8; three heads cut by a half are coarse steps, and the MLP makes up for them."""
    return replace(plan, blocks=tuple(replace(b, mlp_dim=max(8, int(b.mlp_dim * keep) // 8 * 8)) for b in plan.blocks))


def without_blocks(plan: Plan) -> Plan:
    """Every second block of the first two thirds gone: in a Swin transformer those that shift their windows, which cost the most beside
    their multiply-adds."""
    gone = range(1, 2 * len(plan.blocks) // 3, 2)
    return replace(plan, blocks=tuple(replace(b, heads=0, head_dim=0, mlp_dim=0) if i in gone else b for i, b in enumerate(plan.blocks)))


def solve(make: Callable[[float], Plan], *, target: float) -> Plan:
    """The plan of the family make(share) whose MACs are nearest below the target, by bisection."""
    low, high, best = 0.05, 1.0, None
    for _ in range(6):
        middle = (low + high) / 2
        try:
            plan = make(middle)
            enough = count(plan) <= target
        except PlanError:  # too steep
            low = middle
            continue
        if enough:
            best, low = plan, middle
        else:
            high = middle
    if best is None:
        raise PlanError("no plan of this kind has so few MACs")
    return best


def plans(dense: Dense, *, share: float, only: list[str] | None) -> dict[str, Plan]:
    """One plan of each kind, or of those whose name has a word of `only`, at `share` of the dense MACs."""
    source, target = dense.plan.source, share * count(dense.plan)
    found = {}
    kinds: dict[str, Callable[[float], Plan]] = {
        "uniform heads, mlp, embed": lambda k: uniform(source, keep=k),
        "mlp and heads": lambda k: uniform(source, keep=k, parts=("heads", "mlp")),
        "depth, mlp and heads": lambda k: without_blocks(uniform(source, keep=k, parts=("heads", "mlp"))),
        "mlp, two thirds of heads": lambda k: with_mlp(uniform(source, keep=2 / 3, parts=("heads",)), keep=k)}
    if "merge" in dense.layout.operators:
        kinds["merge in every block"] = lambda k: uniform(source, keep=1.0, operator="merge", keep_ratio=k)
        kinds["merge in 1 block"] = lambda k: in_steps(dense.plan, operator="merge", keep_ratio=k, cuts=(1,))
        kinds["merge in 3 blocks"] = lambda k: in_steps(dense.plan, operator="merge", keep_ratio=k, cuts=(1, 4, 7))
    if "topk_fuse" in dense.layout.operators:
        kinds["topk_fuse in 3 blocks"] = lambda k: in_steps(dense.plan, operator="topk_fuse", keep_ratio=k, cuts=(2, 5, 8))
        kinds["topk_fuse in 1 block"] = lambda k: in_steps(dense.plan, operator="topk_fuse", keep_ratio=k, cuts=(1,))
        kinds["topk_fuse, mlp, heads"] = lambda k: in_steps(uniform(source, keep=min(1.0, k + 0.2), parts=("heads", "mlp")),
                                                            operator="topk_fuse", keep_ratio=k, cuts=(3, 6, 9))
        kinds["slow_fast"] = lambda k: uniform(source, keep=1.0, operator="slow_fast", keep_ratio=k)
    for name, make in kinds.items():
        if only is not None and not any(word in name for word in only):
            continue
        try:
            found[name] = solve(make, target=target)
        except PlanError as error:
            print(f"| {name} | not possible: {error} |")
    return found


def ratio(one: Callable[[], object], two: Callable[[], object], *, pairs: int) -> float:
    """Median time of one over that of two, called in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for call in (one, two) * 3:
            call()
        for _ in range(pairs):
            for slot, call in zip(times, (one, two), strict=True):
                start = time.perf_counter()
                call()
                slot.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def through_onnx(module: nn.Module, image: Tensor, folder: str, name: str) -> Callable[[], object]:
    """A call of ONNX Runtime on the exported module, one thread."""
    import onnxruntime

    path = str(Path(folder) / f"{name}.onnx")
    write_onnx(module, image, Path(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--only", nargs="*", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(options.model).eval()
    dense = prepare(model, name=f"timm:{options.model}")
    whole = count(dense.plan)
    print(f"{options.model}: {whole / 1e9:.3f} G MACs; {options.share:.0%} wanted; times faster than dense, {options.pairs} pairs")
    forms = ("eager", "deployed") + (("onnx",) if options.onnx else ())
    print("| plan | MACs | inference form | " + " | ".join(f"{form} {batch}" for form in forms for batch in (1, 8)) + " |")
    print("|---" * (3 + 2 * len(forms)) + "|")
    for name, plan in plans(dense, share=options.share, only=options.only).items():
        pruned, cells = slice_weights(dense, plan, {}), []
        form = deploy(pruned)
        left = cost_of(form, input_shape=(1, *input_shape(plan))).macs
        for kind in forms:
            for batch in (1, 8):
                image = torch.randn(batch, *input_shape(plan))
                pairs = max(6, options.pairs // batch)
                with tempfile.TemporaryDirectory() as folder:
                    if kind == "onnx":
                        calls = [through_onnx(model, image, folder, "dense"), through_onnx(form, image, folder, "pruned")]
                    else:
                        both = (model, pruned) if kind == "eager" else (deploy(dense.module), form)
                        calls = [lambda m=m, image=image: m(image) for m in both]  # type: ignore[misc]
                    cells.append(f"{ratio(calls[0], calls[1], pairs=pairs):.2f}")
        print(f"| {name} | {count(plan) / whole:.3f} | {left / whole:.3f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
