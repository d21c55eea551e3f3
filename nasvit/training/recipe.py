"""Recipe: how to train, as frozen data. A proxy's recipe is the final one, shortened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nasvit.errors import ConfigError
from nasvit.registry import unknown

_TINY = 1e-12  # "above 0"
_HUGE = 1e30
_RANGES: tuple[tuple[tuple[str, ...], float, float, str], ...] = (
    (("lr", "distill_temperature", "augment_epochs"), _TINY, _HUGE, "a number above 0"),
    (("weight_decay", "clip_grad", "mixup", "cutmix"), 0, _HUGE, "a number, 0 or above"),
    (("final_lr", "aux_weight", "distill_weight", "mix_switch", "erase"), 0, 1, "a number from 0 to 1"),
    (("warmup", "label_smoothing", "ema"), 0, 1 - _TINY, "a number from 0 to below 1"),
    (("batch_size",), 2, _HUGE, "a whole number, 2 or above"),
    (("accumulate",), 1, _HUGE, "a whole number, 1 or above"),
)
_POLICY = re.compile(r"rand(-[a-z]+[\d.]+)*")  # timm's spelling of RandAugment


@dataclass(frozen=True)
class Recipe:
    """How to train; every field can be set in an experiment file. Raises ConfigError for a value that makes no sense."""

    lr: float | None = None
    """Highest learning rate; None: `default_lr` of the network."""
    final_lr: float = 0.01
    """Last learning rate, as a share of `lr`."""
    weight_decay: float = 0.05
    """Of matrices and kernels; vectors, biases, position tables and class tokens have none."""
    batch_size: int = 32
    """Images of one step, whatever the number of processes and the accumulation."""
    accumulate: int = 1
    """Parts a batch is computed in, one after the other, to save memory; their gradients are added."""
    warmup: float = 0.2
    """Share of the steps in which the learning rate rises."""
    label_smoothing: float = 0.1
    augment: str = "light"
    """"light" (shifted crop, mirror, brightness and contrast), "none", or timm's spelling of RandAugment, such as
    "rand-m9-mstd0.5-inc1", which comes before the light one (Cubuk et al. 2020, arXiv 1909.13719)."""
    augment_epochs: float = 20.0
    """After so many epochs every image is augmented; before, a share of them that grows in proportion. A short training sees no image often
    enough to need it. Measured on the digits, a vision transformer of 27,000 parameters, 350 / 1,500 steps: without augmentation
    0.89 / 0.96, all images augmented from the start 0.66 / 0.97, growing over 20 epochs 0.87 / 0.98."""
    flip: bool | None = None
    """Mirror images; None: as the data set says."""
    mixup: float = 0.0
    """Alpha of mixup; 0 = off (Zhang et al. 2018)."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 = off (Yun et al. 2019). With both, each batch takes one of them."""
    mix_switch: float = 0.5
    """Chance of CutMix where both are on."""
    erase: float = 0.0
    """Chance of an image to lose a random rectangle to noise (Zhong et al. 2020)."""
    clip_grad: float = 1.0
    """Largest norm of the gradient; 0 = off."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then what is evaluated and kept; 0 = off."""
    aux_weight: float = 0.5
    """Share of the class token's loss where the network has one besides its logits."""
    distill_weight: float = 0.5
    """Share of the teacher's loss where a teacher is given."""
    distill_temperature: float = 2.0
    amp: bool | None = None
    """Automatic mixed precision; None: on a GPU alone (on a CPU bfloat16 was 1.1 to 2.2 times slower than float32)."""
    channels_last: bool | None = None
    """Channels-last memory; None: on a GPU alone."""

    def __post_init__(self) -> None:
        for names, low, high, accepted in _RANGES:
            for name in names:
                value = getattr(self, name)
                if name == "lr" and value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                    raise ConfigError(f"recipe: {name} is {value!r}; accepted: {accepted}")
                if name in ("batch_size", "accumulate") and not isinstance(value, int):
                    raise ConfigError(f"recipe: {name} is {value!r}; accepted: {accepted}")
        if not isinstance(self.augment, str) or (self.augment not in ("light", "none") and not _POLICY.fullmatch(self.augment)):
            raise ConfigError(f"recipe: augment is {self.augment!r}; accepted: 'light', 'none' or timm's RandAugment, such as "
                              "'rand-m9-mstd0.5-inc1'")
        for name in ("flip", "amp", "channels_last"):
            if getattr(self, name) not in (None, True, False):
                raise ConfigError(f"recipe: {name} is {getattr(self, name)!r}; accepted: true, false or null")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Recipe:
        """From an experiment file's mapping; raises ConfigError for an unknown name."""
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise ConfigError(unknown("recipe setting", str(name), names))
        return cls(**settings)
