"""What every data set kind stands on: the nouns, the contract of a kind, and the checks all kinds share.

Shapes: images read from disk are uint8 (N, H, W, C); images handed out are uint8 (N, C, H, W) in channels-last memory.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nasvit.errors import DataError
from nasvit.registry import Registry, subclass_of

MEMORY_LIMIT_GB = 8.0
"""All images are kept in memory as uint8; more than this is refused before anything is read."""

MAX_CHANNELS = 16
"""A last axis longer than this is taken for a width: the array is then (N, C, H, W), which is refused."""


@dataclass(frozen=True)
class Images:
    """Labelled images: `images` uint8 (N, C, H, W), `labels` int64 (N,) in 0..num_classes-1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """The two parts a search may see. `mean` and `std` are per channel, on the 0..1 scale, from train; `flip` says whether a mirrored image
    keeps its class; `skipped` counts unreadable files; `fingerprint` is 12 hex over the content of both parts."""

    name: str
    train: Images
    val: Images
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    skipped: int
    notes: tuple[str, ...]
    flip: bool = True
    kind: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return int(self.train.images.shape[2]), int(self.train.images.shape[3])


@dataclass(frozen=True)
class DataInfo:
    """What is known of a data set before its images are read; `natural_size` is (H, W)."""

    kind: str
    natural_size: tuple[int, int]
    in_channels: int
    num_classes: int


@dataclass(frozen=True)
class Labelled:
    """One part as read: `images` uint8 (N, H, W, C), `labels` int64 (N,) in 0..num_classes-1."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """What a kind read. `parts` has "all" (one pool, still to be split in three) or some of "train", "val", "test"."""

    parts: Mapping[str, Labelled]
    class_names: tuple[str, ...]
    flip: bool
    skipped: int = 0
    notes: tuple[str, ...] = ()
    share: float = 0.2
    """Share of each class that a missing validation (and in a pool also a test) part gets."""


class DataKind(ABC):
    """One way in which images lie on disk; registered in KINDS."""

    accepts: str
    """What a user writes for it, for error messages."""

    @abstractmethod
    def claims(self, spec: str) -> bool:
        """Whether `spec` means this kind."""

    @abstractmethod
    def describe(self, spec: str) -> DataInfo:
        """Cheap: no image is decoded as a whole."""

    @abstractmethod
    def read(self, spec: str, *, image_size: tuple[int, int], test: bool) -> Source:
        """The training parts, or with `test` the test part (or the pool it is split from). A kind that decodes files one by one
        delivers `image_size`; arrays may keep their own size."""

    def rooted(self, spec: str) -> str:
        """The same data in words that hold in any folder."""
        return os.path.realpath(spec) if os.path.exists(spec) else spec


KINDS: Registry[type[DataKind]] = Registry("data set kind", group="nasvit.datasets", check=subclass_of(DataKind))


def check_images(images: np.ndarray, *, where: str) -> NDArray[np.uint8]:
    """(N, H, W) or (N, H, W, C) uint8 -> (N, H, W, C); raises DataError for anything else."""
    check_image_header(images.shape, images.dtype, where=where)
    return images[..., None] if images.ndim == 3 else images


def check_image_header(shape: tuple[int, ...], dtype: np.dtype, *, where: str) -> tuple[int, int, int, int]:
    """(N, H, W, C) of an image array, from its header alone; raises DataError for what cannot be used."""
    if dtype != np.uint8:
        hint = " (save (images * 255).round().astype('uint8') if they are 0..1)" if dtype.kind == "f" else ""
        raise DataError(f"{where}: 'images' has dtype {dtype}; accepted: uint8, 0..255{hint}")
    if len(shape) not in (3, 4):
        raise DataError(f"{where}: 'images' has shape {shape}; accepted: (N, H, W) or (N, H, W, C)")
    n, height, width, channels = (*shape, 1) if len(shape) == 3 else shape
    turned = len(shape) == 4 and height in (1, 3, 4) and width == channels > 4  # small square images, channels first
    if channels > MAX_CHANNELS or turned:
        hint = "transpose it with images.transpose(0, 2, 3, 1)" if shape[1] <= MAX_CHANNELS else "save fewer channels"
        raise DataError(f"{where}: 'images' has shape {shape}, so {channels} channels; accepted: (N, H, W, C) with C up to {MAX_CHANNELS}; "
                        f"{hint}")
    if min(n, height, width, channels) == 0:
        raise DataError(f"{where}: 'images' is empty (shape {shape}); accepted: at least two images of two classes")
    check_memory(n, channels, (height, width), where=where)
    return n, height, width, channels


def check_memory(count: int, channels: int, image_size: tuple[int, int], *, where: str) -> None:
    """Raise DataError if so many uint8 images do not fit into MEMORY_LIMIT_GB."""
    need = count * channels * image_size[0] * image_size[1] / 2**30
    if need > MEMORY_LIMIT_GB:
        raise DataError(
            f"{where}: {count} images of {image_size[0]} x {image_size[1]} x {channels} need {need:.1f} GiB in memory; accepted: up to "
            f"{MEMORY_LIMIT_GB:g} GiB; choose a smaller image size or a subset of the images"
        )
