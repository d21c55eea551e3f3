"""CSWin: published sizes, any resolution, and official checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nasvit.zoo
from nasvit.errors import ArchError, CheckpointError
from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

TINY = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 4), "num_classes": 5, "drop_path_rate": 0.0}


def tiny(img_size: Any = 64, **kwargs: Any) -> Any:
    return timm.create_model("cswin_tiny", **{**TINY, "img_size": img_size, **kwargs}).eval()


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released names of a tiny model, written out the other way round than the conversion has them."""
    table = (("stem.proj.", "stage1_conv_embed.0."), ("stem.norm.", "stage1_conv_embed.2."), ("mixers.0.branches.0.lepe", "attns.0.get_v"),
             ("mixers.0.branches.1.lepe", "attns.1.get_v"), ("mixers.0.", ""), ("norms.0", "norm1"), ("mlp_norm", "norm2"))
    theirs = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "stages":
            stage, rest = int(parts[1]), ".".join(parts[2:])
            name = rest.replace("downsample.proj", f"merge{stage}.conv").replace("downsample.norm", f"merge{stage}.norm")
            name = name.replace("blocks.", f"stage{stage + 1}.", 1)
        for ours, official in table:
            name = name.replace(ours, official)
        theirs[name] = value
    return theirs


@pytest.mark.parametrize(("name", "millions"), [("cswin_tiny", 23), ("cswin_small", 35), ("cswin_base", 78)])
def test_published_sizes_are_reached_rounding_up(name: str, millions: int) -> None:
    with torch.device("meta"):
        params = sum(p.numel() for p in timm.create_model(name).parameters())
    assert -(-params // 10**6) == millions


@pytest.mark.parametrize("size", [32, 64, 72, 80, (48, 96), (64, 36)])
def test_any_resolution_divisible_by_four_works(size: Any) -> None:
    model = tiny(size)
    height, width = model.arch.image_size
    assert model(torch.randn(2, 3, height, width)).shape == (2, 5)


def test_other_resolutions_are_refused_by_name() -> None:
    with pytest.raises(ArchError, match="divisible by it, not \\(66, 64\\)"):
        tiny((66, 64))


def test_last_stage_attends_to_its_whole_map_at_every_size() -> None:
    assert [len(tiny(size).stages[-1].blocks[0].mixers[0].branches) for size in (64, 256, (64, 320))] == [1, 1, 1]


def test_official_checkpoint_round_trips() -> None:
    source, target, x = tiny(), tiny(), torch.randn(1, 3, 64, 64)
    assert not torch.equal(source(x), target(x))
    nasvit.zoo.load_official(target, official_names(source.state_dict()))
    assert torch.equal(source(x), target(x))


def test_a_missing_official_tensor_is_named_and_the_model_stays() -> None:
    model = tiny()
    state = official_names(tiny().state_dict())
    del state["stage2.0.attns.1.get_v.weight"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"branches\.1\.lepe\.weight is missing"):
        nasvit.zoo.load_official(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_larger_size_takes_the_same_weights() -> None:
    small, large = tiny(128), tiny((160, 192))
    nasvit.zoo.load_official(large, official_names(small.state_dict()))
    assert all(torch.equal(value, large.state_dict()[name]) for name, value in small.state_dict().items())


def test_features_have_the_widths_and_strides_of_the_stages() -> None:
    model = timm.create_model("cswin_tiny", **{**TINY, "img_size": (64, 96)}, features_only=True)
    assert [tuple(f.shape) for f in model(torch.randn(1, 3, 64, 96))] == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 32, 4, 6), (1, 64, 2, 3)]
