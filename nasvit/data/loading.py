"""From a specification to tensors: find the kind, read, check, split, resize, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nasvit.data.base import KINDS, DataInfo, DataSet, Images, Labelled, Source, check_memory
from nasvit.data.split import resize, stratified_split
from nasvit.errors import DataError, first_of

_NAMED = 5  # so many classes are named in a remark


def load(spec: str, *, seed: int, image_size: tuple[int, int] | None = None) -> DataSet:
    """The training and validation part of `digits`, a path, or `torchvision:NAME[@ROOT]`; the test part is not touched.

    A missing validation part is split off by `seed`, stratified. `image_size` is (H, W), by default the natural one.
    Raises DataError, telling what is accepted.
    """
    kind = _kind_of(spec)
    size = image_size or KINDS[kind]().describe(spec).natural_size
    _check_size(size)
    source = KINDS[kind]().read(spec, image_size=size, test=False)
    train, val = _training_parts(source, seed=seed, where=spec)
    _check_classes(train, source.class_names, where=spec)
    if train.images.shape[-1] != val.images.shape[-1]:
        raise DataError(f"{spec}: training images have {train.images.shape[-1]} channels, validation images {val.images.shape[-1]}; "
                        "accepted: the same number in both")
    tensors = _tensors(train, size, where=spec), _tensors(val, size, where=spec)
    mean, std = channel_statistics(tensors[0].images)
    return DataSet(
        name=_name(kind, spec), train=tensors[0], val=tensors[1], class_names=source.class_names, mean=mean, std=std,
        fingerprint=fingerprint(*tensors, class_names=source.class_names), skipped=source.skipped,
        notes=(*source.notes, *_remarks(*tensors, class_names=source.class_names)), flip=source.flip, kind=kind,
    )


def load_test(spec: str, *, seed: int, image_size: tuple[int, int] | None = None) -> Images:
    """The test part, for one final evaluation; with the `seed` of `load` it shares no image with what `load` gave.

    Raises DataError where there is none.
    """
    kind = _kind_of(spec)
    size = image_size or KINDS[kind]().describe(spec).natural_size
    _check_size(size)
    source = KINDS[kind]().read(spec, image_size=size, test=True)
    if "all" in source.parts:
        pool = source.parts["all"]
        part = _take(pool, _three_ways(pool, source, seed=seed, where=spec)[2])
    else:
        part = source.parts["test"]
    if not len(part.labels):
        raise DataError(f"{spec}: too few images for a test part; accepted: at least 3 in each class, or a test part of its own")
    return _tensors(part, size, where=spec)


def describe(spec: str) -> DataInfo:
    """Kind, natural size, channels and classes, without reading the images; raises DataError for what is no data set."""
    return KINDS[_kind_of(spec)]().describe(spec)


def rooted(spec: str) -> str:
    """The same data in words that hold in any folder: paths from the root. What no kind reads stays as it is."""
    claiming = [name for name in KINDS if KINDS[name]().claims(spec)] if spec.strip() else []
    kind = "digits" if "digits" in claiming else next(iter(claiming), None)
    return spec if kind is None else KINDS[kind]().rooted(spec)


def _kind_of(spec: str) -> str:
    # an empty path would mean the working directory
    claiming = [name for name in KINDS if KINDS[name]().claims(spec)] if spec.strip() else []
    if len(claiming) > 1:
        raise DataError(f"data {spec!r} is claimed by several kinds ({', '.join(f'{name} of {KINDS.origin(name)}' for name in claiming)}); "
                        "accepted: one; uninstall a package or name the data otherwise")
    if claiming:
        return claiming[0]
    accepted = "; ".join(KINDS[name].accepts for name in KINDS)
    raise DataError(f"data {spec!r}: {_problem(spec)}; accepted: {accepted}")


def _problem(spec: str) -> str:
    path = Path(spec)
    if not spec.strip() or not path.exists():
        return "no such file or directory"
    if not path.is_dir():
        return "not a .npz file"
    return "no class folders and no *_train.npz in it" if any(path.iterdir()) else "an empty directory"


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise DataError(f"image size {size!r}; accepted: two whole numbers (H, W) above 0")


def _name(kind: str, spec: str) -> str:
    return Path(spec).resolve().stem if kind in ("npz", "imagefolder") else spec.split("@")[0].removeprefix("torchvision:")


def _take(part: Labelled, index: np.ndarray) -> Labelled:
    return Labelled(images=part.images[index], labels=part.labels[index])


def _three_ways(pool: Labelled, source: Source, *, seed: int, where: str) -> list[np.ndarray]:
    _check_classes(pool, source.class_names, where=where)
    return stratified_split(pool.labels, shares=(source.share, source.share), seed=seed)


def _training_parts(source: Source, *, seed: int, where: str) -> tuple[Labelled, Labelled]:
    if "all" in source.parts:
        pool = source.parts["all"]
        train, val, _ = _three_ways(pool, source, seed=seed, where=where)
        return _take(pool, train), _take(pool, val)
    train_part = source.parts["train"]
    if "val" in source.parts:
        return train_part, source.parts["val"]
    _check_classes(train_part, source.class_names, where=where)
    train, val = stratified_split(train_part.labels, shares=(source.share,), seed=seed)
    return _take(train_part, train), _take(train_part, val)


def _check_classes(part: Labelled, class_names: tuple[str, ...], *, where: str) -> None:
    """At least two classes, and at least one image of each (a split asks for two)."""
    if len(class_names) < 2:
        raise DataError(f"{where}: one class only ({', '.join(class_names) or 'none'}); accepted: at least two classes")
    if len(part.labels) and part.labels.max() >= len(class_names):
        raise DataError(f"{where}: label {part.labels.max()} is out of range; accepted: 0..{len(class_names) - 1}")
    empty = np.flatnonzero(np.bincount(part.labels, minlength=len(class_names)) == 0)
    if len(empty):
        raise DataError(f"{where}: class {class_names[empty[0]]!r} has no usable training image; accepted: at least 2 in each class; "
                        "add images or remove the class")


def _tensors(part: Labelled, size: tuple[int, int], *, where: str) -> Images:
    check_memory(len(part.labels), part.images.shape[-1], size, where=where)
    images = resize(torch.from_numpy(np.ascontiguousarray(part.images)).permute(0, 3, 1, 2), size)  # (N, H, W, C) -> (N, C, h, w)
    return Images(images=images.contiguous(memory_format=torch.channels_last), labels=torch.from_numpy(part.labels.astype(np.int64)))


def _remarks(train: Images, val: Images, *, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """What makes the validation part a worse judge than it looks: images that were trained on, classes that it does not have."""
    count = len(val.labels)
    seen = set(_digests(train))
    known = sum(digest in seen for digest in _digests(val))
    remarks = [] if not known else [
        f"{known} of the {count} validation images are also among the training images, pixel for pixel: the accuracy counts what was "
        "learned by heart; remove the copies, or bring a validation part without them"]
    absent = [class_names[label] for label in np.flatnonzero(np.bincount(val.labels.numpy(), minlength=len(class_names)) == 0)]
    if count and absent:
        remarks.append(f"the validation part has no image of {first_of(absent, most=_NAMED)}: the accuracy says nothing of "
                       f"{'it' if len(absent) == 1 else 'them'}")
    return tuple(remarks)


def _digests(part: Images) -> Iterator[bytes]:
    """Of each image's pixels."""
    for image in part.images.permute(0, 2, 3, 1).contiguous().numpy():
        yield hashlib.blake2b(image.data, digest_size=16).digest()


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the 0..1 scale, from exact counts of the 256 values."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1).int(), minlength=256).double()
        share = counts / counts.sum()
        mean = float((share * levels).sum())
        means.append(mean)
        stds.append(max(float((share * (levels - mean) ** 2).sum()) ** 0.5, 1 / 255))  # a constant channel divides by one level
    return tuple(means), tuple(stds)


def fingerprint(*parts: Images, class_names: tuple[str, ...]) -> str:
    """12 hex over shapes, pixels, labels and class names."""
    digest = hashlib.sha256(repr(class_names).encode())
    for part in parts:
        digest.update(repr(tuple(part.images.shape)).encode())
        digest.update(part.images.permute(0, 2, 3, 1).contiguous().numpy().data)
        digest.update(part.labels.contiguous().numpy().data)
    return digest.hexdigest()[:12]
