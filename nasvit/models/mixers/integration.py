"""CAS-ViT's local integration (arXiv 2408.03703): a small convolutional mixer that needs no normalised input."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Grid
from nasvit.models.folding import fold_norm_
from nasvit.models.mixers.base import MIXERS, Mixer, to_channels_first, to_channels_last


@MIXERS.register("integration")
class IntegrationMixer(Mixer):
    """Pointwise, batch norm, depthwise 3x3, GELU, pointwise; all of width C, the pointwise ones as linear layers."""

    norm: ClassVar[str] = "none"
    default_initialisation: ClassVar[bool] = True
    stochastic_depth: ClassVar[bool] = False

    def __init__(self, dim: int, *, resolution: Grid) -> None:
        super().__init__()
        self.dim, self.resolution = dim, resolution
        self.expand = nn.Linear(dim, dim)
        self.norm_inner: nn.Module = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        near = self.conv(self.norm_inner(to_channels_first(self.expand(x))))
        return self.project(F.gelu(to_channels_last(near)))

    def deploy_(self) -> None:
        """The norm goes into the linear layer before it."""
        self.norm_inner = fold_norm_(self.expand, self.norm_inner)

    def macs(self) -> int:
        """Multiply-adds of one image; batch norm counts 2 per element."""
        return self.resolution[0] * self.resolution[1] * self.dim * (2 * self.dim + 9 + 2)
