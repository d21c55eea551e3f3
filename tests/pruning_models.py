"""Small dense models of every pruning family, with no silent branch: what the pruning tests stand on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasvit.models.build import build
from nasvit.space import SearchSpace
from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

import nasvit  # noqa: E402
import nasvit.zoo  # noqa: E402 (importing registers the published models)

SMALL = {"num_classes": 7, "img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 3}
SWIN = {"num_classes": 7, "img_size": 64, "depths": (1, 2, 1), "embed_dim": 24, "num_heads": (2, 4, 4), "window_size": 3}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", SMALL), "deit_distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "deit3": ("deit3_small_patch16_224", SMALL), "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 28}),
    "clip": ("vit_base_patch16_clip_224", SMALL), "mean_pooled": ("vit_medium_patch16_gap_240", SMALL),
    "post_norm": ("vit_base_patch16_rpn_224", SMALL), "swiglu": ("vit_giant_patch14_reg4_dinov2", {**SMALL, "img_size": 28}),
    "eva": ("eva_large_patch14_196", {**SMALL, "img_size": 28}), "eva02": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 28}),
    "eva02_inner_norm": ("eva02_base_patch14_224", {**SMALL, "img_size": 28}),
    "rope_learned": ("vit_small_patch16_rope_mixed_224", SMALL), "dinov3": ("vit_small_patch16_dinov3", SMALL),
    "beit": ("beit_base_patch16_224", SMALL), "cait": ("cait_xxs24_224", SMALL),
    "swin": ("swin_tiny_patch4_window7_224", SWIN), "swinv2": ("swinv2_tiny_window8_256", SWIN),
    "pvt": ("pvt_v2_b0", {"num_classes": 7, "depths": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 64), "num_heads": (1, 2, 2, 4)}),
    "pvt_linear": ("pvt_v2_b2_li", {"num_classes": 7, "depths": (1, 1), "embed_dims": (16, 32), "num_heads": (1, 2),
                                    "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}),
    "levit": ("levit_128s", {"num_classes": 7, "img_size": 64, "embed_dim": (32, 48), "num_heads": (2, 3), "depth": (1, 2)}),
    "levit_conv": ("levit_conv_128s", {"num_classes": 7, "img_size": 64, "embed_dim": (32, 48), "num_heads": (2, 3), "depth": (1, 2)})}
TINY = {"num_classes": 7, "img_size": 64}
PYRAMID = {**TINY, "embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (2, 2, 4, 8)}
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "slide_swin": ("slide_swin_tiny_w7", PYRAMID), "cswin": ("cswin_tiny", PYRAMID),
    "slide_pvtv2": ("slide_pvtv2_b1", {**TINY, "embed_dims": (16, 32, 64, 64), "depths": (1, 1, 1, 2), "num_heads": (1, 2, 4, 4)}),
    "boat_swin": ("boat_swin_tiny", {**PYRAMID, "window_size": 4, "cluster_size": 16, "overlap": 4}),
    "boat_cswin": ("boat_cswin_tiny", {**PYRAMID, "cluster_size": 16, "overlap": 4}),
    "evo_deit": ("evo_deit_tiny", {**TINY, "embed_dim": 48}),
    "evo_levit": ("evo_levit_128s", {"num_classes": 7, "img_size": 128, "embed_dims": (32, 48, 64), "num_heads": (2, 3, 4)})}
SPACES = ("catm_only", "fsla_only", "hybrid_mobile", "hybrid_small", "hybrid_tiny", "isotropic", "slide_only", "window_only")
IMAGE_SIZE = {"pvt": (64, 64), "pvt_linear": (56, 56)}


@torch.no_grad()
def wake(model: nn.Module) -> nn.Module:
    """Untrained models begin with zero gammas, biases and tables, behind which a fault is silent: give everything a value."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "gamma" in name or float(parameter.std(unbiased=False)) < 1e-3:
            parameter.copy_(0.5 * torch.rand(parameter.shape, generator=generator) + 0.2)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def _searched(space: str) -> nn.Module:
    path = Path(nasvit.__file__).parent / "spaces" / f"{space}.yaml"
    return build(SearchSpace.load(path).sample(random.Random(0)), seed=0)


def _makers() -> dict[str, Callable[[], nn.Module]]:
    makers: dict[str, Callable[[], nn.Module]] = {}
    for case, (name, arguments) in {**TIMM, **ZOO}.items():
        makers[case] = lambda name=name, arguments=arguments: timm.create_model(name, **arguments)  # type: ignore[misc]
    for space in SPACES:
        makers[space] = lambda space=space: _searched(space)  # type: ignore[misc]
    return makers


MAKERS = _makers()


def make(case: str) -> nn.Module:
    """The dense model of this name, awake, in eval mode."""
    torch.manual_seed(0)
    return wake(MAKERS[case]())
