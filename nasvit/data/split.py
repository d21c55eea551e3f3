"""Seeded stratified splits and resizing: pure functions on arrays and tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nasvit.errors import DataError

_CHUNK_BYTES = 64 * 2**20


def stratified_split(labels: NDArray[np.int64], *, shares: Sequence[float], seed: int) -> list[NDArray[np.int64]]:
    """Index arrays, the rest first, then one per share; every class gives each part its share, as near as whole images allow.

    The first share gets at least one image of every class and the rest keeps at least one, so a class of one image raises
    DataError. Disjoint, sorted, a function of labels, shares and seed alone.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(f"class {label} has {len(members)} image; accepted: at least 2 in each class, so that it can be split; "
                            "add images or remove the class")
        left = len(members) - 1
        start = 0
        for number, share in enumerate(shares):
            take = min(left, max(1 if number == 0 else 0, round(share * len(members))))
            parts[number + 1].append(members[start : start + take])
            start, left = start + take, left - take
        parts[0].append(members[start:])
    return [np.sort(np.concatenate(part)) for part in parts]


def resize(images: Tensor, image_size: tuple[int, int]) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, h, w): antialiased bicubic so that the image covers (h, w), then a centre crop."""
    height, width = int(images.shape[2]), int(images.shape[3])
    if (height, width) == image_size:
        return images
    scale = max(image_size[0] / height, image_size[1] / width)
    cover = (max(image_size[0], round(height * scale)), max(image_size[1], round(width * scale)))
    top, left = (cover[0] - image_size[0]) // 2, (cover[1] - image_size[1]) // 2
    per_image = 4 * images.shape[1] * (height * width + cover[0] * cover[1])
    out = []
    for chunk in images.split(max(1, math.floor(_CHUNK_BYTES / per_image))):
        large = F.interpolate(chunk.float(), size=cover, mode="bicubic", antialias=True, align_corners=False)
        large = large[:, :, top : top + image_size[0], left : left + image_size[1]]
        out.append(large.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(out)
