"""The published models, built from the mixers of the search space and registered with timm.

    import nasvit.zoo, timm
    model = timm.create_model("slide_swin_tiny", num_classes=10, img_size=192)
    nasvit.zoo.load_official(model, "checkpoint.pth")   # the authors' weights
    nasvit.zoo.load_relative(model, timm.create_model("swin_tiny_patch4_window7_224", pretrained=True))   # a start from timm's
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasvit.errors import ConfigError
from nasvit.registry import unknown
from nasvit.zoo import boat, casvit, cswin, evo_deit, evo_levit, slide_pvt, slide_swin  # noqa: F401 (importing registers)
from nasvit.zoo.checkpoint import Checkpoint, Loaded, fill
from nasvit.zoo.family import FAMILIES, Family, family_of, is_classifier
from nasvit.zoo.schedule import reschedule

__all__ = ["FAMILIES", "Checkpoint", "Family", "Loaded", "family_of", "load_official", "load_relative", "reschedule"]


def load_official(model: Any, source: str | Path | Mapping[str, Any]) -> None:
    """Load the authors' weights, from a .safetensors or .pt file or a state dict of their names and layouts.

    Strict: every tensor of the checkpoint is used and every one of the model is filled, else CheckpointError names them and the
    model stays as it was.
    """
    checkpoint = Checkpoint.read(source)
    converted = family_of(model).official(checkpoint, model.arch)
    checkpoint.must_be_used_up()
    fill(model, converted)


def load_relative(model: Any, source: Any, *, kind: str | None = None) -> Loaded:
    """Start from the weights of timm's model that shares shapes with this family; what it does not have keeps its initial value, and so
    does a classifier of another number of classes.

    source: a timm module, or a file or state dict with `kind`, timm's model family in lower case (the error names what is accepted).
    """
    if hasattr(source, "state_dict"):
        kind, source = kind or type(source).__name__.lower(), source.state_dict()
    relatives = family_of(model).relatives
    if kind is None or kind not in relatives:
        raise ConfigError(unknown(f"relative of {family_of(model).name}", str(kind), sorted(relatives)))
    checkpoint = Checkpoint.read(source)
    own = model.state_dict()
    converted = {name: value for name, value in relatives[kind](checkpoint, model.arch).items()
                 if not is_classifier(name) or (name in own and own[name].shape == value.shape)}
    initial = fill(model, converted, partial=True)
    return Loaded(loaded=tuple(converted), initial=tuple(initial), unused=tuple(checkpoint.left))
