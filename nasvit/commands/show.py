"""`nasvit show`: a picture of the tokens that a network keeps over an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nasvit.errors import ConfigError


def show(
    run: Annotated[Path, typer.Argument(help="A run of `nasvit search` or `nasvit prune`.")],
    image: Annotated[Path, typer.Option(help="The picture to look at.")],
    pick: Annotated[str, typer.Option(help="knee, best, max-latency:8ms or an id; of a pruning, its result is the default.")] = "",
    out: Annotated[Path, typer.Option(help="Where the PNG goes.")] = Path("tokens.png"),
) -> None:
    """Draw which tokens each block keeps, merges or clusters over an image."""
    import numpy as np
    import torch
    from PIL import Image

    from nasvit.commands.picked import picked
    from nasvit.data.imagefolder import BROKEN, decode
    from nasvit.pruning.token_sheet import token_picture
    from nasvit.report import load

    trained = picked(load(run), pick)[0]
    try:
        picture = Image.fromarray(decode(image, trained.image_size))
    except BROKEN as error:
        raise ConfigError(f"{image} cannot be read as a picture ({error})") from None
    pixels = np.atleast_3d(np.asarray(picture.convert("L") if trained.in_channels == 1 else picture))  # (H, W, C)
    data = trained.metrics["data"]
    drawn = token_picture(trained.module, torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], mean=data["mean"], std=data["std"])
    if drawn is None:
        raise ConfigError("every block of this network sees every token on its own: there is nothing to show; pick one with a keep ratio "
                          "below 1, or with fsla")
    sheet, blocks = drawn
    try:
        sheet.save(out)
    except ValueError as error:
        raise ConfigError(f"cannot write {out}: {error}; give a name that ends in .png") from None
    typer.echo(f"{blocks} blocks: {out}")
