"""Whose mean and std a model's images are normalised by, and how large they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nasvit.data import DataSet, load
from nasvit.errors import CheckpointError, ConfigError
from nasvit.named import make_named
from nasvit.pruning import UnsupportedModelError
from nasvit.pruning.opening import as_trained, full_name, image_size_of, open_model
from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (it needs torchvision importable first)

GREY = load("digits", seed=0, image_size=(8, 8))
COLOUR = replace(GREY, train=replace(GREY.train, images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), mean=(0.3,) * 3, std=(0.2,) * 3)


def given(data: DataSet, **where: str | None) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    found, words = as_trained(data, **{"checkpoint": None, **where})  # type: ignore[arg-type]
    assert found.train is data.train and found.fingerprint == data.fingerprint
    return found.mean, found.std, words


def test_published_weights_see_the_images_of_their_own_training() -> None:
    assert given(COLOUR, name="timm:vit_tiny_patch16_224")[:2] == ((0.5,) * 3, (0.5,) * 3)
    mean, std, words = given(COLOUR, name="timm:deit_tiny_patch16_224")
    assert mean == (0.485, 0.456, 0.406) and std == (0.229, 0.224, 0.225) and "published" in words


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", None])
def test_own_weights_take_what_nasvit_train_wrote_beside_them(name: str | None, tmp_path: Path) -> None:
    weights = str(tmp_path / "model.safetensors")
    where = {"name": weights} if name is None else {"name": name, "checkpoint": weights}
    (tmp_path / "metrics.json").write_text(json.dumps({"data": {"mean": [0.1], "std": [0.7]}}))
    mean, std, words = given(GREY, **where)
    assert (mean, std) == ((0.1,), (0.7,)) and str(tmp_path / "metrics.json") in words
    (tmp_path / "metrics.json").write_text(json.dumps({"loss": 0.3}))  # of another program
    assert given(GREY, **where)[:2] == (GREY.mean, GREY.std) and "mean and std of these data" in given(GREY, **where)[2]


def test_a_dense_or_pruned_network_of_a_run_takes_what_the_run_recorded(tmp_path: Path) -> None:
    (tmp_path / "prune.json").write_text(json.dumps({"mean": [0.1], "std": [0.7]}))
    for folder, mean in (("dense", (0.1,)), ("pruned", (0.1,)), ("other", GREY.mean)):
        assert given(GREY, name=str(tmp_path / folder / "model.safetensors"))[0] == mean


@pytest.mark.parametrize("text", ["{", '{"data": {"mean": [0.1, 0.2], "std": [0.1, 0.1]}}', '{"data": {"mean": [0.1], "std": [0]}}',
                                  '{"data": {"mean": ["0.1"], "std": [0.5]}}', '{"data": {"mean": [], "std": []}}'])
def test_a_record_that_no_image_can_be_normalised_by_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ConfigError, match=r"normalised"):
        as_trained(GREY, name=str(tmp_path / "model.safetensors"), checkpoint=None)


def test_what_could_not_be_pruned_is_refused_before_its_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: object) -> object:
        assert not pretrained, "fetched"
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    asked = {"arch": None, "checkpoint": None, "in_channels": 3, "image_size": None}
    with pytest.raises(UnsupportedModelError, match="is of no family"):
        open_model("timm:vit_relpos_small_patch16_224", num_classes=1000, **asked)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1000 classes apart and the data have 10"):
        open_model("timm:deit_tiny_patch16_224", num_classes=10, **asked)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="fetched"):
        open_model("timm:deit_tiny_patch16_224", num_classes=1000, **asked)  # type: ignore[arg-type]


def test_a_bare_name_is_timms_or_the_zoos_and_what_is_a_file_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("deit_small_patch16_224", "deit_small_patch16_224.fb_in1k", "evo_levit_128s"):
        assert full_name(name, arch=None) == full_name(f"timm:{name}", arch=None) == f"timm:{name}"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_text("")
    for file in ("weights", "absent.safetensors", "runs/absent"):
        assert full_name(file, arch=None) == file
    assert full_name("absent", arch="arch.json") == "absent"


def test_a_name_that_nothing_has_is_answered_with_near_ones_and_with_what_a_file_needs() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'deit_small_patch16_224'.*\.safetensors file, with --arch"):
        full_name("deit_smal_patch16_224", arch=None)


def test_the_image_size_is_that_of_the_training_beside_the_checkpoint_else_the_names(tmp_path: Path) -> None:
    weights, name = str(tmp_path / "model.safetensors"), "timm:vit_tiny_patch16_224"
    assert image_size_of(name, arch=None, checkpoint=None) == image_size_of(name, arch=None, checkpoint=weights) == (224, 224)
    (tmp_path / "metrics.json").write_text(json.dumps({"data": {"image_size": [48, 32]}}))
    assert image_size_of(name, arch=None, checkpoint=weights) == (48, 32)
    model = make_named("vit_tiny_patch16_224", image_size=(48, 32), in_channels=1, num_classes=10, seed=0)
    save_file(model.state_dict(), weights)
    opened = open_model(name, arch=None, checkpoint=weights, num_classes=10, in_channels=1, image_size=None)
    assert opened.pos_embed.shape == (1, 7, 192)  # type: ignore[union-attr]
    for other in ('{"data": {"image_size": "48x32"}}', '{"data": [1]}', '{"image_size": [0, 32]}'):  # of another program
        (tmp_path / "metrics.json").write_text(other)
        with pytest.raises(CheckpointError, match=r"does not fit vit_tiny_patch16_224 with 10 classes at 224x224 px.*--image-size"):
            open_model(name, arch=None, checkpoint=weights, num_classes=10, in_channels=1, image_size=None)


@pytest.mark.parametrize(("name", "classes", "size", "said"), [
    ("deit_tiny_patch16_224", 10, (32, 32), "weights of another model"),
    ("vit_tiny_patch16_224", 7, (32, 32), "trained for other classes"),
    ("vit_tiny_patch16_224", 10, (48, 48), "by --image-size")])
def test_weights_that_do_not_fit_are_told_with_what_is_likely_wrong(
        name: str, classes: int, size: tuple[int, int], said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = make_named(name, image_size=size, in_channels=1, num_classes=classes, seed=0)
    narrow = "another model" in said
    save_file({key: value[..., ::2].contiguous() if narrow else value for key, value in model.state_dict().items()}, path)
    with pytest.raises(CheckpointError, match=said):
        open_model("timm:vit_tiny_patch16_224", arch=None, checkpoint=str(path), num_classes=10, in_channels=1, image_size=(32, 32))


def test_an_empty_file_of_weights_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "best.pth").touch()
    with pytest.raises(CheckpointError, match="it is empty"):
        open_model("timm:vit_tiny_patch16_224", arch=None, checkpoint=str(tmp_path / "best.pth"), num_classes=10, in_channels=1,
                   image_size=(32, 32))
