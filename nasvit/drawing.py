"""A drawing of an architecture as SVG text: stages, blocks, token mixers, MLPs, keep ratios. Text in, text out.

Below Arch, so that an Arch can draw itself; it sees an Arch's fields alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Arch draws itself with this module
    from nasvit.arch import Arch, Block, MixerSpec, Stage

MIXER_COLOURS = {"window": "#0072B2", "slide": "#E69F00", "fsla": "#009E73", "catm": "#CC79A7", "global": "#D55E00",
                 "integration": "#56B4E9"}
_OPERATOR_COLOURS = {"none": "#0072B2", "slow_fast": "#E69F00", "merge": "#009E73", "topk_fuse": "#CC79A7"}
"""What a pruning does with tokens stands in its pictures where a search's have the mixer."""
"""Okabe and Ito's palette, which stays apart for colour-blind readers. A mixer has the same colour in every picture."""
_OTHER_COLOURS = ("#882255", "#8A8A23", "#44AA99", "#6E6E6E")
_INK, _MUTED, _LINE, _SOFT, _GREY = "#1b2430", "#66707d", "#cdd3da", "#f6f7f9", "#dfe3e8"
_FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
_WIDTH = 1100
_BLOCK, _GAP, _PAD, _MIXER, _MLP, _HEAD, _BETWEEN = 108, 8, 10, 34, 20, 42, 26
_TIMES = "\u00d7"  # the multiplication sign
_SIDE = 74  # of the boxes for image and head


def mixer_colour(name: str) -> str:
    """The mixer's own colour; one that nasvit does not ship gets its colour from its name, always the same."""
    return MIXER_COLOURS.get(name) or _OPERATOR_COLOURS.get(name) or _OTHER_COLOURS[zlib.crc32(name.encode()) % len(_OTHER_COLOURS)]


@dataclass(slots=True)
class _Sheet:
    """Pieces of SVG, and how far they reach."""

    pieces: list[str] = field(default_factory=list)
    width: float = 0
    height: float = 0

    def box(self, x: float, y: float, width: float, height: float, *, fill: str, edge: str = "none", radius: float = 5) -> None:
        self.width, self.height = max(self.width, x + width), max(self.height, y + height)
        self.pieces.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
                           f'stroke="{edge}"/>')

    def text(self, x: float, y: float, text: str, *, size: float = 12, colour: str = _INK, bold: bool = False, middle: bool = True,
             fit: float | None = None) -> None:
        """fit: the width it may take; longer text is drawn closer."""
        weight, anchor = ' font-weight="600"' if bold else "", ' text-anchor="middle"' if middle else ""
        squeeze = f' textLength="{fit:g}" lengthAdjust="spacingAndGlyphs"' if fit is not None and 0.56 * size * len(text) > fit else ""
        self.pieces.append(f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{weight}{anchor}{squeeze}>{escape(text)}</text>')

    def arrow(self, x: float, y: float, length: float, label: str = "") -> None:
        self.pieces.append(f'<path d="M{x:g} {y:g} h{length - 5:g} m-4 -4 l4 4 l-4 4" fill="none" stroke="{_MUTED}" stroke-width="1.3"/>')
        if label:
            self.text(x + length / 2 - 2, y - 8, label, size=9.5, colour=_MUTED)


def draw(arch: Arch) -> str:
    """The whole network as one `<svg>` element, at most _WIDTH units wide, scaling with its place. It holds no script and no link."""
    sheet = _Sheet()
    rows = max(len(block.mixers) for stage in arch.stages for block in stage.blocks)
    tall = rows * _MIXER + _MLP + 26
    x: float = 0
    y: float = 0
    middle = _HEAD + tall / 2
    _end_box(sheet, x, y + middle, f"{arch.image_size[0]}{_TIMES}{arch.image_size[1]}", _counted(arch.in_channels, "channel"))
    x += _SIDE
    sheet.arrow(x + 2, y + middle, _BETWEEN, "stem")
    x += _BETWEEN
    for number, stage in enumerate(arch.stages):
        width = _stage_width(stage)
        if x > _SIDE + _BETWEEN and x + width > _WIDTH:
            x, y = _BETWEEN, sheet.height + 18
        if number:
            sheet.arrow(x + 2 - _BETWEEN, y + middle, _BETWEEN, "" if stage.downsample == "none" else "½")
        _stage(sheet, x, y, stage, number=number, arch=arch, tall=tall)
        x += width + _BETWEEN
    if x + _SIDE > _WIDTH + 2 * _SIDE:  # a line of its own is worse than a line a little longer
        x, y = _BETWEEN, sheet.height + 18
    sheet.arrow(x + 2 - _BETWEEN, y + middle, _BETWEEN)
    _end_box(sheet, x, y + middle, arch.head.kind.replace("_", " "), "1 class" if arch.num_classes == 1 else f"{arch.num_classes} classes")
    width, height = sheet.width + 2, sheet.height + 2
    label = escape(f"network {arch.id}", quote=True)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" viewBox="-1 -1 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" style="max-width:100%;height:auto" font-family="{escape(_FONT, quote=True)}">'
            + "".join(sheet.pieces) + "</svg>")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _runs(stage: Stage) -> Iterator[tuple[Block, int]]:
    """Equal neighbours are drawn once, with their number."""
    for block, group in groupby(stage.blocks):
        yield block, len(list(group))


