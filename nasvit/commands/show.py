"""`nasvit show`: a picture of the tokens that a network keeps over an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nasvit.errors import ConfigError, RunError


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

    from nasvit.data import load as load_data
    from nasvit.data.augment import Normaliser
    from nasvit.data.imagefolder import BROKEN, decode
    from nasvit.pruning.kept import kept_tokens
    from nasvit.report import load
    from nasvit.report.token_sheet import Panel, token_sheet

    loaded = load(run)
    module, size = _network(loaded, pick=pick)
    data = load_data(str(loaded.experiment["data"]), seed=int(loaded.experiment.get("seed", 0)), image_size=size)
    try:
        picture = Image.fromarray(decode(image, size))
    except BROKEN as error:
        raise ConfigError(f"{image} cannot be read as a picture ({error})") from None
    pixels = np.atleast_3d(np.asarray(picture.convert("L") if data.in_channels == 1 else picture))  # (H, W, C)
    batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    maps = kept_tokens(module, Normaliser.of(data.mean, data.std, device=torch.device("cpu"))(batch))
    if not maps:
        raise ConfigError("every block of this network sees every token on its own: there is nothing to show; pick one with a keep ratio "
                          "below 1, or with fsla")
    panels = [Panel(label=f"{m.where} ({m.share:.0%})" if m.kind != "clusters" else m.where, kind=m.kind, places=m.places.numpy())
              for m in maps]
    try:
        token_sheet(np.repeat(pixels, 3 // pixels.shape[2], axis=2), panels).save(out)
    except ValueError as error:
        raise ConfigError(f"cannot write {out}: {error}; give a name that ends in .png") from None
    typer.echo(f"{len(panels)} blocks: {out}")


def _network(loaded: Any, *, pick: str) -> tuple[Any, tuple[int, int]]:
    """The trained module and the (H, W) it takes."""
    from nasvit.models.build import build
    from nasvit.models.weight_file import read_weights
    from nasvit.pruning.files import load as load_files
    from nasvit.report.picks import pick as choose

    if not pick and (loaded.path / "pruned" / "arch.json").exists():
        module = load_files(loaded.path / "pruned" / "arch.json", loaded.path / "pruned" / "model.safetensors")
        height, width = loaded.experiment["image_size"]
        return module, (int(height), int(width))
    record = choose(loaded, pick or "knee")[0]
    if record.checkpoint is None or not (loaded.path / record.checkpoint).exists():
        raise RunError(f"{loaded.path}: trial {record.trial} has no checkpoint; pick a member of the front")
    arch = record.network()
    module = build(arch, seed=record.seed)
    module.load_state_dict(read_weights(loaded.path / record.checkpoint))
    return module.eval(), arch.image_size
