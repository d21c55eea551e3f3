"""BOAT on Swin and CSWin: clusters at any size, official checkpoints, timm's Swin as a start, and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nasvit.zoo
from nasvit.arch import Arch
from nasvit.errors import ArchError, CheckpointError, ConfigError
from nasvit.torchvision_ops import ensure
from nasvit.zoo.boat import clusters

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

SWIN = {"embed_dim": 12, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 3, 4), "window_size": 4, "cluster_size": 16, "overlap": 6}
CSWIN = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 4), "split_sizes": (1, 2, 4, 4), "cluster_size": 16, "overlap": 6}
FAMILIES = {"boat_swin_tiny": SWIN, "boat_cswin_tiny": CSWIN}
both = pytest.mark.parametrize("name", FAMILIES)


def tiny(name: str, img_size: Any = 64, **kwargs: Any) -> Any:
    arguments = {**FAMILIES[name], "num_classes": 5, "drop_path_rate": 0.0, "img_size": img_size, **kwargs}
    return timm.create_model(name, **arguments).eval()


def official_names(model: Any) -> dict[str, Tensor]:
    """The released names of a tiny model, written out the other way round than the conversion has them."""
    swin = model.family == "boat_swin"
    content, norm = ("attnC", "norm4") if swin else ("content_attn", "norm3")
    table = [("mixers.1.lepe", f"{content}.get_v"), ("mixers.1", content), ("norms.1", norm), ("norms.0", "norm1"), ("mlp_norm", "norm2")]
    table += [("mixers.0", "attn"), ("stem", "patch_embed")] if swin else [
        ("mixers.0.branches.0.lepe", "attns.0.get_v"), ("mixers.0.branches.1.lepe", "attns.1.get_v"), ("mixers.0.", ""),
        ("stem.proj", "stage1_conv_embed.0"), ("stem.norm", "stage1_conv_embed.2")]
    theirs = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "stages" and swin:
            merging = parts[2] == "downsample"
            name = ".".join(["layers", str(int(parts[1]) - merging), *parts[2:]])
        elif parts[0] == "stages":
            name = ".".join(parts[2:]).replace("blocks.", f"stage{int(parts[1]) + 1}.", 1)
            name = name.replace("downsample.proj", f"merge{parts[1]}.conv").replace("downsample.norm", f"merge{parts[1]}.norm")
        for ours, official in table:
            name = name.replace(ours, official)
        theirs[name] = value
    return theirs


PARAMS = {"boat_swin_tiny": 30_265_186, "boat_swin_small": 55_158_898, "boat_swin_base": 97_612_960,
          "boat_cswin_tiny": 26_390_952, "boat_cswin_small": 40_112_488, "boat_cswin_base": 89_628_712}
FSLA = {"boat_swin_tiny": 5, "boat_swin_small": 11, "boat_swin_base": 11, "boat_cswin_tiny": 14, "boat_cswin_small": 20,
        "boat_cswin_base": 20}


@pytest.mark.parametrize("name", PARAMS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMS[name]
    contents = [mixer.kwargs for stage in model.arch.stages for block in stage.blocks for mixer in block.mixers if mixer.name == "fsla"]
    assert len(contents) == FSLA[name]
    assert {(c["cluster_depth"], c["overlap"]) for c in contents} == {(6, 20), (4, 20), (2, 20)} | ({(0, 0)} if "cswin" in name else set())


# ---- clusters -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("grid", "size", "depth", "overlap"), [
    ((56, 56), 49, 6, 20), ((14, 14), 49, 2, 20), ((7, 7), 49, 0, 0), ((48, 48), 49, 6, 20), ((12, 12), 49, 2, 20), ((5, 9), 16, 0, 0),
    ((8, 12), 24, 2, 20), ((8, 8), 49, 0, 0), ((16, 16), 45, 3, 20), ((16, 16), 46, 2, 20), ((8, 4), 1000, 0, 0)])
def test_the_nearest_possible_clusters_are_taken(grid: tuple[int, int], size: int, depth: int, overlap: int) -> None:
    made = clusters(grid, num_heads=2, cluster_size=size, overlap=20).kwargs
    assert (made["cluster_depth"], made["overlap"]) == (depth, overlap)


@pytest.mark.parametrize(("size", "overlap", "message"), [(0, 4, "cluster_size"), (49, -1, "overlap"), (16.0, 4, "cluster_size"),
                                                          (True, 4, "cluster_size"), (8, 9, "overlap of 9 tokens.*cluster_size 8.*0 to 8")])
def test_impossible_clusters_are_refused_by_name(size: Any, overlap: Any, message: str) -> None:
    with pytest.raises(ArchError, match=message):
        clusters((8, 8), num_heads=2, cluster_size=size, overlap=overlap)


@both
def test_an_overlap_above_the_cluster_size_is_refused(name: str) -> None:
    with pytest.raises(ArchError, match="overlap of 20 tokens"):
        tiny(name, overlap=20)


# ---- sizes and timm's interface -------------------------------------------------------------------------------------

@both
@pytest.mark.parametrize("size", [64, 96, 80, (64, 96), (72, 40)])
def test_any_resolution_divisible_by_four_works(name: str, size: Any) -> None:
    model = tiny(name, size)
    out = model(torch.randn(2, 3, *model.arch.image_size))
    assert out.shape == (2, 5) and out.isfinite().all()
    assert Arch.from_json(model.arch.to_json()) == model.arch


@both
def test_other_resolutions_are_refused_by_name(name: str) -> None:
    with pytest.raises(ArchError, match="divisible by it"):
        tiny(name, (62, 64))


@both
def test_timm_interface(name: str) -> None:
    features = tiny(name, features_only=True)(torch.randn(1, 3, 64, 64))
    first = FAMILIES[name]["embed_dim"]
    assert [tuple(f.shape[1:]) for f in features] == [(first * 2**s, 16 >> s, 16 >> s) for s in range(4)]
    model = tiny(name, num_classes=0)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, model.num_features) == (1, first * 8)
    model.reset_classifier(7)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ConfigError, match=r"no_such.*cluster_size"):
        tiny(name, no_such=1)


def test_fsla_stands_behind_shifted_windows_of_the_chosen_stages() -> None:
    def contents(**kwargs: Any) -> list[list[bool]]:
        model = tiny("boat_swin_tiny", 64, depths=(2, 2, 3, 2), **kwargs)
        return [[len(block.mixers) == 2 for block in stage.blocks] for stage in model.arch.stages]

    assert contents() == [[False, True], [False, True], [False] * 3, [False] * 2]  # stage 2 is one window of 4x4: not shifted
    assert contents(window_size=2)[2:] == [[False, True, False], [False] * 2]
    assert contents(fsla_stages=1)[:2] == [[False, True], [False] * 2]


def test_fsla_scale_is_in_the_arch_only_where_it_is_not_the_default() -> None:
    def scales(value: float | str) -> set[Any]:
        arch = tiny("boat_cswin_tiny", fsla_scale=value).arch
        return {m.kwargs.get("qk_scale") for stage in arch.stages for block in stage.blocks for m in block.mixers if m.name == "fsla"}

    assert scales(1.0) == {1.0}
    assert scales("head_dim") == {None}
    assert scales(4**-0.5) == {4**-0.5, None}  # stage 0 has heads of 4 channels
    with pytest.raises(ArchError, match="qk_scale"):
        tiny("boat_cswin_tiny", fsla_scale=-1.0)


# ---- checkpoints ----------------------------------------------------------------------------------------------------

@both
def test_official_checkpoint_round_trips(name: str) -> None:
    source, target, x = tiny(name), tiny(name), torch.randn(1, 3, 64, 64)
    assert not torch.equal(source(x), target(x))
    nasvit.zoo.load_official(target, official_names(source))
    assert torch.equal(source(x), target(x))


@both
def test_an_official_checkpoint_that_does_not_fit_is_refused_by_name_and_changes_nothing(name: str) -> None:
    model = tiny(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = official_names(tiny(name))
    lepe = next(key for key in state if key.endswith(("attnC.get_v.weight", "content_attn.get_v.weight")))
    for wrong in ({k: v for k, v in state.items() if k != lepe}, {**state, lepe: state[lepe][1:]}):
        with pytest.raises(CheckpointError, match=r"mixers\.1\.lepe\.weight"):
            nasvit.zoo.load_official(model, wrong)
    with pytest.raises(CheckpointError, match="left_over"):
        nasvit.zoo.load_official(model, {**state, "left_over": torch.zeros(1)})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_timms_swin_gives_all_but_the_fsla_branches() -> None:
    relative = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=12, depths=(2, 2, 2, 1), num_heads=(1, 2, 3, 4), window_size=4,
                                 img_size=64, num_classes=5, drop_path_rate=0.0).eval()
    for table in (p for n, p in relative.named_parameters() if n.endswith(("table", "bias"))):
        torch.nn.init.normal_(table, std=0.3)
    model = tiny("boat_swin_tiny")
    report = nasvit.zoo.load_relative(model, relative)
    assert not report.unused
    assert set(report.initial) == {name for name in model.state_dict() if "mixers.1." in name or "norms.1." in name}
    assert set(report.loaded) == set(model.state_dict()) - set(report.initial)
    silent = [p for name, p in model.named_parameters() if "mixers.1.proj" in name]
    for parameter in silent:  # without the content branch it is Swin
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), relative(x), rtol=1e-4, atol=1e-5)


def test_an_unknown_relative_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="swintransformer"):
        nasvit.zoo.load_relative(tiny("boat_swin_tiny"), {"x": torch.zeros(1)}, kind="resnet")
