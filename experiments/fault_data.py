"""Broken data sets: what loading makes of each, in a process of its own with a look at time and memory.

    python experiments/fault_data.py
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nasvit.data import describe, load
from nasvit.errors import DataError

SECONDS, MEGABYTES = 60, 1000
"""More of either is a hang, or memory that a broken file may not take."""
KINDS: dict[str, Callable[[Path], Path]] = {}


def kind(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Register a broken data set by its function's name: it fills a folder and returns what `--data` would be given."""
    KINDS[make.__name__.replace("_", " ")] = make
    return make


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Coloured rectangles."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(0, 256, 3)))
    ImageDraw.Draw(image).rectangle([5, 5, 20, 20], fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image.convert(mode)


def sound(folder: Path, *, classes: int = 2, each: int = 8) -> Path:
    """A data set with nothing wrong."""
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            picture(100 * label + number).save(folder / f"class{label}" / f"{number}.jpg")
    return folder


def png(width: int, height: int, *, rows: int, extra: bytes = b"") -> bytes:
    """A PNG of grey zeros that claims its size and holds so many rows, however large: a few bytes for each megabyte."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 6, 0, 0, 0])
    packer, packed, row = zlib.compressobj(9), bytearray(), bytes(4 * width + 1)
    for _ in range(rows):
        packed += packer.compress(row)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", bytes(packed + packer.flush())) + chunk(b"IEND", b"")


@kind
def truncated_JPEG(folder: Path) -> Path:
    path = sound(folder) / "class0" / "3.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return folder


@kind
def decompression_bomb(folder: Path) -> Path:
    (sound(folder) / "class0" / "bomb.png").write_bytes(png(20_000, 20_000, rows=2_000))
    return folder


@kind
def bomb_just_under_the_limit(folder: Path) -> Path:
    (sound(folder) / "class0" / "bomb.png").write_bytes(png(9_400, 9_400, rows=9_400))
    return folder


@kind
def large_picture_of_sixteen_bits(folder: Path) -> Path:
    Image.new("I", (8_000, 8_000)).save(sound(folder) / "class0" / "large.tif")
    return folder


@kind
def header_that_claims_four_thousand_million_pixels(folder: Path) -> Path:
    (sound(folder) / "class1" / "bomb.png").write_bytes(png(65_535, 65_535, rows=1))
    return folder


@kind
def bomb_in_a_text_chunk(folder: Path) -> Path:
    packed = b"note\0\0" + zlib.compress(bytes(300_000_000), 9)
    text = len(packed).to_bytes(4, "big") + b"zTXt" + packed + zlib.crc32(b"zTXt" + packed).to_bytes(4, "big")
    (sound(folder) / "class1" / "text.png").write_bytes(png(32, 32, rows=32, extra=text))
    return folder


@kind
def empty_class(folder: Path) -> Path:
    (sound(folder) / "class2").mkdir()
    return folder


@kind
def one_class(folder: Path) -> Path:
    return sound(folder, classes=1)


@kind
def one_image_of_a_class(folder: Path) -> Path:
    (sound(folder) / "class2").mkdir()
    picture(7).save(folder / "class2" / "only.png")
    return folder


@kind
def mixed_modes(folder: Path) -> Path:
    sound(folder)
    for number, mode in enumerate(("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "LAB")):
        suffix = "tif" if mode in ("CMYK", "YCbCr", "LAB") else "png"
        image = picture(number, mode) if mode != "I;16" else Image.fromarray(np.full((32, 40), 40_000, dtype=np.uint16))
        image.save(folder / "class0" / f"{mode.replace(';', '')}.{suffix}")
    return folder


@kind
def floating_point_pixels(folder: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).random((32, 32)).astype(np.float32)).save(sound(folder) / "class0" / "float.tif")
    return folder


@kind
def text_and_empty_files_beside_the_images(folder: Path) -> Path:
    sound(folder)
    (folder / "class0" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(500))
    (folder / "class0" / "labels.csv").write_text("0.jpg,class9\n1.jpg,class8\n")
    (folder / "class1" / "empty.jpg").write_bytes(b"")
    return folder


@kind
def nothing_but_text(folder: Path) -> Path:
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(5):
            (folder / label / f"{number}.jpg").write_text("not an image")
    return folder


@kind
def unreadable_files(folder: Path) -> Path:
    """A link to nowhere, a pipe that nobody writes to, a device without an end, a folder called .jpg, a file without read permission."""
    place = sound(folder) / "class0"
    (place / "nowhere.jpg").symlink_to(folder / "absent.jpg")
    os.mkfifo(place / "pipe.jpg")
    (place / "endless.jpg").symlink_to("/dev/zero")
    (place / "folder.jpg").mkdir()
    (place / "1.jpg").chmod(0)
    return folder


@kind
def links_in_a_circle(folder: Path) -> Path:
    (sound(folder) / "class0" / "again").symlink_to(folder)
    (folder / "class2").symlink_to(folder / "class2")
    return folder


@kind
def a_program_for_another_interpreter(folder: Path) -> Path:
    """PostScript, which Pillow gives to Ghostscript where that is installed."""
    (sound(folder) / "class0" / "program.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n{ } loop\n%%EOF\n")
    return folder


@kind
def a_million_pixels_in_one_row(folder: Path) -> Path:
    Image.new("L", (60_000, 1)).save(sound(folder) / "class0" / "line.png")
    return folder


@kind
def classes_of_validation_that_training_lacks(folder: Path) -> Path:
    sound(folder / "train")
    sound(folder / "val", classes=3)
    return folder


@kind
def training_without_images(folder: Path) -> Path:
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (folder / part).mkdir(parents=True)
    return folder


def archive(path: Path, **arrays: object) -> Path:
    """An .npz with these arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


@kind
def labels_for_other_images(folder: Path) -> Path:
    return archive(folder / "d.npz", images=IMAGES, labels=np.arange(39) % 2)


@kind
def labels_out_of_their_names(folder: Path) -> Path:
    return archive(folder / "d.npz", images=IMAGES, labels=np.arange(40) % 5, class_names=np.array(["a", "b"]))


@kind
def labels_that_are_fractions(folder: Path) -> Path:
    return archive(folder / "d.npz", images=IMAGES, labels=np.linspace(0, 1, 40))


@kind
def images_as_fractions(folder: Path) -> Path:
    return archive(folder / "d.npz", images=IMAGES / 255, labels=np.arange(40) % 2)


@kind
def pickled_objects(folder: Path) -> Path:
    return archive(folder / "d.npz", images=np.array([IMAGES[0], IMAGES[1][:8]], dtype=object), labels=np.arange(2))


@kind
def archive_cut_short(folder: Path) -> Path:
    path = archive(folder / "d.npz", images=IMAGES, labels=np.arange(40) % 2)
    path.write_bytes(path.read_bytes()[:20_000])
    return path


@kind
def archive_with_a_flipped_byte(folder: Path) -> Path:
    path = archive(folder / "d.npz", images=IMAGES, labels=np.arange(40) % 2)
    data = bytearray(path.read_bytes())
    data[5_000] ^= 1
    path.write_bytes(data)
    return path


def _claims(path: Path, shape: tuple[int, ...], *, zeros: int) -> Path:
    """An archive whose images claim a shape and hold so many bytes of zeros, packed."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    labels = io.BytesIO()
    np.save(labels, np.arange(shape[0]) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("images.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(zeros // 1_000_000):
                member.write(bytes(1_000_000))
        file.writestr("labels.npy", labels.getvalue())
    return path


@kind
def archive_that_unpacks_to_twenty_gigabytes(folder: Path) -> Path:
    return _claims(folder / "d.npz", (1000, 2600, 2600, 3), zeros=2_000_000)


@kind
def archive_that_holds_less_than_it_claims(folder: Path) -> Path:
    return _claims(folder / "d.npz", (1000, 1500, 1500, 3), zeros=100_000_000)


@kind
def names_that_are_no_text(folder: Path) -> Path:
    sound(folder)
    (folder / "class\n<img src=x onerror=alert(1)>").mkdir()
    for number in range(4):
        picture(number).save(folder / "class\n<img src=x onerror=alert(1)>" / f"{number}\x1b[31m.png")
    os.rename(os.fsencode(folder / "class0" / "1.jpg"), os.fsencode(folder / "class0") + b"/\xff\xfe.jpg")
    return folder


def outcome(spec: str) -> tuple[str, str]:
    """(good or bad, what was said)."""
    try:
        describe(spec)
        data = load(spec, seed=0)
    except DataError as error:
        return "error", str(error)
    except Exception:
        return "TRACEBACK", traceback.format_exc(limit=-2)
    return ("skipped" if data.skipped else "used"), f"{len(data.train) + len(data.val)} images; {' '.join(data.notes)}"


@contextmanager
def _child(spec: str) -> Iterator[tuple[str, str, float, float]]:
    """(what came of it, what was said, seconds, MB) of loading in a forked process."""
    reading, writing = os.pipe()
    begun = time.monotonic()
    pid = os.fork()
    if not pid:
        signal.alarm(SECONDS)
        try:
            os.write(writing, json.dumps(outcome(spec)).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read()
    _, status, usage = os.wait4(pid, 0)
    what, text = json.loads(said) if said else ("ENDED", f"by signal {os.WTERMSIG(status)}")
    yield what, text, time.monotonic() - begun, usage.ru_maxrss / 1e3


def main() -> int:
    """Print a line for each kind; the number of those that went wrong."""
    wrong = 0
    np.seterr(all="ignore")
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{'kind':<55} {'what':<8} {'s':>5} {'MB':>5}  said (the process itself: {floor:.0f} MB)")
    for name, make in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            spec = str(make(Path(folder) / "data"))
            with _child(spec) as (what, text, seconds, megabytes):
                bad = what.isupper() or seconds > SECONDS or megabytes > MEGABYTES
                wrong += bad
                said = " ".join(ascii(text.replace(folder, "")).split())
                print(f"{name:<55} {what:<8} {seconds:5.1f} {megabytes:5.0f}  {'WRONG ' if bad else ''}{said if bad else said[:150]}")
    print(f"{'kinds':<55} {len(KINDS)}\n{'gone wrong':<55} {wrong}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
