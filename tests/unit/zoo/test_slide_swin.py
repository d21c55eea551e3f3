"""Slide-Swin: sizes, official checkpoints, timm's Swin as a start, timm's interface, the inference form, and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nasvit.zoo
from nasvit.arch import Arch
from nasvit.errors import ArchError, CheckpointError, ConfigError
from nasvit.models.deploy import deploy
from nasvit.models.mixers.slide import SlideMixer, displacement
from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

TINY = {"embed_dim": 12, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 3, 4)}
PARAMS = {"slide_swin_tiny": 28_348_834, "slide_swin_small": 49_747_378, "slide_swin_base": 87_948_704}


def tiny(img_size: Any = 64, name: str = "slide_swin_tiny", **kwargs: Any) -> Any:
    return timm.create_model(name, **{**TINY, "num_classes": 5, "drop_path_rate": 0.0, "img_size": img_size, **kwargs}).eval()


def official_names(model: Any) -> dict[str, Tensor]:
    """The released names and layouts of a tiny model, written out the other way round than the conversion has them."""
    theirs = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "stages":
            name = ".".join(["layers", str(int(parts[1]) - (parts[2] == "downsample")), *parts[2:]])
        for ours, released in (("mixers.0", "attn"), ("norms.0", "norm1"), ("mlp_norm", "norm2"), ("stem", "patch_embed")):
            name = name.replace(ours, released)
        theirs[name] = value
    for path, mixer in model.named_modules():
        if not isinstance(mixer, SlideMixer):
            continue
        _, s, _, b, *_ = path.split(".")
        to, heads, dim, k = f"layers.{s}.blocks.{b}.attn", mixer.num_heads, mixer.dim, mixer.kernel_size
        d = dim // heads
        order = [j * dim + i * d + c for i in range(heads) for j in range(3) for c in range(d)]  # row of ours for each of theirs
        for part in ("weight", "bias"):
            theirs[f"{to}.qkv.{part}"] = theirs[f"{to}.qkv.{part}"][order]
        theirs[f"{to}.dep_conv1.weight"] = theirs.pop(f"{to}.kernel").reshape(d * k * k, 1, k, k)
        theirs[f"{to}.dep_conv1.bias"] = theirs.pop(f"{to}.kernel_bias").flatten()
        theirs[f"{to}.dep_conv.bias"] = theirs.pop(f"{to}.fixed_bias").flatten()
        theirs[f"{to}.dep_conv.weight"] = displacement(k).repeat(d, 1, 1).unsqueeze(1)
        theirs[f"{to}.relative_position_bias_table"] = theirs[f"{to}.relative_position_bias_table"].view(1, heads, 1, k * k, 1, 1)
    return theirs


@pytest.mark.parametrize("name", PARAMS)
def test_published_sizes(name: str) -> None:
    """The released code counts the fixed kernels (d * k**4 for each slide block) as parameters, though they are not trained."""
    with torch.device("meta"):
        model = timm.create_model(name)
    fixed = sum(mixer.dim // mixer.num_heads * mixer.kernel_size**4 for mixer in model.modules() if isinstance(mixer, SlideMixer))
    assert sum(p.numel() for p in model.parameters()) + fixed == PARAMS[name]


def test_the_two_forms_differ_in_their_windows_alone() -> None:
    def windows(name: str) -> list[tuple[int, bool]]:
        with torch.device("meta"):
            arch = timm.create_model(name).arch
        blocks = [b.mixers[0].kwargs for stage in arch.stages[2:] for b in stage.blocks]
        return sorted({(w["window_size"], w["shift"]) for w in blocks})

    assert windows("slide_swin_tiny") == [(7, False), (14, False)]  # maps of 14x14 and 7x7, each one window
    assert windows("slide_swin_tiny_w7") == [(7, False), (7, True)]


# ---- sizes and timm's interface -------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [64, 96, (64, 96), (72, 40), 36])
@pytest.mark.parametrize("name", ["slide_swin_tiny", "slide_swin_tiny_w7"])
def test_any_resolution_divisible_by_four_works(name: str, size: Any) -> None:
    model = tiny(size, name)
    out = model(torch.randn(2, 3, *model.arch.image_size))
    assert out.shape == (2, 5) and out.isfinite().all()
    assert Arch.from_json(model.arch.to_json()) == model.arch


@pytest.mark.parametrize(("kwargs", "message"), [({"img_size": (62, 64)}, "divisible by it"), ({"kernel_size": 4}, "kernel_size 4"),
                                                 ({"num_heads": (5, 2, 3, 4)}, "num_heads 5")])
def test_what_cannot_be_built_is_refused_by_name(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        tiny(**kwargs)


def test_timm_interface() -> None:
    x = torch.randn(1, 3, 64, 64)
    assert [tuple(f.shape[1:]) for f in tiny(features_only=True)(x)] == [(12 * 2**s, 16 >> s, 16 >> s) for s in range(4)]
    model = tiny(num_classes=0)
    assert model(x).shape == (1, model.num_features) == (1, 96)
    model.reset_classifier(7)
    assert model(x).shape == (1, 7)
    with pytest.raises(ConfigError, match=r"no_such.*slide_stages"):
        tiny(no_such=1)


# ---- official checkpoints -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, {"kernel_size": 5, "window_size": 2}, {"slide_stages": 4}, {"pos_embed": True},
                                     {"patch_norm": False}, {"patch_size": 2, "img_size": 32}], ids=str)
def test_official_checkpoint_round_trips(options: dict[str, Any]) -> None:
    source, target = tiny(**options), tiny(**options)
    x, state = torch.randn(1, 3, *source.arch.image_size), official_names(source)
    if options.get("pos_embed"):
        state["absolute_pos_embed"] = state.pop("pos_embed").flatten(1, 2)
    assert not torch.equal(source(x), target(x))
    nasvit.zoo.load_official(target, state)
    assert torch.equal(source(x), target(x))


def test_no_bias_of_queries_keys_and_values_is_a_bias_of_zeros() -> None:
    source, target, x = tiny(), tiny(), torch.randn(1, 3, 64, 64)
    for name, parameter in source.named_parameters():
        if name.endswith("qkv.bias"):
            torch.nn.init.zeros_(parameter)
        if name in dict(target.named_parameters()) and name.endswith("qkv.bias"):
            torch.nn.init.ones_(dict(target.named_parameters())[name])
    nasvit.zoo.load_official(target, {n: v for n, v in official_names(source).items() if not n.endswith("qkv.bias")})
    assert torch.equal(source(x), target(x))


SHIFT = "layers.0.blocks.0.attn.dep_conv"


@pytest.mark.parametrize(("name", "change", "message"), [
    (f"{SHIFT}1.weight", None, r"no layers\.0\.blocks\.0\.attn\.dep_conv1\.weight"),
    (f"{SHIFT}1.weight", lambda t: t[1:], r"dep_conv1\.weight is \(107, 1, 3, 3\), not \(108, 1, 3, 3\)"),
    (f"{SHIFT}.bias", lambda t: t[1:], r"dep_conv\.bias is"), (f"{SHIFT}.weight", lambda t: t * 0.5, "dep_conv.weight is not the disp"),
    ("layers.0.blocks.0.attn.qkv.weight", lambda t: t[1:], r"qkv\.weight is"),
    ("layers.2.blocks.1.attn.proj.weight", lambda t: t[1:], r"mixers\.0\.proj\.weight is"),
    ("left_over", lambda t: torch.zeros(1), "left_over")])
def test_an_official_checkpoint_that_does_not_fit_is_refused_by_name_and_changes_nothing(name: str, change: Any, message: str) -> None:
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = official_names(tiny())
    found = state.pop(name, None)
    with pytest.raises(CheckpointError, match=message):
        nasvit.zoo.load_official(model, state if change is None else {**state, name: change(found)})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- timm's Swin ----------------------------------------------------------------------------------------------------

def timm_swin(window_size: int) -> Any:
    model = timm.create_model("swin_tiny_patch4_window7_224", **TINY, window_size=window_size, img_size=64, num_classes=5,
                              drop_path_rate=0.0).eval()
    for parameter in model.parameters():
        with torch.no_grad():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def test_without_slide_stages_it_is_timms_swin() -> None:
    relative, model, x = timm_swin(2), tiny(window_size=2, slide_stages=0), torch.randn(2, 3, 64, 64)
    report = nasvit.zoo.load_relative(model, relative)
    assert not report.initial and not report.unused
    torch.testing.assert_close(model(x), relative(x), rtol=1e-4, atol=1e-5)


def test_timms_swin_gives_all_but_slide_kernels_and_tables() -> None:
    relative, model = timm_swin(2), tiny(window_size=2)
    initial = {n: v.clone() for n, v in model.state_dict().items()}
    report = nasvit.zoo.load_relative(model, relative)
    slides = [f"stages.{s}.blocks.{b}.mixers.0" for s, b in ((0, 0), (1, 0), (1, 1))]
    own = {f"{path}.{part}" for path in slides for part in ("kernel", "kernel_bias", "fixed_bias", "relative_position_bias_table")}
    assert set(report.initial) == own and set(report.loaded) == set(model.state_dict()) - own
    assert set(report.unused) == {"layers" + p[6:].replace("mixers.0", "attn.relative_position_bias_table") for p in slides}
    state = model.state_dict()
    assert all(torch.equal(state[n], initial[n]) for n in own)
    assert torch.equal(state[f"{slides[1]}.qkv.weight"], relative.state_dict()["layers.1.blocks.0.attn.qkv.weight"])


def test_tables_of_other_windows_keep_their_initial_values() -> None:
    report = nasvit.zoo.load_relative(tiny(window_size=4), timm_swin(2))  # stage 3 is one 2x2 window in both
    assert "stages.2.blocks.0.mixers.0.relative_position_bias_table" in report.initial
    assert "stages.3.blocks.0.mixers.0.relative_position_bias_table" in report.loaded


@pytest.mark.parametrize(("classes", "theirs"), [(3, 5), (0, 5), (5, 0)])
def test_a_classifier_of_other_classes_keeps_its_initial_values(classes: int, theirs: int) -> None:
    model, relative = tiny(window_size=2, slide_stages=0, num_classes=classes), timm_swin(2)
    relative.reset_classifier(theirs)
    report = nasvit.zoo.load_relative(model, relative)
    assert set(report.initial) == ({"head.weight", "head.bias"} if classes else set())
    assert set(report.loaded) == {name for name in model.state_dict() if not name.startswith("head.")}


def test_an_unknown_relative_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="swintransformer"):
        nasvit.zoo.load_relative(tiny(), {"x": torch.zeros(1)}, kind="resnet")


def test_the_inference_form_has_the_merged_kernels_alone() -> None:
    mixers = [m for m in deploy(tiny(window_size=3)).modules() if isinstance(m, SlideMixer)]
    assert mixers
    for mixer in mixers:
        assert {n for n, _ in mixer.named_parameters(recurse=False)} == set()
        assert {n for n, _ in mixer.named_buffers()} == {"key_taps", "key_constant", "value_taps", "value_constant"}
