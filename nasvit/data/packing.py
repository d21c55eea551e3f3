"""A data set as arrays and plain values, for workers of a node that share its memory, and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nasvit.data.base import DataSet, Images


def packed(data: DataSet) -> dict[str, Any]:
    """The data set as arrays and plain values: arrays are what the workers of a node can share."""
    parts = {f"{part}.{name}": array for part, images in (("train", data.train), ("val", data.val))
             for name, array in (("images", images.images.permute(0, 2, 3, 1).contiguous().numpy()), ("labels", images.labels.numpy()))}
    return {**parts, "facts": replace(data, train=None, val=None)}  # type: ignore[arg-type]


def unpacked(parcel: Mapping[str, Any]) -> DataSet:
    """The inverse of `packed`, on the parcel's own memory, which nobody writes to."""
    def images(part: str) -> Images:
        pixels, labels = (_tensor(parcel[f"{part}.{name}"]) for name in ("images", "labels"))
        return Images(pixels.permute(0, 3, 1, 2), labels)  # (N, H, W, C) -> (N, C, H, W) in channels-last memory

    facts: DataSet = parcel["facts"]
    return replace(facts, train=images("train"), val=images("val"))


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the memory is read-only: images and labels are only ever read
        return torch.from_numpy(array)
