"""What the families of published models have in common: from arguments to an Arch, timm's registration, and its defaults.

A family is a function from arguments to an Arch, and a function from the authors' checkpoint to our names. The network is the one
that `build` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nasvit.arch import Arch, Grid
from nasvit.errors import ConfigError
from nasvit.models.network import Network
from nasvit.registry import Registry
from nasvit.torchvision_ops import ensure
from nasvit.zoo.checkpoint import Checkpoint

ensure()
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402 (timm needs torchvision importable first)
from timm.models import build_model_with_cfg  # noqa: E402

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One published system.

    arch: `arch(image_size=(H, W), in_channels=.., num_classes=.., **arguments) -> Arch`.
    official: the authors' checkpoint to our names; takes every tensor it uses out of the Checkpoint.
    relatives: timm's checkpoints that share shapes with this family, by timm's model class (lower case), to our names; what they
    leave open keeps its initial value.
    """

    name: str
    arch: Callable[..., Arch]
    official: Callable[[Checkpoint, Arch], State]
    relatives: Mapping[str, Callable[[Checkpoint, Arch], State]]


FAMILIES: Registry[Family] = Registry("model family")

CLASSIFIERS = ("head", "head_dist", "aux_head", "aux_head_dist")


def is_classifier(name: str) -> bool:
    """Whether a tensor of this name has as many rows as there are classes."""
    return name.rpartition(".")[0] in CLASSIFIERS


def family_of(model: Any) -> Family:
    """The family a zoo model was made by; raises ConfigError for any other module."""
    name = getattr(model, "family", None)
    if name is None:
        raise ConfigError(f"{type(model).__name__} is not a model of nasvit.zoo; make one with timm.create_model after `import nasvit.zoo`")
    return FAMILIES[name]


def create(family: str, variant: str, *, pretrained: bool = False, defaults: Mapping[str, Any], **kwargs: Any) -> Any:
    """A registered model with timm's arguments: num_classes, in_chans, img_size, drop_path_rate, features_only, out_indices.

    `defaults` are the variant's arguments of the family's `arch`; any of them can be given anew, as keywords.
    """
    def make(*, num_classes: int = 1000, in_chans: int = 3, img_size: int | Grid = 224, drop_path_rate: float = 0.0,
             global_pool: str | None = None, **arguments: Any) -> Any:
        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        unknown = sorted(set(arguments) - set(defaults))
        if unknown:
            raise ConfigError(f"{variant}: unknown arguments {', '.join(unknown)}; accepted beside timm's: {', '.join(sorted(defaults))}")
        arch = FAMILIES[family].arch(image_size=size, in_channels=in_chans, num_classes=num_classes or 1, **{**defaults, **arguments})
        model: Any = Network(arch, drop_path=drop_path_rate)
        model.family = family
        if num_classes == 0 or global_pool is not None:
            model.reset_classifier(num_classes, global_pool)
        return model

    return build_model_with_cfg(make, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
                                feature_cfg={"feature_cls": "getter", "out_indices": kwargs.pop("out_indices", None)}, **kwargs)


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: Network) -> State:
    """timm's hook: the authors' names, or ours, to ours. Raises CheckpointError naming what does not fit.

    Ours may be of another number of classes, or none: timm leaves out the classifiers that the default_cfg names.
    """
    if {name for name in state if not is_classifier(name)} == {name for name in model.state_dict() if not is_classifier(name)}:
        return dict(state)
    checkpoint = Checkpoint.of(state)
    converted = family_of(model).official(checkpoint, model.arch)
    checkpoint.must_be_used_up()
    return converted


def cfg(first_conv: str, *, classifier: str | tuple[str, ...] = "head", **kwargs: Any) -> dict[str, Any]:
    """timm's default_cfg of a model of 224 px for ImageNet-1k; none of the authors' checkpoints is hosted for download here."""
    return {"url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.9, "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "fixed_input_size": True, "first_conv": first_conv,
            "classifier": classifier, **kwargs}
