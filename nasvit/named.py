"""Models by the name timm knows them by, the zoo's among them, untrained and for given images."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from nasvit.errors import ConfigError
from nasvit.registry import unknown
from nasvit.torchvision_ops import ensure


def check_names(names: Iterable[str]) -> None:
    """Raises ConfigError for a name, without "timm:", that timm does not have."""
    timm = _timm()
    for name in names:
        if not timm.is_model(name):
            known = timm.list_models()
            raise ConfigError(unknown("model of timm", name, get_close_matches(name, known, n=20) or known[:20]))


def is_named(name: str) -> bool:
    """Whether timm, or the zoo, has a model of this name, without "timm:"."""
    return bool(_timm().is_model(name))


def make_named(name: str, *, image_size: tuple[int, int], in_channels: int, num_classes: int, seed: int,
               drop_path: float = 0.0) -> nn.Module:
    """An untrained model for these images, at this size where the model accepts one. Equal seeds give bit-equal weights.

    Raises ConfigError for an unknown name, for images that the model cannot be made for, and for a drop_path that it does not take.
    """
    check_names([name])
    timm = _timm()
    given: dict[str, Any] = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
    if drop_path:
        given["drop_path_rate"] = drop_path
    with torch.random.fork_rng(devices=[]):
        for extra in ({"img_size": image_size}, {}):  # without it: a model for any size
            torch.manual_seed(seed)
            settings: dict[str, Any] = {**given, **extra}
            try:
                module: nn.Module = timm.create_model(name, **settings)
                with torch.inference_mode():  # patches that are larger than the image show only here
                    module.eval()(torch.zeros(1, in_channels, *image_size))
                return module.train()
            except TypeError as error:
                if "drop_path" in str(error):
                    raise ConfigError(f"{name} takes no drop_path; set it to 0") from None
                if "img_size" not in str(error):
                    raise
            except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
                size = "x".join(map(str, image_size))
                raise ConfigError(f"timm cannot make {name} for images of {size} px with {in_channels} channels "
                                  f"({type(error).__name__}: {error}); give a side that suits it (--image-size 224), or take another model"
                                  ) from error
    raise ConfigError(f"timm cannot make {name}")


def _timm() -> Any:
    """timm, with the zoo's models; imported here because that takes longer than all of nasvit."""
    ensure()
    import timm

    import nasvit.zoo  # noqa: F401 (importing it registers its models)

    return timm
