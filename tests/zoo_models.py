"""Small models of every published family, with no silent branch: what the zoo's tests stand on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import nasvit.zoo
from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

SLIDE_SWIN = {"embed_dim": 12, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 3, 4), "img_size": 64}
SLIDE_PVT = {"embed_dims": (8, 12, 16, 24), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "mlp_ratios": (2, 2, 2, 2), "img_size": 64}
BOAT_SWIN = {"embed_dim": 12, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 3, 4), "window_size": 4, "cluster_size": 16, "overlap": 6,
             "img_size": 64}
BOAT_CSWIN = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 4), "split_sizes": (1, 2, 4, 4), "cluster_size": 16,
              "overlap": 6, "img_size": 64}
CSWIN = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 4), "img_size": 64}
CASVIT = {"embed_dims": (8, 12, 16, 24), "depths": (1, 1, 2, 1), "img_size": (64, 48)}
EVO_DEIT = {"embed_dim": 16, "num_heads": 2, "patch_size": 8, "keep_ratios": (1.0, 1.0, 0.5, 0.5, 0.5, 0.5), "selections": (2, 4),
            "img_size": 32}
EVO_LEVIT = {"embed_dims": (16, 24, 32), "num_heads": (2, 3, 5), "depths": (3, 2, 2), "key_dim": 8, "img_size": 96}

MAKERS: dict[str, tuple[str, dict[str, Any]]] = {
    "slide_swin": ("slide_swin_tiny", SLIDE_SWIN), "slide_swin_w2": ("slide_swin_tiny", {**SLIDE_SWIN, "window_size": 2}),
    "slide_swin_w7": ("slide_swin_tiny_w7", SLIDE_SWIN), "slide_pvt": ("slide_pvt_tiny", SLIDE_PVT),
    "slide_pvtv2": ("slide_pvtv2_b1", SLIDE_PVT),
    "boat_swin": ("boat_swin_tiny", BOAT_SWIN), "boat_cswin": ("boat_cswin_tiny", BOAT_CSWIN), "cswin": ("cswin_tiny", CSWIN),
    "casvit": ("casvit_xs", CASVIT), "casvit_distilled": ("casvit_xs", {**CASVIT, "distillation": True}),
    "evo_deit": ("evo_deit_tiny", EVO_DEIT), "evo_deit_representative": ("evo_deit_tiny", {**EVO_DEIT, "representative": True}),
    "evo_deit_prunecls": ("evo_deit_tiny", {**EVO_DEIT, "prunecls": True}),
    "evo_deit_layer_wise": ("evo_deit_tiny", {**EVO_DEIT, "layer_wise": True}),
    "evo_levit": ("evo_levit_128s", EVO_LEVIT), "evo_levit_layer_wise": ("evo_levit_128s", {**EVO_LEVIT, "layer_wise": True}),
    "evo_levit_undistilled": ("evo_levit_128s", {**EVO_LEVIT, "distillation": False}),
    "evo_levit_fixed_tradeoff": ("evo_levit_128s", {**EVO_LEVIT, "learned_tradeoff": False}),
}


def make(case: str, **kwargs: Any) -> Any:
    """A small model with 5 classes in evaluation; batch norms have seen something, so that folding them changes numbers."""
    assert nasvit.zoo.FAMILIES
    name, options = MAKERS[case]
    model = timm.create_model(name, **{"num_classes": 5, "drop_path_rate": 0.0, **options, **kwargs}).eval()
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return model


def images_of(model: Any, count: int, *, seed: int = 0) -> torch.Tensor:
    """(count, 3, H, W) of the model's size and type."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *model.arch.image_size, generator=generator).to(next(model.parameters()).dtype)