def _stage_width(stage: Stage) -> float:
    count = len(list(_runs(stage)))
    return 2 * _PAD + count * _BLOCK + (count - 1) * _GAP


def _end_box(sheet: _Sheet, x: float, middle: float, first: str, second: str) -> None:
    sheet.box(x, middle - 22, _SIDE, 44, fill="#fff", edge=_LINE)
    sheet.text(x + _SIDE / 2, middle - 3, first, size=11.5, bold=True, fit=_SIDE - 8)
    sheet.text(x + _SIDE / 2, middle + 12, second, size=10, colour=_MUTED, fit=_SIDE - 8)


def _stage(sheet: _Sheet, x: float, y: float, stage: Stage, *, number: int, arch: Arch, tall: float) -> None:
    height, width = arch.grid(number)
    sheet.box(x, y, _stage_width(stage), _HEAD + tall + _PAD, fill=_SOFT, edge=_LINE, radius=9)
    room = _stage_width(stage) - 2 * _PAD
    sheet.text(x + _PAD, y + 18, f"stage {number + 1}", size=12.5, bold=True, middle=False)
    size = f"{height}{_TIMES}{width} tokens, {stage.embed_dim} wide"
    sheet.text(x + _PAD, y + 33, size, size=10.5, colour=_MUTED, middle=False, fit=room)
    at = x + _PAD
    for block, count in _runs(stage):
        _block(sheet, at, y + _HEAD, block, count=count, embed_dim=stage.embed_dim, tall=tall)
        at += _BLOCK + _GAP


def _block(sheet: _Sheet, x: float, y: float, block: Block, *, count: int, embed_dim: int, tall: float) -> None:
    each = (tall - _MLP - 26) / len(block.mixers)
    for row, mixer in enumerate(block.mixers):
        sheet.box(x, y + row * each, _BLOCK, each - 2, fill=mixer_colour(mixer.name))
        details = _details(mixer)
        low = y + row * each + each / 2
        sheet.text(x + _BLOCK / 2, low + (0 if details else 4), mixer.name, size=12, colour="#fff", bold=True, fit=_BLOCK - 10)
        if details:
            sheet.text(x + _BLOCK / 2, low + 12, details, size=9, colour="#fff", fit=_BLOCK - 10)
    below = y + tall - _MLP - 26
    sheet.box(x, below, _BLOCK, _MLP - 2, fill=_GREY)
    sheet.text(x + _BLOCK / 2, below + 13, f"mlp {_TIMES}{block.mlp_dim / embed_dim:.3g}", size=10)
    if block.keep_ratio < 1:
        sheet.box(x, below + _MLP + 2, _BLOCK, 5, fill="#fff", edge=_LINE, radius=2.5)
        sheet.box(x, below + _MLP + 2, _BLOCK * block.keep_ratio, 5, fill=_INK, radius=2.5)
        sheet.text(x, below + _MLP + 19, f"keeps {block.keep_ratio:.3g}", size=10, colour=_MUTED, middle=False)
    if count > 1:
        sheet.text(x + _BLOCK - 10, below + _MLP + 19, f"{_TIMES}{count}", size=11.5, bold=True)


def _details(mixer: MixerSpec) -> str:
    """The parameters in a few characters: `8 heads, window 7`, or `6 heads of 16` where they do not fill the width."""
    of = f" of {mixer.kwargs['head_dim']}" if "head_dim" in mixer.kwargs else ""
    short = {"num_heads": "heads", "window_size": "window", "kernel_size": "kernel", "cluster_depth": "depth"}
    parts = [f"{value} {short[key]}{of}" if key == "num_heads" else f"{short.get(key, key)} {value}" for key, value in mixer.params
             if key in short]
    shifted = [key for key, value in mixer.params if value is True]
    return ", ".join([*parts, *shifted])
