"""What int8 costs in accuracy: trained networks in ONNX Runtime and OpenVINO, on test images that nothing was chosen by.

    python experiments/prune_dense.py --out DIR                       # four small networks, trained here
    python experiments/int8_accuracy.py --dense DIR [--only deit-digits ...] [--images 1000]

Every image is run alone, as a network is timed, and both sides see the same ones. Prints top-1 accuracy in float32 (eager) and in each
runtime's int8, the share of images that both put into the same class, and an exact test of whether one side is right more often where
only one is (McNemar).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from prune_dense import PAIRS
from scipy.stats import binomtest
from torch import Tensor, nn

from nasvit.data import load as load_data
from nasvit.data import load_test
from nasvit.data.augment import Normaliser
from nasvit.models.deploy import deploy
from nasvit.pruning import load
from nasvit.runtimes import make_runtime
from nasvit.runtimes.accuracy import both_classes

RUNTIMES = ("onnxruntime", "openvino")


def row(pair: str, name: str, *, form: nn.Module, images: Tensor, labels: Tensor) -> str:
    """A row of the table."""
    runtime = make_runtime(name, precision="int8")
    missing = runtime.missing()
    if missing is not None:
        return f"| {pair} | {name} | {missing} |"
    ours, theirs = both_classes(form, runtime=runtime, images=images)
    right, also = ours == labels, theirs == labels
    gained, lost = int((also & ~right).sum()), int((right & ~also).sum())
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return (f"| {pair} | {name} | {len(labels)} | {right.double().mean():.2%} | {also.double().mean():.2%} | "
            f"{(ours == theirs).double().mean():.2%} | {gained}, {lost} | {p:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=PAIRS)
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | runtime | images | float32 | int8 | same class | right in int8 alone, in float32 alone | p |")
    print("|---|---|---|---|---|---|---|---|")
    for pair in given.only:
        images, labels = test_of(given.dense, pair, count=given.images)
        form = deploy(load(given.dense / pair / "arch.json", given.dense / pair / "model.safetensors"))
        for name in RUNTIMES:
            print(row(pair, name, form=form, images=images, labels=labels), flush=True)


def test_of(folder: Path, pair: str, *, count: int) -> tuple[Tensor, Tensor]:
    """The first normalised test images (N, C, H, W) of a pair's data set, and their labels."""
    place = str(folder / "data" / pair.split("-")[1])
    data, test = load_data(place, seed=0), load_test(place, seed=0)
    return Normaliser.of(data.mean, data.std, device=torch.device("cpu"))(test.images[:count]), test.labels[:count]


if __name__ == "__main__":
    main()
