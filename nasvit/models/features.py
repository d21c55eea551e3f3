"""A network as a backbone: the maps of its scales in place of logits, for the heads of detection and segmentation.

Legend: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nasvit.models.network import Network


class Features(nn.Module):
    """(B, in_channels, H, W) -> for each scale its map (B, C, H / reduction, W / reduction), sides rounded up, the finest first.

    `feature_info.channels()` and `feature_info.reduction()` give C and reduction of each, as timm's `features_only=True` does.
    scales: numbers of those wanted, negative ones from the end; None, all. The network is taken over: what only classifies, and the
    stages behind the last scale, are dropped from it. Raises ConfigError for a scale that is not there.
    """

    def __init__(self, network: Network, *, scales: Sequence[int] | None = None) -> None:
        from nasvit.torchvision_ops import ensure

        super().__init__()
        ensure()
        from timm.models import FeatureInfo  # here alone: it brings torchvision, which takes long to import

        self.scales = network.prune_intermediate_layers(len(network.feature_info) if scales is None else scales, prune_norm=True)
        self.feature_info = FeatureInfo(network.feature_info, out_indices=tuple(self.scales))
        self.model = network

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(x, indices=self.scales, intermediates_only=True)
        return maps
