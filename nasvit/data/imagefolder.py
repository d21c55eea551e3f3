"""Image files in one folder per class, directly or under train/, val/ and test/. A file that cannot be used is skipped and counted."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from nasvit.data.base import KINDS, DataInfo, DataKind, Labelled, Source, check_memory
from nasvit.errors import DataError, first_of

_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Names of the folders of each part, whatever their case."""
_NAMED = 5  # so many skipped files are named in the notes
_LOOKED_AT = 64  # so many headers decide the natural size
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What is decoded. Pillow knows more, and hands some of it to other programs, as PostScript to Ghostscript."""
_MAX_PIXELS = 1 << 26  # of a decoded image, 8192 x 8192: about 0.7 GB while it is converted
_BAND = 256  # rows of a 16-bit image at a time
_DARKEST = 4096  # of 65536: below it a 16-bit image is black in 8 bits
BROKEN = (  # what Pillow's decoders raise for damaged files
    OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, ZeroDivisionError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)


@KINDS.register("imagefolder")
class ImageFolder(DataKind):
    """A directory with one folder of image files per class, or with train/ and optionally val/ and test/ holding such folders."""

    accepts = "a directory CLASS/*.jpg or {train,val,test}/CLASS/*.jpg"

    def claims(self, spec: str) -> bool:
        root = Path(spec)
        arrays = any(p.stem == "train" or p.stem.endswith("_train") for p in root.glob("*.npz"))  # pictures beside them are not the data
        return root.is_dir() and not arrays and bool(_folders(root))

    def describe(self, spec: str) -> DataInfo:
        """The natural size is a square of the median short side of the first images, from their headers."""
        root = part_root(Path(spec), "train") or Path(spec)
        if root == Path(spec):
            _check_parts(root)
        files = [files for _, files in class_files(root)]
        shorts = []
        per_class = max(1, _LOOKED_AT // len(files))
        for path in (path for one in files for path in one[:per_class]):
            try:
                with _opened(path) as image:
                    shorts.append(min(image.size))
            except BROKEN:
                continue  # counted when the images are read
        if not shorts:
            raise DataError(f"{root}: none of the first files is an image; accepted: {self.accepts}, in formats that Pillow reads")
        side = int(np.median(shorts))
        return DataInfo(kind="imagefolder", natural_size=(side, side), in_channels=3, num_classes=len(files))

    def read(self, spec: str, *, image_size: tuple[int, int], test: bool) -> Source:
        root = Path(spec)
        train = part_root(root, "train")
        if train is None:
            _check_parts(root)
        names = [name for name, _ in class_files(train or root)]
        wanted: dict[str, Path | None]
        if train is None:
            wanted = {"all": root}
        elif test:
            wanted = {"test": part_root(root, "test")}
            if wanted["test"] is None:
                raise DataError(f"{root} has no test split; accepted: a folder test/ beside {train.name}/ with the same classes")
        else:
            wanted = {"train": train, "val": part_root(root, "val")}
        parts: dict[str, Labelled] = {}
        skipped: list[str] = []
        for part, folder in wanted.items():
            if folder is not None:
                parts[part], bad = _read_part(folder, names, image_size)
                skipped += [f"{path.relative_to(root)} ({why})" for path, why in bad]
        return Source(parts=parts, class_names=tuple(names), flip=True, skipped=len(skipped), notes=_notes(skipped))


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not _hidden(p.name))


def _hidden(name: str) -> bool:
    """Of a file or folder that nobody put there: thumbnails of file managers and network drives, checkpoints of notebooks."""
    return name.startswith((".", "__", "@eaDir"))


def part_root(root: Path, part: str) -> Path | None:
    """The folder of a part, or None; a folder `train` that holds no class folders is a class of that name."""
    there = {folder.name.lower(): folder for folder in _folders(root)} if root.is_dir() else {}
    return next((there[name] for name in _PARTS[part] if name in there and _folders(there[name])), None)


def _check_parts(root: Path) -> None:
    """Raises DataError for folders that look like parts, none of them to train on: their names would become the classes."""
    names = [folder.name for folder in _folders(root)]
    parts = {name for known in _PARTS.values() for name in known}
    if names and all(name.lower() in parts for name in names) and any(_folders(root / name) for name in names):
        raise DataError(f"{root} has {', '.join(names)} and nothing to train on; accepted: {ImageFolder.accepts}")
    among = next((name for name in names if name.lower() in parts and _folders(root / name)), None)
    if among is not None:
        raise DataError(f"{root}: the folder {among} holds folders of classes as a part does, and stands among classes; accepted: "
                        f"{ImageFolder.accepts}; put what is to be trained on into train/, or {among} elsewhere")


def class_files(root: Path) -> list[tuple[str, list[Path]]]:
    """(class name, its files), both sorted; what is hidden, or lies in a hidden folder, does not count. Pipes, devices, broken links
    and links to folders, which are not followed, are among them: they are skipped by name when the images are read."""
    classes = [
        (folder.name, sorted(p for p in folder.rglob("*")
                             if (p.is_symlink() or not p.is_dir()) and not any(map(_hidden, p.relative_to(folder).parts))))
        for folder in _folders(root)
    ]
    if len(classes) < 2:
        found = ", ".join(name for name, _ in classes) or "none"
        raise DataError(f"{root}: class folders found: {found}; accepted: at least two, each holding the images of one class")
    return classes


def _notes(skipped: list[str]) -> tuple[str, ...]:
    if not skipped:
        return ()
    return (f"skipped {len(skipped)} unusable files: {first_of(skipped, most=_NAMED)}",)


def _read_part(root: Path, names: list[str], image_size: tuple[int, int]) -> tuple[Labelled, list[tuple[Path, str]]]:
    classes = class_files(root)
    strange = [name for name, _ in classes if name not in names]
    if strange:
        raise DataError(f"{root}: class {strange[0]!r} has no training images; accepted: {', '.join(names)}")
    todo = [(path, names.index(name)) for name, files in classes for path in files]
    if not todo:
        raise DataError(f"{root}: no files in its class folders; accepted: images in formats that Pillow reads")
    check_memory(len(todo), 3, image_size, where=str(root))
    images = np.empty((len(todo), *image_size, 3), dtype=np.uint8)
    labels: list[int] = []
    bad: list[tuple[Path, str]] = []
    for path, label in todo:
        try:
            images[len(labels)] = decode(path, image_size)
        except BROKEN as error:
            bad.append((path, "empty file" if path.is_file() and path.stat().st_size == 0 else _why(error)))
            continue
        labels.append(label)
    if 2 * len(bad) > len(todo):
        first = "; ".join(f"{path.relative_to(root)}: {why}" for path, why in bad[:3])
        raise DataError(f"{root}: {len(bad)} of {len(todo)} files are no usable images ({first}); accepted: at least half of them; "
                        "mend or remove the files")
    return Labelled(images=images[: len(labels)], labels=np.asarray(labels, dtype=np.int64)), bad


def decode(path: Path, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image file -> uint8 (H, W, 3): EXIF orientation applied, RGB, resized to cover (bicubic), centre crop."""
    height, width = image_size
    with _opened(path) as image:
        side = 2 * max(height, width)
        image.draft("RGB", (side, side))  # a large JPEG is decoded at a fraction of its size; no effect elsewhere
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {_MAX_PIXELS}")
        ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image would be one too many
        return np.asarray(ImageOps.fit(_rgb(image), (width, height), method=Image.Resampling.BICUBIC))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, not decoded yet. Raises one of `BROKEN` for what is no file, no image, or too large."""
    if not path.is_file():
        # opening a pipe would wait for ever
        raise OSError("a link to a folder, which is not followed" if path.is_dir() else "no regular file")
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow's size limit becomes a skip
        with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            yield image


def _why(error: Exception) -> str:
    """Why a file is skipped, without its path."""
    said = "" if isinstance(error, UnidentifiedImageError) else f": {' '.join(str(error).split())[:80]}"
    return f"{type(error).__name__}{said}"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would clip it to white
        pixels, largest = np.empty((image.height, image.width), dtype=np.uint8), 0
        for top in range(0, image.height, _BAND):
            band = np.asarray(image.crop((0, top, image.width, min(top + _BAND, image.height)))).clip(0, 65535)
            pixels[top : top + _BAND], largest = band >> 8, max(largest, int(band.max()))
        if 0 < largest < _DARKEST:  # 8 or 12 bits in a file of 16: they would all be black
            raise ValueError(f"16-bit pixels, none over {largest} of 65535; save them in 8 bits")
        return Image.fromarray(pixels).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point pixels")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
