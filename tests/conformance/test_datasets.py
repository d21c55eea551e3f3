"""What every data set kind keeps, on an example of each. A new kind needs one entry in EXAMPLES."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nasvit import data
from nasvit.data import KINDS
from nasvit.errors import DataError


def _digits(root: Path) -> str:
    return "digits"


def _npz(root: Path) -> str:
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 12)):
        np.savez(root / f"some_{part}.npz", images=rng.integers(0, 256, (count, 12, 10, 3), dtype=np.uint8), labels=np.arange(count) % 4)
    return str(root)


def _imagefolder(root: Path) -> str:
    rng = np.random.default_rng(0)
    for name in "abc":
        (root / name).mkdir()
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (14 + i, 18, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return str(root)


def _torchvision(root: Path) -> str:
    """MNIST's own file format, with few images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = (0x803).to_bytes(4) + b"".join(side.to_bytes(4) for side in images.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes((0x801).to_bytes(4) + count.to_bytes(4) + labels.tobytes())
    return f"torchvision:MNIST@{root}"


EXAMPLES: dict[str, Callable[[Path], str]] = {"digits": _digits, "npz": _npz, "imagefolder": _imagefolder, "torchvision": _torchvision}


@pytest.fixture(params=KINDS.names())
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param not in EXAMPLES:
        pytest.fail(f"add an example of the data set kind {request.param!r} to EXAMPLES")
    return EXAMPLES[request.param](tmp_path)


def _images(*parts: data.Images) -> list[bytes]:
    return [image.contiguous().numpy().tobytes() for part in parts for image in part.images]


def test_description_and_data_agree(spec: str) -> None:
    info, loaded = data.describe(spec), data.load(spec, seed=0)
    assert (info.kind, info.natural_size, info.in_channels, info.num_classes) == (
        loaded.kind, loaded.image_size, loaded.in_channels, loaded.num_classes)


def test_tensors_have_the_promised_types_and_labels_their_range(spec: str) -> None:
    loaded = data.load(spec, seed=0)
    for part in (loaded.train, loaded.val, data.load_test(spec, seed=0)):
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.images.shape == (len(part), loaded.in_channels, *loaded.image_size)
        assert set(part.labels.tolist()) <= set(range(loaded.num_classes))
    assert len(loaded.mean) == len(loaded.std) == loaded.in_channels
    pixels = loaded.train.images.double() / 255
    assert loaded.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist()) and loaded.std == pytest.approx(
        pixels.std(dim=(0, 2, 3), correction=0).tolist())


def test_training_validation_and_test_share_no_image(spec: str) -> None:
    loaded, test = data.load(spec, seed=3), data.load_test(spec, seed=3)
    everything = _images(loaded.train, loaded.val, test)
    assert len(set(everything)) == len(everything)


def test_every_class_is_in_training_and_validation_in_equal_shares(spec: str) -> None:
    loaded = data.load(spec, seed=0)
    counts = [torch.bincount(part.labels, minlength=loaded.num_classes).double() for part in (loaded.train, loaded.val)]
    assert all(count.min() >= 1 for count in counts)
    shares = [count / count.sum() for count in counts]
    assert (shares[0] - shares[1]).abs().max() < 0.02


def test_the_seed_decides_the_split_and_the_fingerprint_tells(spec: str) -> None:
    first, again, other = (data.load(spec, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.val.images, again.val.images) and first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint and len(first.fingerprint) == 12


def test_any_image_size_can_be_asked_for(spec: str) -> None:
    loaded = data.load(spec, seed=0, image_size=(20, 9))
    assert loaded.image_size == (20, 9)
    assert data.load_test(spec, seed=0, image_size=(20, 9)).images.shape[2:] == (20, 9)


def test_loading_needs_no_pickle(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("a pickle was loaded"))
    data.load(spec, seed=0)


def test_exactly_one_kind_claims_a_specification(spec: str) -> None:
    assert sum(KINDS[name]().claims(spec) for name in KINDS) == 1


@pytest.mark.parametrize("given", ["nowhere", "", "digit", "torchvision:CIFAR11", "torchvision:CIFAR10@nowhere"])
def test_what_is_no_data_set_is_refused_with_what_is_accepted(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"(?i)accepted"):
        data.load(given, seed=0)


def test_an_absent_torchvision_set_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        data.load(f"torchvision:CIFAR10@{tmp_path}", seed=0)


@pytest.mark.parametrize("size", [(0, 8), (8,), (8.0, 8)])
def test_an_image_size_that_is_none_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="image size"):
        data.load("digits", seed=0, image_size=size)


def test_an_empty_specification_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _imagefolder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert data.describe(".").kind == "imagefolder"
    with pytest.raises(DataError, match="no such file"):
        data.describe("")
