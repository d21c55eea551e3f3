"""NumPy archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasvit import data
from nasvit.data import base
from nasvit.errors import DataError


def images(count: int = 20, *, channels: int = 3, side: int = 8) -> np.ndarray:
    """Image i is filled with the value i."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, channels)).copy()


def write(path: Path, **arrays: Any) -> str:
    arrays = {"images": images(), "labels": np.arange(20) % 2} | arrays
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


def members(part: data.Images) -> set[int]:
    return {int(v) for v in part.images[:, 0, 0, 0]}


def test_one_file_is_split_into_three_disjoint_stratified_parts_by_the_seed(tmp_path: Path) -> None:
    spec = write(tmp_path / "x.npz")
    first, again, other = (data.load(spec, seed=s) for s in (1, 1, 2))
    test = data.load_test(spec, seed=1)
    parts = [members(p) for p in (first.train, first.val, test)]
    assert [len(p) for p in parts] == [12, 4, 4] and len(set.union(*parts)) == 20
    for part in (first.train, first.val, test):
        assert int(part.labels.sum()) * 2 == len(part)
        assert all(int(v) % 2 == int(label) for v, label in zip(part.images[:, 0, 0, 0], part.labels, strict=True))
    assert members(again.val) == parts[1] != members(other.val)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_directory_is_loaded_with_its_test_file_destroyed(tmp_path: Path) -> None:
    write(tmp_path / "x_train.npz")
    (tmp_path / "x_test.npz").write_bytes(b"destroyed")
    loaded = data.load(str(tmp_path), seed=0)
    assert (len(loaded.train), len(loaded.val)) == (16, 4)
    assert data.describe(str(tmp_path)).num_classes == 2
    with pytest.raises(DataError, match=r"x_test\.npz"):
        data.load_test(str(tmp_path), seed=0)


def test_the_test_file_is_read_by_load_test_in_the_numbering_of_the_training_labels(tmp_path: Path) -> None:
    write(tmp_path / "x_train.npz", labels=np.where(np.arange(20) % 2, 7, 3))
    write(tmp_path / "x_test.npz", images=images(5), labels=np.full(5, 7))
    assert data.load_test(str(tmp_path), seed=0).labels.tolist() == [1] * 5


def test_a_validation_file_is_used_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "train.npz")
    write(tmp_path / "val.npz", images=images(6), labels=np.arange(6) % 2)
    loaded = data.load(str(tmp_path), seed=0)
    assert (len(loaded.train), members(loaded.val)) == (20, set(range(6)))


def test_gaps_in_the_labels_are_closed_and_noted(tmp_path: Path) -> None:
    spec = write(tmp_path / "x.npz", labels=np.where(np.arange(20) % 2, 9, 4), class_names=np.array([f"c{i}" for i in range(10)]))
    loaded = data.load(spec, seed=0)
    assert loaded.class_names == ("c4", "c9") and set(loaded.train.labels.tolist()) == {0, 1}
    assert any("renumbered" in note for note in loaded.notes)


def test_grey_images_need_no_channel_axis_and_are_not_mirrored(tmp_path: Path) -> None:
    loaded = data.load(write(tmp_path / "x.npz", images=images()[..., 0]), seed=0)
    assert loaded.in_channels == 1 and not loaded.flip


def test_arrays_are_resized_to_the_size_asked_for(tmp_path: Path) -> None:
    spec = write(tmp_path / "x.npz")
    assert data.load(spec, seed=0).image_size == (8, 8)
    loaded = data.load(spec, seed=0, image_size=(12, 10))
    assert loaded.image_size == (12, 10) and members(loaded.train) <= set(range(20))
    assert loaded.train.images.dtype == torch.uint8


