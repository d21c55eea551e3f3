"""Slide-Transformer: attention, deformed shifting, embeddings, whole blocks and whole models against reference outputs, for any
configuration. Official names and layouts go through the conversion of official checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nasvit.zoo
from nasvit.arch import Block, Grid, MixerSpec
from nasvit.models.blocks import MixerBlock
from nasvit.models.mixers import make_mixer
from nasvit.models.mixers.slide import attend, displacement, lay_out
from nasvit.models.patch_embed import PatchMerging, PatchStem
from nasvit.torchvision_ops import ensure
from nasvit.zoo import slide_swin, swin
from nasvit.zoo.checkpoint import Checkpoint
from tests.golden.cases import Case, assert_matches, cases

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

TOLERANCE = 1e-5
HERE = "case"  # stands before the names of a case that is less than a model


@pytest.mark.parametrize("case", cases("slide"))
def test_reproduces(case: Case) -> None:
    with torch.no_grad():
        output = ADAPTERS[case.data["kind"]](case)
    assert_matches(output, case.data["eval_output"], tolerance=TOLERANCE)


def official(case: Case) -> dict[str, Tensor]:
    """The filled tensors, and the fixed kernels, which are kept as built."""
    weights = case.weights()
    for name, shape in case.data["state_dict"]:
        if name.endswith("dep_conv.weight"):
            weights[name] = displacement(shape[-1]).repeat(shape[0] // shape[-1] ** 2, 1, 1).unsqueeze(1)
    return weights


def checkpoint(case: Case) -> Checkpoint:
    return Checkpoint({f"{HERE}.{name}": value for name, value in official(case).items()})


def load(module: nn.Module, state: dict[str, Tensor], left: Checkpoint) -> nn.Module:
    """Strict: every parameter is given, every weight has a place, every official tensor is used."""
    module.load_state_dict({name.removeprefix("ours."): value for name, value in state.items()}, strict=True)
    left.must_be_used_up()
    return module.eval()


def scaled(module: nn.Module, qk_scale: float | None) -> nn.Module:
    """Another scale of the logits is another size of q."""
    for part in module.modules():
        if qk_scale is not None and hasattr(part, "qkv"):
            for parameter in part.qkv.parameters():
                parameter[: part.dim] *= qk_scale * (part.dim // part.num_heads) ** 0.5
    return module


def model(case: Case) -> Tensor:
    """The family's smallest variant, every size of the configuration given anew."""
    config = case.config
    made = timm.create_model("slide_swin_tiny", img_size=config["img_size"], in_chans=config["in_chans"], num_classes=config["num_classes"],
                             embed_dim=config["embed_dim"], depths=config["depths"], num_heads=config["num_heads"],
                             kernel_size=config["ka"], slide_stages=config["num_slide_stages"], window_size=config["window_size"],
                             mlp_ratio=config["mlp_ratio"], patch_size=config["patch_size"], pos_embed=config["ape"],
                             patch_norm=config["patch_norm"])
    nasvit.zoo.load_official(made, official(case))
    return scaled(made, config["qk_scale"]).eval()(case.input())


def attention(case: Case) -> Tensor:
    """(B, L, C) in and out."""
    config = case.config
    if "dim_reduction" in config:
        return reduced_attention(case)
    size, weights = tuple(config["input_resolution"]), checkpoint(case)
    spec = MixerSpec.of("slide", num_heads=config["num_heads"], kernel_size=config["ka"])
    state = slide_swin.attention(weights, HERE, "ours", dim=config["dim"], mixer=spec)
    mixer = load(make_mixer(spec, dim=config["dim"], resolution=size), state, weights)
    return scaled(mixer, config["qk_scale"])(case.input().unflatten(1, size)).flatten(1, 2)


