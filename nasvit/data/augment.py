"""Light augmentation of a whole batch in a few tensor operations: shifted crop, mirror, brightness and contrast.

Crop, mirror and the gathering of the batch are one index operation on the uint8 images; jitter and normalisation are one affine map.
Legend: N images, B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

JITTER = 0.2  # brightness and contrast factors from 1 - JITTER to 1 + JITTER
SHIFT = 1 / 16  # of the side, in every direction; the border is reflected


@dataclass(frozen=True)
class Normaliser:
    """Turns uint8 values into floats of mean 0 and standard deviation 1 per channel; tensors have shape (1, C, 1, 1)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: tuple[float, ...], std: tuple[float, ...], *, device: torch.device | str) -> Normaliser:
        return cls(mean=torch.tensor(mean, device=device).view(1, -1, 1, 1), std=torch.tensor(std, device=device).view(1, -1, 1, 1))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float (B, C, H, W)."""
        return torch.addcmul(-self.mean / self.std, images.float(), 1 / (255 * self.std))


def light_batch(images: Tensor, index: Tensor, normalise: Normaliser, *, flip: bool, share: float, generator: torch.Generator) -> Tensor:
    """The images (N, C, H, W) at `index` (B,), a `share` of them augmented, normalised -> float (B, C, H, W).

    All chance comes from `generator`.
    """
    height, width = int(images.shape[2]), int(images.shape[3])
    batch, device = len(index), images.device
    draws = torch.rand(6, batch, 1, generator=generator).to(device)
    chance = torch.where(draws[5] < share, draws[:5], 0.5)  # 0.5 is: no shift, no mirror, factors of 1
    rows = _window(chance[0], height)  # (B, H)
    columns = _window(chance[1], width)  # (B, W)
    if flip:
        columns = torch.where(chance[2] < 0.5, columns.flip(1), columns)
    pixels = images.permute(0, 2, 3, 1)  # (N, H, W, C)
    picked = pixels[index.view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]  # (B, H, W, C)
    x = picked.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    factors = 1 + JITTER * (2 * chance[3:] - 1)
    brightness, contrast = factors[0].view(-1, 1, 1, 1), factors[1].view(-1, 1, 1, 1)
    grey = x.mean(dim=(1, 2, 3), keepdim=True)  # contrast is about the mean of the image
    scale = brightness * contrast / (255 * normalise.std)  # (B, C, 1, 1)
    offset = (brightness * (1 - contrast) * grey / 255 - normalise.mean) / normalise.std
    return torch.addcmul(offset, x, scale)


def _window(chance: Tensor, side: int) -> Tensor:
    """(B, 1) in 0..1 -> (B, side): the positions a shifted window sees, reflected at the borders."""
    reach = min(max(1, round(side * SHIFT)), side - 1)
    shift = (chance * (2 * reach + 1)).long() - reach
    positions = (shift + torch.arange(side, device=chance.device)).abs()
    return (side - 1) - (side - 1 - positions).abs()