@pytest.mark.parametrize(("change", "message"), [
    ({"images": images(0), "labels": np.zeros(0, int)}, "empty"),
    ({"labels": np.zeros(20, int)}, "one class only"),
    ({"labels": np.arange(19) % 2}, r"shape \(19,\) for 20 images"),
    ({"labels": (np.arange(20) % 2).astype(float)}, "accepted: integers"),
    ({"labels": np.arange(20) % 2 - 1}, "label -1 is out of range"),
    ({"labels": np.array([0] * 19 + [1])}, "class 1 has 1 image"),
    ({"class_names": np.array(["only"])}, "label 1 is out of range for 1 class_names"),
    ({"images": images().astype(np.float32) / 255}, "dtype float32; accepted: uint8"),
    ({"images": images().transpose(0, 3, 1, 2).repeat(4, axis=3)}, "transpose"),
    ({"images": np.zeros((20, 3, 16, 16), np.uint8)}, "transpose"),
    ({"images": images()[:, 0, :, 0]}, r"accepted: \(N, H, W\)"),
    ({"images": None, "pictures": images()}, "no array 'images' .*pictures"),
    ({"labels": None}, "no array 'labels'"),
    ({"labels": np.array(["a", "b"] * 10)}, "accepted: integers"),
])
def test_what_cannot_be_used_is_refused_with_what_is_accepted(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    spec = write(tmp_path / "x.npz", **change)
    with pytest.raises(DataError, match=message) as caught:
        data.load(spec, seed=0)
    assert "accepted" in str(caught.value)


class Trap:
    """Unpickling it would call `fail`."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("key", ["images", "labels", "class_names"])
def test_pickles_inside_an_archive_are_never_loaded(tmp_path: Path, key: str) -> None:
    trap = np.empty(20, dtype=object)
    trap[:] = [Trap() for _ in range(20)]
    spec = write(tmp_path / "x.npz", **{key: trap})
    with pytest.raises(DataError, match="pickled"):
        data.load(spec, seed=0)


@pytest.mark.parametrize("content", [b"", b"no archive", "torn"])
def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path, content: bytes | str) -> None:
    spec = write(tmp_path / "x.npz")
    whole = Path(spec).read_bytes()
    Path(spec).write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"x\.npz: cannot be read"):
        data.load(spec, seed=0)


def test_flipped_bytes_are_noticed(tmp_path: Path) -> None:
    spec = write(tmp_path / "x.npz")
    raw = bytearray(Path(spec).read_bytes())
    raw[1000:1010] = b"\xff" * 10
    Path(spec).write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read"):
        data.load(spec, seed=0)


def test_parts_of_different_channel_counts_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x_train.npz")
    write(tmp_path / "x_val.npz", images=images(channels=1))
    with pytest.raises(DataError, match="3 channels, validation images 1"):
        data.load(str(tmp_path), seed=0)


def test_two_training_files_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a_train.npz")
    write(tmp_path / "b_train.npz")
    with pytest.raises(DataError, match=r"a_train\.npz, b_train\.npz"):
        data.load(str(tmp_path), seed=0)


def test_too_much_for_memory_is_refused_from_the_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write(tmp_path / "x.npz")
    monkeypatch.setattr(base, "MEMORY_LIMIT_GB", 1e-6)
    monkeypatch.setattr(np, "load", lambda *a, **k: pytest.fail("the archive was read"))
    with pytest.raises(DataError, match="GiB"):
        data.describe(spec)


def test_validation_images_that_were_trained_on_and_classes_without_any_are_said(tmp_path: Path) -> None:
    names = np.array(["ant", "bee", "cat"])
    write(tmp_path / "x_train.npz", labels=np.arange(20) % 3, class_names=names)
    mixed = np.concatenate([images(3), 255 - images(4)])
    write(tmp_path / "x_val.npz", images=mixed, labels=np.array([0, 1, 0, 1, 0, 1, 0]), class_names=names)
    copies, absent = data.load(str(tmp_path), seed=1).notes
    assert copies.startswith("3 of the 7 validation images are also among the training images")
    assert absent == "the validation part has no image of cat: the accuracy says nothing of it"
    write(tmp_path / "x_val.npz", images=255 - images(6), labels=np.arange(6) % 3, class_names=names)
    assert data.load(str(tmp_path), seed=1).notes == ()
    write(tmp_path / "doubled.npz", images=np.concatenate([images(), images()]), labels=np.arange(40) % 20 % 2)
    assert "validation images are also among" in data.load(str(tmp_path / "doubled.npz"), seed=1).notes[0]
