"""A searched network as a backbone: the maps of its scales under torchvision's feature pyramid and segmentation head.

    python examples/segmentation.py                                # a network sampled from hybrid_tiny, untrained
    python examples/segmentation.py reports/runs/RUN --pick best   # a pick of a run, with its weights

The images are generated: discs, squares and triangles on noise, to be told apart from the ground pixel by pixel. Prints the mean
intersection over union before and after a short training.

Legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import argparse
import random
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nasvit
from nasvit.models import Features, build
from nasvit.space import SearchSpace
from nasvit.torchvision_ops import ensure

CLASSES = ("ground", "disc", "square", "triangle")


class Segmenter(nn.Module):
    """(B, C, H, W) -> (B, classes, H, W)."""

    def __init__(self, backbone: Features, *, classes: int, width: int = 32) -> None:
        super().__init__()
        ensure()  # torchvision beside a CPU build of torch
        from torchvision.models.segmentation.fcn import FCNHead
        from torchvision.ops import FeaturePyramidNetwork

        self.backbone = backbone
        self.pyramid = FeaturePyramidNetwork(self.backbone.feature_info.channels(), width)
        self.head = FCNHead(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = list(self.pyramid(OrderedDict((str(i), m) for i, m in enumerate(self.backbone(x)))).values())
        fused = maps[0]
        for coarser in maps[1:]:
            fused = fused + F.interpolate(coarser, size=fused.shape[2:], mode="bilinear", align_corners=False)
        return F.interpolate(self.head(fused), size=x.shape[2:], mode="bilinear", align_corners=False)


def shapes(count: int, *, size: tuple[int, int], channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, C, H, W) about 0, and their classes (count, H, W): two shapes on each, a later one over an earlier one."""
    generator, (height, width) = torch.Generator().manual_seed(seed), size
    rows, columns = torch.arange(height).view(-1, 1).float(), torch.arange(width).view(1, -1).float()
    images = 0.4 * torch.randn(count, channels, height, width, generator=generator)
    labels = torch.zeros(count, height, width, dtype=torch.long)
    for image, label in zip(images, labels, strict=True):
        for _ in range(2):
            kind = int(torch.randint(1, len(CLASSES), (), generator=generator))
            y, x, r = (torch.rand(3, generator=generator) * torch.tensor([0.6, 0.6, 0.12]) + torch.tensor([0.2, 0.2, 0.14])).tolist()
            dy, dx, reach = rows - y * height, columns - x * width, r * min(size)
            inside = {1: dy**2 + dx**2 < reach**2, 2: (dy.abs() < reach) & (dx.abs() < reach),
                      3: (dy.abs() < reach) & (2 * dx.abs() < dy + reach)}[kind]
            label[inside] = kind
            image[:, inside] += torch.randn(channels, 1, generator=generator).sign() * 1.2
    return images, labels


def mean_iou(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Intersection over union, averaged over the classes that occur."""
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(dim=1) for part in images.split(32)])
    scores = []
    for kind in range(len(CLASSES)):
        a, b = found == kind, labels == kind
        if b.any():
            scores.append(float((a & b).sum() / (a | b).sum()))
    return sum(scores) / len(scores)


def train(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, seed: int, batch_size: int = 16, lr: float = 3e-3) -> None:
    """AdamW with a one-cycle rate on random batches."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        index = torch.randint(len(images), (batch_size,))
        loss = F.cross_entropy(model(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def backbone(run: Path | None, *, pick: str, seed: int) -> Features:
    """The maps of the picked network of a run with its weights, else an untrained sample of hybrid_tiny for 32 px."""
    if run is not None:
        return nasvit.load(run).model(pick, features_only=True)
    space = SearchSpace.load("hybrid_tiny", image_size=(32, 32), in_channels=3, num_classes=len(CLASSES))
    return Features(build(space.sample(random.Random(seed)), seed=seed))


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Returns the mean IoU on fresh images before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a run directory; none: an untrained sample")
    parser.add_argument("--pick", default="knee", help="knee, best, an arch id, ...")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=24)
    given = parser.parse_args(arguments)
    features = backbone(given.run, pick=given.pick, seed=given.seed)
    arch = features.model.arch
    made = {"size": arch.image_size, "channels": arch.in_channels}
    train_set, test_set = shapes(512, **made, seed=given.seed), shapes(128, **made, seed=given.seed + 1)
    model = Segmenter(features, classes=len(CLASSES))
    before = mean_iou(model, *test_set)
    train(model, *train_set, steps=given.steps, seed=given.seed)
    after = mean_iou(model, *test_set)
    params = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{arch.id}: {params:.2f} M parameters with pyramid and head, maps of {model.backbone.feature_info.reduction()} pixels a token")
    print(f"mean IoU on 128 fresh images: {before:.1%} before, {after:.1%} after {given.steps} steps")
    return before, after


if __name__ == "__main__":
    main()
