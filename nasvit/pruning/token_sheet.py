"""A picture of which tokens each block of a network keeps, merges or clusters."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from nasvit.data.augment import Normaliser
from nasvit.pruning.kept import kept_tokens

Pixels = NDArray[np.uint8]
PANEL, GAP, LABEL = 168, 14, 30
COLUMNS = 6
FADED = 0.82
"""So far towards white goes a token that is not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One block. places (H, W): for kind "kept" -1 is not kept; for "merged" and "clusters" equal numbers belong together."""

    label: str
    kind: str
    places: NDArray[np.int64]


def token_picture(module: nn.Module, images: Tensor, *, mean: Iterable[float], std: Iterable[float],
                  one_head: bool = False) -> tuple[Image.Image, int] | None:
    """The sheets of uint8 images (N, C, H, W), one under the other, and the panels of each; None where every block sees every token on
    its own.

    mean, std: how the module takes images. one_head: of FSLA's clusters, which every head has of its own, those of the first.
    """
    normalise, sheets, count = Normaliser.of(tuple(mean), tuple(std), device=torch.device("cpu")), [], 0
    for image in images.split(1):
        panels = [Panel(label=m.where if m.kind == "clusters" else f"{m.where} ({m.share:.0%})", kind=m.kind, places=m.places.numpy())
                  for m in kept_tokens(module, normalise(image)) if m.head == 0 or not one_head]
        if not panels:
            return None
        count = len(panels)
        pixels = image[0].permute(1, 2, 0).numpy()  # (H, W, C)
        if pixels.shape[2] != 3:
            pixels = np.repeat(pixels.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
        sheets.append(token_sheet(pixels, panels))
    picture = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)))
    for i, sheet in enumerate(sheets):
        picture.paste(sheet, (0, i * sheet.height))
    return picture, count


def token_sheet(image: Pixels, panels: Sequence[Panel]) -> Image.Image:
    """The image (height, width, 3) and one panel for each block, six in a row."""
    whole = [("image", _resized(image)), *((p.label, _drawn(image, p)) for p in panels)]
    rows = -(-len(whole) // COLUMNS)
    columns = min(COLUMNS, len(whole))
    sheet = Image.new("RGB", (columns * (PANEL + GAP) + GAP, rows * (PANEL + LABEL + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (label, picture) in enumerate(whole):
        x, y = GAP + i % COLUMNS * (PANEL + GAP), GAP + i // COLUMNS * (PANEL + LABEL + GAP)
        pen.text((x, y + 6), label, fill="#1b2430", font_size=13)
        sheet.paste(Image.fromarray(picture), (x, y + LABEL))
    return sheet


def _resized(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((PANEL, PANEL), Image.Resampling.NEAREST if image.shape[0] < 64 else None))


def _cells(places: NDArray[Any]) -> NDArray[Any]:
    """(H, W) -> (PANEL, PANEL): the value of the token behind each pixel."""
    height, width = places.shape
    rows, columns = np.arange(PANEL) * height // PANEL, np.arange(PANEL) * width // PANEL
    return np.asarray(places[rows[:, None], columns[None, :]])


def _drawn(image: Pixels, panel: Panel) -> Pixels:
    picture, cells = _resized(image).astype(np.float64), _cells(panel.places)
    if panel.kind == "kept":
        gone = cells < 0
        picture[gone] = (1 - FADED) * picture[gone] + FADED * 255
        return picture.astype(np.uint8)
    if panel.kind == "merged":  # a merged token shows the mean of what it stands for
        for group in np.unique(cells):
            inside = cells == group
            picture[inside] = picture[inside].mean(axis=0)
    else:
        groups = np.unique(cells)
        colours = {g: np.array(colorsys.hsv_to_rgb(i / len(groups), 0.75, 0.95)) * 255 for i, g in enumerate(groups)}
        for group, colour in colours.items():
            inside = cells == group
            picture[inside] = 0.55 * picture[inside] + 0.45 * colour
    edges = np.zeros(cells.shape, dtype=bool)
    edges[1:] |= cells[1:] != cells[:-1]
    edges[:, 1:] |= cells[:, 1:] != cells[:, :-1]
    picture[edges] = 255
    return picture.astype(np.uint8)