def reduced_attention(case: Case) -> Tensor:
    """The variant inside DAT, (B, C, H, W): a narrower inner width, one projection may be q, k and v at once, and the values may have
    a kernel of their own."""
    config, weights, x, left = case.config, case.weights(), case.input(), checkpoint(case)
    heads, size = config["num_heads"], config["ka"]
    inner = F.linear(x.permute(0, 2, 3, 1), weights["qkv.weight"], weights.get("qkv.bias"))
    inner = inner.unflatten(-1, (heads, 1 if config["share_qkv"] else 3, -1))  # (B, H, W, h, 3, d)
    q, k, v = inner.expand(*inner.shape[:4], 3, -1).permute(4, 0, 3, 5, 1, 2).unbind()
    fixed, d = displacement(size), config["dim"] // config["dim_reduction"] // heads
    kernel, bias, fixed_bias = slide_swin.paths(left, HERE, head_dim=d, kernel_size=size)
    own: dict[str, Tensor] = {}
    if not config["share_dwc_kernel"]:
        value, value_bias, _ = slide_swin.paths(checkpoint(case), HERE, head_dim=d, kernel_size=size, learned="dep_conv2")
        own = {"value_kernel": fixed + value, "value_bias": fixed_bias + value_bias}
    position = weights["relative_position_bias_table"].view(heads, -1) if config["rpb"] else torch.zeros(heads, size**2)
    taps = lay_out(kernel=fixed + kernel, bias=fixed_bias + bias, position=position, scale=(config["dim"] // heads) ** -0.5, **own)
    out = attend(q, k, v, taps).permute(0, 3, 4, 1, 2).flatten(3)
    return F.linear(out, weights["proj.weight"], weights.get("proj.bias")).permute(0, 3, 1, 2)


def deformed_shift(case: Case) -> Tensor:
    """(B, d, H, W) -> (B, d * T, H, W), by the one kernel the mixer merges from its two paths."""
    dim, size = case.config["head_dim"], case.config["ka"]
    mixer = make_mixer(MixerSpec.of("slide", num_heads=1, kernel_size=size), dim=dim, resolution=tuple(case.data["input"]["shape"][2:]))
    paths = slide_swin.paths(checkpoint(case), HERE, head_dim=dim, kernel_size=size)
    mixer.kernel[:], mixer.kernel_bias[:], mixer.fixed_bias[:] = paths
    kernel, bias = mixer.merged_kernel()
    return F.conv2d(case.input(), kernel.flatten(0, 1).unsqueeze(1), bias.flatten(), padding=size // 2, groups=dim)


def block(case: Case) -> Tensor:
    """(B, L, C) in and out."""
    config, weights = case.config, checkpoint(case)
    dim, size = config["dim"], tuple(config["input_resolution"])
    spec, hidden = mixer_of(case, size), case.weights()["mlp.fc1.bias"].numel()
    own = MixerBlock(Block(mixers=(spec,), mlp_dim=hidden), dim=dim, resolution=size, drop_path=0.0, where=HERE, norm_eps=1e-5)
    state = swin.around_mixer(weights, HERE, "ours") | slide_swin.attention(weights, f"{HERE}.attn", "ours.mixers.0", dim=dim, mixer=spec)
    run = scaled(load(own, state, weights), config.get("qk_scale"))
    return run(case.input().unflatten(1, size), None, scored=False)[0].flatten(1, 2)


def mixer_of(case: Case, size: Grid) -> MixerSpec:
    config = case.config
    if config["is_slide"]:
        return MixerSpec.of("slide", num_heads=config["num_heads"], kernel_size=config["ka"])
    spec = swin.window(size, num_heads=config["num_heads"], window_size=config["window_size"], shift=config["shift_size"] > 0)
    assert not spec.kwargs["shift"] or config["shift_size"] == config["window_size"] // 2, "the mixer shifts by half a window"
    return spec


def stem(case: Case) -> Tensor:
    """(B, in, H, W) -> (B, L, C)"""
    config, norm = case.config, "norm.weight" in case.weights()
    made = PatchStem(config["in_chans"], config["embed_dim"], stride=config["patch_size"], norm=norm)
    made.load_state_dict(case.weights(), strict=True)
    return made(case.input()).flatten(1, 2)


def downsample(case: Case) -> Tensor:
    """(B, L, C) -> (B, L / 4, 2C)"""
    dim = case.config["dim"]
    made = PatchMerging(dim, 2 * dim)
    made.load_state_dict(case.weights(), strict=True)
    return made(case.input().unflatten(1, tuple(case.config["input_resolution"]))).flatten(1, 2)


ADAPTERS: dict[str, Callable[[Case], Tensor]] = {"attention": attention, "deformed_shift": deformed_shift, "block": block, "stem": stem,
                                                 "downsample": downsample, "model": model}
