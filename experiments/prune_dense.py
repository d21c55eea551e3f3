"""Small dense vision transformers, trained here, to be pruned by experiments/prune_quality.py: two models on two data sets.

    python experiments/prune_dense.py --out DIR [--cifar ../shared/data/cifar10] [--only deit-digits ...]

DIR/data/{digits,cifar10} hold one fixed split, so that no seed of a pruning sees validation or test images that the dense model was
trained on. DIR/PAIR holds arch.json and model.safetensors (read by `nasvit prune`) and dense.json (steps, accuracies). What is there
already is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nasvit.data import load, load_test
from nasvit.pruning import prepare, save
from nasvit.torchvision_ops import ensure
from nasvit.training import Recipe, evaluate, train

ensure()
from timm.models.swin_transformer import SwinTransformer  # noqa: E402 (timm needs torchvision importable first)
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

EPOCHS = {"digits": 60, "cifar10": 12}
RECIPES: dict[str, dict[str, Any]] = {"deit": {"lr": 1.5e-3, "warmup": 0.1}, "swin": {}}
"""A plain transformer of width 64 does not bear the loop's default learning rate: 87 % on the digits and 26 % on CIFAR-10 with it."""
DATA = tuple(EPOCHS)
MODELS = ("deit", "swin")
PAIRS = tuple(f"{model}-{data}" for data in DATA for model in MODELS)


def make(kind: str, *, image_size: int, in_channels: int, seed: int) -> nn.Module:
    """64 tokens in the first stage: six blocks of width 64, or two and four of widths 64 and 128 with windows of 4 x 4."""
    torch.manual_seed(seed)
    patch = image_size // 8
    if kind == "deit":
        return VisionTransformer(img_size=image_size, patch_size=patch, in_chans=in_channels, num_classes=10, embed_dim=64, depth=6,
                                 num_heads=4)
    return SwinTransformer(img_size=image_size, patch_size=patch, in_chans=in_channels, num_classes=10, embed_dim=64, depths=(2, 4),
                           num_heads=(4, 8), window_size=4)


def split(name: str, folder: Path, *, cifar: Path) -> Path:
    """The data set with its parts fixed: a folder of three .npz."""
    place = folder / "data" / name
    if not (place / f"{name}_test.npz").exists():
        spec = "digits" if name == "digits" else str(cifar)
        data, test = load(spec, seed=0), load_test(spec, seed=0)
        place.mkdir(parents=True, exist_ok=True)
        for part, images in (("train", data.train), ("val", data.val), ("test", test)):
            np.savez(place / f"{name}_{part}.npz", images=images.images.permute(0, 2, 3, 1).numpy(), labels=images.labels.numpy())
    return place


def dense(pair: str, folder: Path, *, cifar: Path) -> dict[str, Any]:
    """Train, keep, and say how good it is; read where it is there already."""
    facts = folder / pair / "dense.json"
    if facts.exists():
        return dict(json.loads(facts.read_text()))
    kind, name = pair.split("-")
    place = split(name, folder, cifar=cifar)
    data, test = load(str(place), seed=0), load_test(str(place), seed=0)
    model = make(kind, image_size=data.image_size[0], in_channels=data.in_channels, seed=0)
    recipe = Recipe.of(RECIPES[kind])
    steps = EPOCHS[name] * len(data.train) // recipe.batch_size
    begun = time.perf_counter()
    result = train(model, data, steps=steps, seed=0, recipe=recipe)
    save(prepare(model.eval(), name=pair).module, folder / pair)
    row = {"pair": pair, "steps": steps, "epochs": EPOCHS[name], "val": result.accuracy, "test": evaluate(model, test, data=data)[0],
           "params_m": sum(p.numel() for p in model.parameters()) / 1e6, "seconds": time.perf_counter() - begun}
    facts.write_text(json.dumps(row, indent=1) + "\n")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cifar", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=PAIRS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for pair in given.only:
        print(dense(pair, given.out, cifar=given.cifar), flush=True)


if __name__ == "__main__":
    main()
