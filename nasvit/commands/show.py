"""`nasvit show`: a picture of the tokens that a network keeps over an image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nasvit.errors import ConfigError

if TYPE_CHECKING:  # frames and torch are brought when the command runs
    from nasvit.finals.trained import Trained
    from nasvit.report.tables import Run


def show(
    run: Annotated[Path, typer.Argument(help="A run of `nasvit search` or `nasvit prune`.")],
    image: Annotated[Path, typer.Option(help="The picture to look at.")],
    pick: Annotated[str, typer.Option(help="knee, best, max-latency:8ms or an id (default: of a pruning its result; of a search the knee "
                                         "or, where that selects no tokens, the most accurate of the front that does).")] = "",
    out: Annotated[Path, typer.Option(help="Where the PNG goes.")] = Path("tokens.png"),
) -> None:
    """Draw which tokens each block keeps, merges or clusters over an image."""
    import numpy as np
    import torch
    from PIL import Image

    from nasvit.data.imagefolder import BROKEN, decode
    from nasvit.pruning.token_sheet import token_picture
    from nasvit.report import load

    for trained in _candidates(load(run), pick):
        try:
            picture = Image.fromarray(decode(image, trained.image_size))
        except BROKEN as error:
            raise ConfigError(f"{image} cannot be read as a picture ({error})") from None
        pixels = np.atleast_3d(np.asarray(picture.convert("L") if trained.in_channels == 1 else picture))  # (H, W, C)
        data = trained.metrics["data"]
        drawn = token_picture(trained.module, torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], mean=data["mean"], std=data["std"])
        if drawn is not None:
            break
    else:
        raise ConfigError(f"every block of {'this network' if pick else 'all networks of the front'} sees every token on its own: there is "
                          "nothing to show; pick one with a keep ratio below 1, or with fsla")
    sheet, blocks = drawn
    try:
        sheet.save(out)
    except ValueError as error:
        raise ConfigError(f"cannot write {out}: {error}; give a name that ends in .png") from None
    typer.echo(f"{blocks} {'blocks' if blocks > 1 else 'block'} of {trained.subject.label}: {out}")


def _candidates(run: Run, pick: str) -> Iterator[Trained]:
    """The network that is asked for; without a word the run's own choice, then the other members of its front, the most accurate first."""
    from nasvit.commands.picked import picked

    yield picked(run, pick)[0]
    if not pick:
        others = run.front[~run.front["knee"]].sort_values("accuracy", ascending=False)
        for arch_id in others["arch_id"]:
            yield picked(run, str(arch_id))[0]
