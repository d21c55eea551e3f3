"""Image files in class folders."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nasvit import data
from nasvit.data import base, imagefolder
from nasvit.data.imagefolder import decode
from nasvit.errors import DataError


def save(path: Path, colour: tuple[int, ...] | int, *, size: tuple[int, int] = (24, 20), mode: str = "RGB", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def make(root: Path, classes: tuple[str, ...] = ("blue", "red"), count: int = 5) -> Path:
    for c, name in enumerate(classes):
        for i in range(count):
            save(root / name / f"{i}.png", (200 * c, 10 * i, 255 - 200 * c))
    return root


def test_a_flat_folder_is_split_into_disjoint_training_validation_and_test_parts(tmp_path: Path) -> None:
    make(tmp_path)
    loaded = data.load(str(tmp_path), seed=1, image_size=(8, 8))
    test = data.load_test(str(tmp_path), seed=1, image_size=(8, 8))
    assert loaded.class_names == ("blue", "red") and loaded.flip and loaded.kind == "imagefolder"
    parts = (loaded.train, loaded.val, test)
    greens = [[int(v) for v in part.images[part.labels == 0, 1, 0, 0]] for part in parts]
    assert sorted(v for part in greens for v in part) == [0, 10, 20, 30, 40]
    assert [len(g) for g in greens] == [3, 1, 1]


def test_given_validation_images_are_used_and_training_images_all_kept(tmp_path: Path) -> None:
    make(tmp_path / "train")
    make(tmp_path / "val", count=2)
    loaded = data.load(str(tmp_path), seed=1, image_size=(8, 8))
    assert (len(loaded.train), len(loaded.val)) == (10, 4)
    with pytest.raises(DataError, match="no test split"):
        data.load_test(str(tmp_path), seed=1, image_size=(8, 8))


def test_a_folder_without_validation_gets_a_split_and_its_test_folder_stays_unread(tmp_path: Path) -> None:
    make(tmp_path / "train")
    (tmp_path / "test" / "red").mkdir(parents=True)
    (tmp_path / "test" / "red" / "0.png").write_bytes(b"not an image")
    loaded = data.load(str(tmp_path), seed=1, image_size=(8, 8))
    assert (len(loaded.train), len(loaded.val), loaded.skipped) == (8, 2, 0)


@pytest.mark.parametrize(("mode", "colour"), [("L", 255), ("RGBA", (255, 255, 255, 255)), ("P", 255), ("1", 1), ("LA", (255, 255)),
                                              ("I;16", 65535), ("CMYK", (0, 0, 0, 0))])
def test_every_pixel_format_becomes_rgb(tmp_path: Path, mode: str, colour: int | tuple[int, ...]) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode == "P":
        Image.new("RGB", (24, 20), (255, 255, 255)).convert("P").save(path)
    else:
        save(path, colour, mode=mode)
    pixels = decode(path, (8, 8))
    assert pixels.shape == (8, 8, 3) and pixels.min() > 250


def test_grey_of_sixteen_bits_keeps_its_scale(tmp_path: Path) -> None:
    save(tmp_path / "x.png", 32768, mode="I;16")
    assert abs(int(decode(tmp_path / "x.png", (4, 4)).mean()) - 128) <= 1


@pytest.mark.parametrize("value", [200, 4000])
def test_eight_or_twelve_bits_in_a_file_of_sixteen_are_refused_rather_than_black(tmp_path: Path, value: int) -> None:
    save(tmp_path / "x.png", value, mode="I;16")
    with pytest.raises(ValueError, match=f"16-bit pixels, none over {value} of 65535; save them in 8 bits"):
        decode(tmp_path / "x.png", (4, 4))
    save(tmp_path / "black.png", 0, mode="I;16")
    assert not decode(tmp_path / "black.png", (4, 4)).any()


def test_an_odd_sized_image_is_cropped_at_its_centre_not_squeezed(tmp_path: Path) -> None:
    pixels = np.zeros((31, 93, 3), dtype=np.uint8)
    pixels[:, 31:62] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    out = decode(tmp_path / "x.png", (16, 16))
    assert out[:, 2:-2].min() > 240


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=exif, quality=95)
    out = decode(tmp_path / "x.jpg", (8, 8))
    assert out[:2].max() < 40 and out[-2:].min() > 215


def test_unusable_files_are_counted_and_named_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, count=8)
    (tmp_path / "red" / "zero.jpg").touch()
    (tmp_path / "red" / "notes.txt").write_text("not an image")
    whole = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    (tmp_path / "blue" / "torn.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    save(tmp_path / "blue" / "huge.png", (1, 2, 3), size=(80, 80))
    save(tmp_path / "blue" / "bomb.png", (1, 2, 3), size=(300, 300))
    loaded = data.load(str(tmp_path), seed=0, image_size=(8, 8))
    assert loaded.skipped == 5
    note = " ".join(loaded.notes)
    for name in ("zero.jpg (empty file)", "notes.txt", "torn.jpg", "huge.png (DecompressionBombW", "bomb.png (DecompressionBombE"):
        assert name in note
    assert len(loaded.train) + len(loaded.val) + len(data.load_test(str(tmp_path), seed=0, image_size=(8, 8))) == 16


def test_mostly_broken_files_are_an_error_that_names_some(tmp_path: Path) -> None:
    make(tmp_path, count=2)
    for i in range(5):
        (tmp_path / "red" / f"broken{i}.jpg").write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"5 of 9 files .*broken0.jpg"):
        data.load(str(tmp_path), seed=0, image_size=(8, 8))


def test_one_class_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, classes=("red",))
    with pytest.raises(DataError, match="at least two"):
        data.load(str(tmp_path), seed=0, image_size=(8, 8))


def test_a_class_without_usable_images_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "yellow").mkdir()
    with pytest.raises(DataError, match="'yellow'"):
        data.load(str(tmp_path), seed=0, image_size=(8, 8))


def test_a_validation_class_without_training_images_is_named(tmp_path: Path) -> None:
    make(tmp_path / "train")
    make(tmp_path / "val", classes=("red", "violet"))
    with pytest.raises(DataError, match="'violet'"):
        data.load(str(tmp_path), seed=0, image_size=(8, 8))


def test_images_that_do_not_fit_into_memory_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(base, "MEMORY_LIMIT_GB", 1e-6)
    with pytest.raises(DataError, match="GiB in memory"):
        data.load(str(tmp_path), seed=0, image_size=(64, 64))


def test_the_natural_size_is_the_median_short_side(tmp_path: Path) -> None:
    for i, size in enumerate([(30, 50), (40, 90), (100, 60)]):
        save(tmp_path / "a" / f"{i}.png", (0, 0, 0), size=size)
        save(tmp_path / "b" / f"{i}.png", (9, 9, 9), size=size)
    (tmp_path / "b" / "3.png").touch()
    info = data.describe(str(tmp_path))
    assert (info.natural_size, info.in_channels, info.num_classes) == ((40, 40), 3, 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_devices_and_broken_links_are_skipped_by_name_and_nobody_waits_for_them(tmp_path: Path) -> None:
    make(tmp_path)
    os.mkfifo(tmp_path / "blue" / "pipe.png")
    (tmp_path / "blue" / "nowhere.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "red" / "endless.png").symlink_to("/dev/zero")
    loaded = data.load(str(tmp_path), seed=1, image_size=(8, 8))
    assert loaded.skipped == 3 and all(name in loaded.notes[0] for name in ("pipe.png", "nowhere.png", "endless.png", "no regular file"))


def test_a_link_to_a_folder_within_a_class_is_not_followed_and_named(tmp_path: Path) -> None:
    make(tmp_path / "here")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here" / "blue" / "more").symlink_to(tmp_path / "elsewhere")
    loaded = data.load(str(tmp_path / "here"), seed=1, image_size=(8, 8))
    assert loaded.skipped == 1 and "more (OSError: a link to a folder, which is not followed)" in loaded.notes[0]


def test_a_program_in_postscript_is_no_image(tmp_path: Path) -> None:
    """Pillow would give it to Ghostscript."""
    make(tmp_path)
    (tmp_path / "blue" / "program.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n")
    loaded = data.load(str(tmp_path), seed=1, image_size=(8, 8))
    assert loaded.skipped == 1 and "program.eps (UnidentifiedImageError)" in loaded.notes[0]


def test_a_picture_of_too_many_pixels_is_skipped_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefolder, "_MAX_PIXELS", 1000)
    make(tmp_path)
    save(tmp_path / "red" / "large.png", (1, 2, 3), size=(50, 50))
    loaded = data.load(str(tmp_path), seed=1, image_size=(8, 8))
    assert loaded.skipped == 1 and "large.png (ValueError: 50 x 50 pixels, more than 1000)" in loaded.notes[0]


def test_parts_are_known_whatever_their_case_and_never_become_classes(tmp_path: Path) -> None:
    make(tmp_path / "a" / "Training")
    make(tmp_path / "a" / "Testing")
    assert data.load(str(tmp_path / "a"), seed=0, image_size=(8, 8)).class_names == ("blue", "red")
    assert len(data.load_test(str(tmp_path / "a"), seed=0, image_size=(8, 8))) == 10
    make(tmp_path / "b" / "Test")
    make(tmp_path / "b" / "val")
    for ask in (lambda: data.describe(str(tmp_path / "b")), lambda: data.load(str(tmp_path / "b"), seed=0, image_size=(8, 8))):
        with pytest.raises(DataError, match="has Test, val and nothing to train on"):
            ask()


def test_a_part_that_stands_among_classes_is_refused_and_never_a_class(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path / "test")
    for ask in (lambda: data.describe(str(tmp_path)), lambda: data.load(str(tmp_path), seed=0, image_size=(8, 8))):
        with pytest.raises(DataError, match="the folder test holds folders of classes as a part does"):
            ask()


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", ".@__thumb", "@eaDir", "__MACOSX"])
def test_copies_that_programs_leave_in_hidden_folders_are_no_images(tmp_path: Path, folder: str) -> None:
    make(tmp_path)
    save(tmp_path / "red" / folder / "0.png", (1, 2, 3))
    make(tmp_path / folder)
    loaded, test = data.load(str(tmp_path), seed=1, image_size=(8, 8)), data.load_test(str(tmp_path), seed=1, image_size=(8, 8))
    assert loaded.class_names == ("blue", "red") and len(loaded.train) + len(loaded.val) + len(test) == 10
