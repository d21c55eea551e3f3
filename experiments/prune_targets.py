"""Does a pruned model meet its target when it is measured again? Short prunings of several models to several targets.

    python experiments/prune_targets.py --out FILE.jsonl                 # 5 models x 4 targets x 2 seeds, resumable
    python experiments/prune_targets.py --out FILE.jsonl --table         # the table of what the file holds

The dense models are trained for --steps on the digits first (kept beside FILE): a result is chosen by accuracy, and accuracies of an
untrained model are chance. Recovery is off and no ONNX file is written, as a latency does not depend on them. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from nasvit.errors import NasvitError
from nasvit.experiment import PruneExperiment
from nasvit.named import make_named
from nasvit.runtimes.onnxruntime import OnnxRuntime
from nasvit.search.prune import prune
from nasvit.whole_file import whole

MODELS = (("deit_tiny_patch16_224", 96), ("deit_small_patch16_224", 64), ("swin_tiny_patch4_window7_224", 64), ("pvt_v2_b0", 64),
          ("vit_tiny_patch16_224", 128))
TARGETS = ("0.5x", "0.6x", "0.7x", "0.85x")
LOW, HIGH = 0.90, 1.00


def dense(name: str, size: int, *, steps: int, folder: Path) -> Path:
    """Weights of the model after a short training on the digits, trained once."""
    path = folder / f"{name}-{size}-{steps}.safetensors"
    if not path.exists():
        from safetensors.torch import save_file

        from nasvit.data import load
        from nasvit.training import train

        torch.set_num_threads(1)
        module = make_named(name, image_size=(size, size), in_channels=1, num_classes=10, seed=0)
        result = train(module, load("digits", seed=0, image_size=(size, size)), steps=steps, seed=0)
        print(f"{name}: {result.accuracy:.1%} after {steps} steps", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            save_file({key: value.contiguous() for key, value in module.state_dict().items()}, temporary)
    return path


def one(name: str, size: int, target: str, seed: int, *, weights: Path, device: str, budget: int) -> dict[str, object]:
    """One short pruning; the remeasured latency as a share of its target."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = PruneExperiment(model=f"timm:{name}", checkpoint=str(weights), data="digits", device=device, image_size=(size, size),
                                     budget=budget, engine="inline", recover_epochs=0, target=target, seed=seed)
        begun = time.perf_counter()
        row: dict[str, object] = {"model": name, "size": size, "target": target, "seed": seed, "budget": budget, "weights": weights.stem}
        try:
            facts = prune(experiment, out=Path(folder) / "run")
            summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
            row |= {"of_target": facts["pruned"]["of_target"], "verdict": facts["pruned"]["latency"]["verdict"],
                    "rejected": summary["rejected"], "recorded": facts["pruned"]["recorded_ms"] / facts["target_ms"],
                    "half_width": (facts["pruned"]["latency"]["ci_high_ms"] / facts["pruned"]["latency"]["median_ms"] - 1)}
        except NasvitError as error:
            row |= {"of_target": None, "verdict": str(error)[:200], "rejected": 0}
        return {**row, "seconds": time.perf_counter() - begun}


def table(rows: list[dict[str, object]]) -> str:
    """One line per model and target."""
    lines = ["| model | target | share of the target, each seed | met |", "|---|---|---|---|"]
    met = 0
    for model in dict.fromkeys(str(r["model"]) for r in rows):
        for target in TARGETS:
            found = [r["of_target"] for r in rows if (r["model"], r["target"]) == (model, target)]
            good = sum(isinstance(v, float) and LOW <= v <= HIGH for v in found)
            met += good
            shown = ", ".join("failed" if v is None else f"{v:.3f}" for v in found)
            lines.append(f"| {model} | {target} | {shown} | {good} of {len(found)} |")
    return "\n".join([*lines, "", f"{met} of {len(rows)} between {LOW:g} and {HIGH:g} of their target"])


def main() -> None:
    """Run what the file does not have yet, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu", help="one that needs no file")
    parser.add_argument("--budget", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150, help="of the dense models' training")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time; run again to go on")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    OnnxRuntime.missing = lambda self: "not asked for here"  # type: ignore[method-assign]
    begun, done = time.monotonic(), {(r["model"], r["target"], r["seed"]) for r in rows}
    wanted = [(n, s, t, seed) for seed in (0, 1) for t in TARGETS for n, s in MODELS if (n, t, seed) not in done]
    for name, size, target, seed in [] if given.table else wanted:
        if time.monotonic() - begun > 60 * given.minutes:
            break
        weights = dense(name, size, steps=given.steps, folder=given.out.parent / "dense")
        row = one(name, size, target, seed, weights=weights, device=given.device, budget=given.budget)
        print(row, flush=True)
        rows.append(row)
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
