"""Slide-PVT and Slide-PVTv2: sizes, timm's PVTv2 as the machinery's reference and as a start, timm's interface, and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nasvit.zoo
from nasvit.arch import Arch
from nasvit.errors import ArchError, CheckpointError, ConfigError
from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

TINY = {"embed_dims": (8, 12, 16, 24), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "mlp_ratios": (2, 2, 2, 2)}
PARAMS = {"slide_pvt_tiny": 12.2, "slide_pvt_small": 22.7, "slide_pvtv2_b1": 13.0, "slide_pvtv2_b2": 23.6}
both = pytest.mark.parametrize("name", ["slide_pvt_tiny", "slide_pvtv2_b1"])


def tiny(name: str, img_size: Any = 64, **kwargs: Any) -> Any:
    return timm.create_model(name, **{**TINY, "num_classes": 5, "drop_path_rate": 0.0, "img_size": img_size, **kwargs}).eval()


def timm_pvt(**kwargs: Any) -> Any:
    """timm's PVTv2 with weights that matter everywhere: none 0, no norm the identity."""
    model = timm.create_model("pvt_v2_b1", num_classes=5, **kwargs).eval()
    for parameter in model.parameters():
        with torch.no_grad():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", PARAMS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == PARAMS[name]


def test_slide_attention_replaces_the_reducing_one_in_two_stages() -> None:
    with torch.device("meta"):
        models = [timm.create_model(name) for name in ("slide_pvt_tiny", "slide_pvt_medium", "slide_pvtv2_b2")]
    for model in models:
        kinds = [{m.name for block in stage.blocks for m in block.mixers} for stage in model.arch.stages]
        assert kinds == [{"slide"}, {"slide"}, {"sra"}, {"global"}]
    assert [len(stage.blocks) for stage in models[1].arch.stages] == [3, 4, 18, 3]


# ---- timm's PVTv2 ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [(64, 64), (64, 96), (80, 72)])
def test_without_slide_stages_it_is_timms_pvtv2(size: tuple[int, int]) -> None:
    relative, x = timm_pvt(**{**TINY, "sr_ratios": (8, 4, 2, 1)}), torch.randn(2, 3, *size)
    model = tiny("slide_pvtv2_b1", size, slide_stages=0)
    report = nasvit.zoo.load_relative(model, relative)
    assert not report.initial and not report.unused
    assert (model(x) - relative(x)).abs().max() <= 1e-5 * relative(x).abs().max()


