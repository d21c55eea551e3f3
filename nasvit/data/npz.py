"""NumPy archives: `images` uint8 (N, H, W) or (N, H, W, C), `labels` (N,) integers, optionally `class_names`. Never a pickle.

One file is one pool; a directory holds `*_train.npz`, optionally `*_val.npz`, and `*_test.npz`, which a search never opens.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasvit.data.base import KINDS, DataInfo, DataKind, Labelled, Source, check_image_header, check_images
from nasvit.errors import DataError

_LAYOUT = "keys 'images' (uint8, N x H x W or N x H x W x C) and 'labels' (N integers)"
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError)  # RuntimeError: encrypted


@KINDS.register("npz")
class Npz(DataKind):
    """A `.npz` file, or a directory with `*_train.npz`."""

    accepts = "FILE.npz, or a directory with *_train.npz and *_test.npz"

    def claims(self, spec: str) -> bool:
        path = Path(spec)
        return (path.is_file() and path.suffix == ".npz") or (path.is_dir() and bool(_matching(path, "train")))

    def describe(self, spec: str) -> DataInfo:
        path = part_path(Path(spec), "train")
        assert path is not None
        shape, dtype = read_header(path, "images")
        _, height, width, channels = check_image_header(shape, dtype, where=str(path))
        labels = _labels(path)
        return DataInfo(kind="npz", natural_size=(height, width), in_channels=channels, num_classes=len(np.unique(labels)))

    def read(self, spec: str, *, image_size: tuple[int, int], test: bool) -> Source:
        root = Path(spec)
        main = part_path(root, "train")
        assert main is not None
        raw = _labels(main)
        classes = np.unique(raw)
        names, notes = _class_names(main, classes)
        if test and root.is_dir():
            path = part_path(root, "test")
            if path is None:
                raise DataError(f"{root} has no test split; accepted: one file *_test.npz beside {main.name}")
            paths = {"test": path}
        elif root.is_dir():
            val = part_path(root, "val")
            paths = {"train": main} if val is None else {"train": main, "val": val}
        else:
            paths = {"all": main}
        parts = {name: _part(path, classes, labels=raw if path == main else _labels(path)) for name, path in paths.items()}
        first = next(iter(parts.values()))
        return Source(parts=parts, class_names=names, flip=first.images.shape[-1] > 1, notes=notes)


def _matching(root: Path, part: str) -> list[Path]:
    return sorted(p for p in root.glob("*.npz") if p.stem == part or p.stem.endswith(f"_{part}"))


def part_path(root: Path, part: str) -> Path | None:
    """The file of a part; `root` itself where it is one file. Raises DataError where two files claim the part."""
    if root.is_file():
        return root
    found = _matching(root, part)
    if len(found) > 1:
        raise DataError(f"{root} has {len(found)} files for {part}: {', '.join(p.name for p in found)}; accepted: one *_{part}.npz; "
                        "move each data set into a directory of its own")
    return found[0] if found else None


def read_header(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one array of an archive, without reading the array."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            version = np.lib.format.read_magic(member)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(member)
    except KeyError:
        raise DataError(f"{path}: no array {key!r} (it has: {', '.join(_keys(path)) or 'none'}); accepted: {_LAYOUT}") from None
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if dtype.hasobject:
        raise DataError(f"{path}: {key!r} holds pickled Python objects, which are never loaded; accepted: {_LAYOUT}; "
                        "save a plain array (images of one size, labels as integers)")
    return shape, dtype


def _keys(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as a NumPy archive ({type(error).__name__}: {error}); accepted: a file written by "
                     f"numpy.savez with {_LAYOUT}; write it again")


def _read(path: Path, key: str) -> Any:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[key]
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _labels(path: Path) -> NDArray[np.int64]:
    count = check_image_header(*read_header(path, "images"), where=str(path))[:1]
    shape, dtype = read_header(path, "labels")
    if shape == (*count, 1):
        shape = count  # a column vector, as some archives keep it
    if shape != count:
        raise DataError(f"{path}: 'labels' has shape {shape} for {count[0]} images; accepted: one label for each image, "
                        "shape (N,)")
    if dtype.kind not in "iu":
        raise DataError(f"{path}: 'labels' has dtype {dtype}; accepted: integers (save labels.astype('int64'))")
    labels = _read(path, "labels").reshape(-1)
    if dtype.kind == "u" and len(labels) and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{path}: label {labels.max()} is out of range; accepted: integers that fit into int64")
    labels = labels.astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise DataError(f"{path}: label {labels.min()} is out of range; accepted: integers from 0; remove unlabelled images")
    return labels


def _class_names(path: Path, classes: NDArray[np.int64]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the classes that occur, and notes about gaps in the labels."""
    notes: list[str] = []
    last = len(classes) - 1
    if not np.array_equal(classes, np.arange(len(classes))):
        notes.append(f"labels are not 0..{last}: renumbered in order, {classes[0]} to {classes[-1]} became 0 to {last}")
    names = tuple(str(c) for c in classes)
    if "class_names" in _keys(path):
        shape, dtype = read_header(path, "class_names")
        if len(shape) != 1 or dtype.kind not in "US":
            raise DataError(f"{path}: 'class_names' has dtype {dtype} and shape {shape}; accepted: a list of strings, index = label")
        if len(classes) and classes[-1] >= shape[0]:
            raise DataError(f"{path}: label {classes[-1]} is out of range for {shape[0]} class_names; accepted: 0..{shape[0] - 1}")
        given = _read(path, "class_names").astype(str)
        names = tuple(str(given[c]) for c in classes)
        if len(names) < shape[0]:
            notes.append(f"{shape[0] - len(names)} of {shape[0]} class_names have no image")
    return names, tuple(notes)


def _part(path: Path, classes: NDArray[np.int64], *, labels: NDArray[np.int64]) -> Labelled:
    strange = np.setdiff1d(labels, classes)
    if len(strange):
        raise DataError(f"{path}: label {strange[0]} does not occur in the training images; accepted: {classes.tolist()}")
    return Labelled(images=check_images(_read(path, "images"), where=str(path)), labels=np.searchsorted(classes, labels))
