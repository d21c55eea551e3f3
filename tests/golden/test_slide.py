"""Slide-Transformer: slide attention, deformed shifting and whole blocks against reference outputs, for any configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.models.mixers.base import Mixer
from nasvit.models.mixers.slide import SlideMixer, displacement, slide_attention
from nasvit.models.mixers.window import WindowMixer
from tests.golden.cases import Case, assert_matches, cases

TOLERANCE = 1e-5
LATER = "whole published models are not here yet"
Weights = Mapping[str, Tensor]


@pytest.mark.parametrize("case", cases("slide"))
def test_reproduces(case: Case) -> None:
    kind = case.data["kind"]
    if kind in ("model", "stem", "downsample"):
        pytest.skip(LATER)
    with torch.no_grad():
        output = ADAPTERS[kind](case)
    assert_matches(output, case.data["eval_output"], tolerance=TOLERANCE)


def load(mixer: Mixer, weights: Weights) -> Mixer:
    """Fill a mixer; every parameter must be given, and every weight must have a place."""
    mixer.load_state_dict(dict(weights), strict=True)
    return mixer.eval()


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def paths(weights: Weights, *, conv: str = "dep_conv1") -> tuple[Tensor, Tensor, Tensor]:
    """Learned kernel (d, T, k, k), its bias and the fixed path's bias (d, T), from (d * T, ..), channel-major."""
    kernel = weights[f"{conv}.weight"]
    size = kernel.shape[-1]
    return (kernel.view(-1, size**2, size, size), weights[f"{conv}.bias"].view(-1, size**2), weights["dep_conv.bias"].view(-1, size**2))


def slide_weights(weights: Weights, *, dim: int, num_heads: int) -> dict[str, Tensor]:
    """Official names and layouts to ours. Their qkv is head first (h, 3, d), ours (3, h, d); no bias is a bias of zeros."""
    def standard(t: Tensor) -> Tensor:
        return t.view(num_heads, 3, dim // num_heads, -1).transpose(0, 1).reshape(t.shape)

    kernel, kernel_bias, fixed_bias = paths(weights)
    return {"qkv.weight": standard(weights["qkv.weight"]), "qkv.bias": standard(weights.get("qkv.bias", torch.zeros(3 * dim))),
            "kernel": kernel, "kernel_bias": kernel_bias, "fixed_bias": fixed_bias,
            "relative_position_bias_table": weights["relative_position_bias_table"].view(num_heads, -1),
            "proj.weight": weights["proj.weight"], "proj.bias": weights["proj.bias"]}


def slide_mixer(weights: Weights, *, dim: int, resolution: tuple[int, int], num_heads: int, kernel_size: int) -> Mixer:
    mixer = SlideMixer(dim, resolution=resolution, num_heads=num_heads, kernel_size=kernel_size)
    return load(mixer, slide_weights(weights, dim=dim, num_heads=num_heads))


def attention(case: Case) -> Tensor:
    """(B, L, C) in and out."""
    config, weights = case.config, case.weights()
    if "dim_reduction" in config:
        return reduced_attention(case)
    size, dim = tuple(config["input_resolution"]), config["dim"]
    assert config.get("qk_scale") in (None, (dim // config["num_heads"]) ** -0.5), "the mixer has the usual scale only"
    mixer = slide_mixer(weights, dim=dim, resolution=size, num_heads=config["num_heads"], kernel_size=config["ka"])
    return mixer(case.input().unflatten(1, size)).flatten(1, 2)


def reduced_attention(case: Case) -> Tensor:
    """The variant inside DAT, (B, C, H, W): a narrower inner width, and the values may have a kernel of their own."""
    config, weights, x = case.config, case.weights(), case.input()
    assert not config["share_qkv"], "one projection for q, k and v is not covered"
    heads, fixed = config["num_heads"], displacement(config["ka"])
    qkv = linear(weights, "qkv", x.permute(0, 2, 3, 1)).unflatten(-1, (heads, 3, -1))  # (B, H, W, h, 3, d)
    q, k, v = qkv.permute(4, 0, 3, 5, 1, 2).unbind()
    kernel, kernel_bias, fixed_bias = paths(weights)
    value, value_bias, _ = paths(weights, conv="dep_conv1" if config["share_dwc_kernel"] else "dep_conv2")
    position = weights["relative_position_bias_table"].view(heads, -1) if config["rpb"] else torch.zeros(heads, config["ka"] ** 2)
    out = slide_attention(q * (config["dim"] // heads) ** -0.5, k, v, kernel=fixed + kernel, bias=fixed_bias + kernel_bias,
                          position=position, value_kernel=fixed + value, value_bias=fixed_bias + value_bias)
    return linear(weights, "proj", out.permute(0, 3, 4, 1, 2).flatten(3)).permute(0, 3, 1, 2)


def deformed_shift(case: Case) -> Tensor:
    """(B, d, H, W) -> (B, d * T, H, W), by the one kernel the mixer merges from its two paths."""
    dim, size = case.config["head_dim"], case.config["ka"]
    mixer = SlideMixer(dim, resolution=tuple(case.data["input"]["shape"][2:]), num_heads=1, kernel_size=size)
    with torch.no_grad():
        for own, value in zip((mixer.kernel, mixer.kernel_bias, mixer.fixed_bias), paths(case.weights()), strict=True):
            own.copy_(value)
    kernel, bias = mixer.merged_kernel()
    return F.conv2d(case.input(), kernel.flatten(0, 1).unsqueeze(1), bias.flatten(), padding=size // 2, groups=dim)


def block(case: Case) -> Tensor:
    """(B, L, C): layer norm, attention, sum, layer norm, MLP with the exact GELU, sum."""
    config, weights = case.config, case.weights()
    dim, size = config["dim"], tuple(config["input_resolution"])
    inner = {name.removeprefix("attn."): t for name, t in weights.items() if name.startswith("attn.")}
    if config["is_slide"]:
        mixer = slide_mixer(inner, dim=dim, resolution=size, num_heads=config["num_heads"], kernel_size=config["ka"])
    else:
        covers = min(size) <= config["window_size"]
        window, shift = (min(size), 0) if covers else (config["window_size"], config["shift_size"])
        assert shift in (0, window // 2), "the mixer shifts by half a window"
        mixer = load(WindowMixer(dim, resolution=size, num_heads=config["num_heads"], window_size=window, shift=shift > 0), inner)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (dim,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)

    x = case.input()
    x = x + mixer(norm("norm1", x).unflatten(1, size)).flatten(1, 2)
    return x + linear(weights, "mlp.fc2", nn.GELU()(linear(weights, "mlp.fc1", norm("norm2", x))))


ADAPTERS: dict[str, Callable[[Case], Tensor]] = {"attention": attention, "deformed_shift": deformed_shift, "block": block}
