"""Layers around the mixers: norms, MLPs, stochastic depth, initialisation.

Written out, though timm has them: importing timm brings torchvision and with it torch's compiler, 2.5 s in every command and worker.

Legend: B images, H x W the grid, n tokens, C channels. Tokens stay channels-last, (B, H, W, C), everywhere.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.models.mixers.base import Mixer, to_channels_first, to_channels_last


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382) of a residual branch: in training each sample's is dropped with chance `drop_prob`, 0 to 1,
    and the others are scaled up to keep the mean."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..) -> (B, ..)"""
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * kept.div_(keep or 1.0)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class Mlp(nn.Module):
    """Two linear layers with a GELU between: (.., C) -> (.., C)."""

    def __init__(self, dim: int, *, hidden_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_features)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_features, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


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
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for child in module.children():
        initialise(child)
