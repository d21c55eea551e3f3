"""Layers around the mixers: norms, MLPs, initialisation. The only file of `models` that imports `timm.layers`.

Legend: B images, H x W the grid, n tokens, C channels. Tokens stay channels-last, (B, H, W, C), everywhere.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.models.mixers.base import Mixer, to_channels_first, to_channels_last
from nasvit.torchvision_ops import ensure

ensure()
from timm.layers import DropPath, Mlp, trunc_normal_  # noqa: E402 (timm needs torchvision importable first)

__all__ = ["ChannelBatchNorm", "ConvMlp", "DropPath", "Mlp", "initialise", "make_norm", "trunc_normal_"]


class ChannelBatchNorm(nn.Module):
    """Batch norm over the last axis of (.., C): every token is a sample."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.reshape(-1, x.shape[-1])).view(x.shape)


def make_norm(kind: str, dim: int, *, eps: float = 1e-5) -> nn.Module:
    """The norm before a residual branch: "layer" (with eps), "batch" or "none"."""
    if kind == "none":
        return nn.Identity()
    return ChannelBatchNorm(dim) if kind == "batch" else nn.LayerNorm(dim, eps=eps)


class ConvMlp(nn.Module):
    """PVTv2's MLP (arXiv 2106.13797): (.., C) -> (.., C) with a depthwise 3x3 convolution over the grid before the GELU."""

    def __init__(self, dim: int, *, hidden_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_features)
        self.conv = nn.Conv2d(hidden_features, hidden_features, 3, padding=1, groups=hidden_features)
        self.fc2 = nn.Linear(hidden_features, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        near = self.conv(to_channels_first(self.fc1(x)))
        return self.fc2(F.gelu(to_channels_last(near)))


def initialise(module: nn.Module) -> None:
    """Linear layers: truncated normal of std 0.02 and zero bias, as all four papers do; convolutions keep PyTorch's default, and so
    do the mixers that say so."""
    if isinstance(module, Mixer) and module.default_initialisation:
        return
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for child in module.children():
        initialise(child)
