"""torchvision's data sets by name, `torchvision:CIFAR10@ROOT`, when they are on disk. Nothing is ever downloaded.

CIFAR's files are pickles: torchvision compares their MD5 sums with the published ones (of all files, the test file too) before it
opens those of the part asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nasvit.data.base import KINDS, DataInfo, DataKind, Labelled, Source, check_images
from nasvit.errors import DataError
from nasvit.registry import unknown

_PREFIX = "torchvision:"


@dataclass(frozen=True)
class _Known:
    size: int
    channels: int
    classes: int
    flip: bool  # a mirrored digit or letter is another sign
    splits: bool = False  # asks for split="train" instead of train=True


_KNOWN = {
    "CIFAR10": _Known(32, 3, 10, True),
    "CIFAR100": _Known(32, 3, 100, True),
    "MNIST": _Known(28, 1, 10, False),
    "FashionMNIST": _Known(28, 1, 10, True),
    "KMNIST": _Known(28, 1, 10, False),
    "SVHN": _Known(32, 3, 10, False, splits=True),
    "STL10": _Known(96, 3, 10, True, splits=True),
}


def default_roots() -> list[Path]:
    """Where a data set without @ROOT is looked for."""
    return [Path("data"), Path.home() / "data", Path.home() / ".cache" / "torch" / "datasets"]


def parse(spec: str) -> tuple[str, list[Path]]:
    """`torchvision:NAME[@ROOT]` -> (NAME, roots to look in); raises DataError for an unknown name."""
    name, at, root = spec.removeprefix(_PREFIX).partition("@")
    if name not in _KNOWN:
        raise DataError(unknown("torchvision data set", name, sorted(_KNOWN)))
    return name, [Path(root).expanduser()] if at else default_roots()


@KINDS.register("torchvision")
class TorchvisionSet(DataKind):
    """A data set of torchvision's, read by torchvision (which checks the files' sums where it reads pickles)."""

    accepts = "torchvision:NAME[@ROOT] with NAME one of " + ", ".join(_KNOWN)

    def claims(self, spec: str) -> bool:
        return spec.startswith(_PREFIX)

    def describe(self, spec: str) -> DataInfo:
        known = _KNOWN[parse(spec)[0]]
        return DataInfo(kind="torchvision", natural_size=(known.size, known.size), in_channels=known.channels, num_classes=known.classes)

    def rooted(self, spec: str) -> str:
        name, at, root = spec.partition("@")
        return f"{name}@{os.path.realpath(os.path.expanduser(root))}" if at else spec

    def read(self, spec: str, *, image_size: tuple[int, int], test: bool) -> Source:
        from nasvit.torchvision_ops import ensure

        ensure()
        from torchvision import datasets

        name, roots = parse(spec)
        known = _KNOWN[name]
        split = {"split": "test" if test else "train"} if known.splits else {"train": not test}
        reasons = []
        for root in roots:
            try:
                found = getattr(datasets, name)(str(root), download=False, **split)
            except (RuntimeError, OSError) as error:
                reasons.append(f"{root.absolute()}: {' '.join(str(error).split())}")
                continue
            names = tuple(getattr(found, "classes", None) or [str(i) for i in range(known.classes)])
            part = _arrays(found, where=f"{spec} in {root}", planar=known.splits)
            return Source(parts={"test" if test else "train": part}, class_names=names, flip=known.flip)
        raise DataError(f"{name} is not on disk; looked in {'; '.join(reasons)}. Accepted: torchvision:{name}@ROOT with the ROOT that "
                        f"torchvision.datasets.{name}(ROOT, download=True) has filled")


def _arrays(found: object, *, where: str, planar: bool) -> Labelled:
    images = np.asarray(getattr(found, "data"))  # noqa: B009 (torchvision types no common base with `data`)
    if planar:
        images = images.transpose(0, 2, 3, 1)  # SVHN and STL10 keep (N, C, H, W)
    labels = getattr(found, "targets", None)
    labels = getattr(found, "labels", None) if labels is None else labels
    return Labelled(images=check_images(images, where=where), labels=np.asarray(labels, dtype=np.int64))