def test_feature_maps_are_timms() -> None:
    relative, x = timm_pvt(**{**TINY, "sr_ratios": (8, 4, 2, 1)}), torch.randn(1, 3, 64, 96)
    model = tiny("slide_pvtv2_b1", (64, 96), slide_stages=0)
    nasvit.zoo.load_relative(model, relative)
    ours = model.forward_intermediates(x, norm=True, intermediates_only=True)
    for a, b in zip(ours, relative.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_whole_b1_is_timms() -> None:
    relative, x = timm_pvt(), torch.randn(1, 3, 64, 64)
    model = timm.create_model("slide_pvtv2_b1", num_classes=5, img_size=64, slide_stages=0, reductions=(8, 4, 2, 1)).eval()
    nasvit.zoo.load_relative(model, relative)
    assert (model(x) - relative(x)).abs().max() <= 1e-5 * relative(x).abs().max()


def test_timms_pvtv2_gives_all_but_kernels_and_positions() -> None:
    relative, model = timm_pvt(**{**TINY, "sr_ratios": (8, 4, 2, 1)}), tiny("slide_pvtv2_b1")
    report = nasvit.zoo.load_relative(model, relative)
    assert set(report.initial) == {f"stages.{s}.blocks.{b}.mixers.0.{part}" for s, b in ((0, 0), (1, 0), (1, 1)) for part in
                                   ("kernel", "kernel_bias", "fixed_bias", "relative_position_bias_table")}
    assert set(report.loaded) | set(report.initial) == set(model.state_dict())
    assert {name.split(".", 4)[4] for name in report.unused} == {"attn.sr.weight", "attn.sr.bias", "attn.norm.weight", "attn.norm.bias"}
    qkv = model.state_dict()["stages.1.blocks.0.mixers.0.qkv.weight"]
    theirs = relative.state_dict()
    assert torch.equal(qkv, torch.cat([theirs[f"stages.1.blocks.0.attn.{part}.weight"] for part in ("q", "kv")]))


@pytest.mark.parametrize(("classes", "theirs"), [(3, 5), (0, 5), (5, 0)])
def test_a_classifier_of_other_classes_keeps_its_initial_values(classes: int, theirs: int) -> None:
    model, relative = tiny("slide_pvtv2_b1", num_classes=classes), timm_pvt(**TINY)
    relative.reset_classifier(theirs)
    report = nasvit.zoo.load_relative(model, relative)
    assert {name for name in report.initial if name.startswith("head.")} == ({"head.weight", "head.bias"} if classes else set())
    assert not [name for name in report.loaded if name.startswith("head.")]


@pytest.mark.parametrize(("name", "kind"), [("slide_pvt_tiny", "pyramidvisiontransformerv2"), ("slide_pvtv2_b1", "resnet")])
def test_another_relative_is_refused(name: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=kind):
        nasvit.zoo.load_relative(tiny(name), {"x": torch.zeros(1)}, kind=kind)


@both
def test_official_weights_do_not_exist_and_our_own_names_load(name: str) -> None:
    source, target, x = tiny(name), tiny(name), torch.randn(1, 3, 64, 64)
    with pytest.raises(CheckpointError, match="released no weights"):
        nasvit.zoo.load_official(target, {"x": torch.zeros(1)})
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(source(x), target(x))


# ---- sizes and timm's interface -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "size"), [("slide_pvt_tiny", 64), ("slide_pvt_tiny", (64, 96)), ("slide_pvt_tiny", 96),
                                            ("slide_pvtv2_b1", (64, 96)), ("slide_pvtv2_b1", (72, 40)), ("slide_pvtv2_b1", 75)])
def test_other_resolutions_work(name: str, size: Any) -> None:
    model = tiny(name, size)
    out = model(torch.randn(2, 3, *model.arch.image_size))
    assert out.shape == (2, 5) and out.isfinite().all()
    assert Arch.from_json(model.arch.to_json()) == model.arch


@pytest.mark.parametrize(("name", "kwargs", "message"), [("slide_pvt_tiny", {"img_size": (64, 62)}, "divisible by it"),
                                                         ("slide_pvt_tiny", {"img_size": 80}, "even map"),
                                                         ("slide_pvtv2_b1", {"reductions": (8, 4, 5, 1)}, "reduction 5.*2 to 4"),
                                                         ("slide_pvtv2_b1", {"kernel_size": 4}, "kernel_size 4")])
def test_what_cannot_be_built_is_refused_by_name(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        tiny(name, **kwargs)


@both
def test_timm_interface(name: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    features = tiny(name, features_only=True)(x)
    assert [tuple(f.shape[1:]) for f in features] == [(dim, 16 >> s, 16 >> s) for s, dim in enumerate(TINY["embed_dims"])]
    model = tiny(name, num_classes=0)
    assert model(x).shape == (1, model.num_features) == (1, 24)
    model.reset_classifier(7)
    assert model(x).shape == (1, 7)
    with pytest.raises(ConfigError, match=r"no_such.*reductions"):
        tiny(name, no_such=1)


def test_the_class_token_of_pvt_lives_in_the_last_stage_alone() -> None:
    model, x = tiny("slide_pvt_tiny"), torch.randn(1, 3, 64, 64)
    before, maps = model(x), model.forward_intermediates(x, intermediates_only=True)
    with torch.no_grad():
        model.class_token += torch.randn_like(model.class_token)
    after = model.forward_intermediates(x, intermediates_only=True)
    assert not torch.allclose(model(x), before)
    assert all(torch.equal(a, b) for a, b in zip(maps[:3], after[:3], strict=True))
    assert [stage.pos_embed is not None for stage in model.stages] == [False, True, True, True] and model.pos_embed is not None
