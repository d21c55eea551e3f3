"""The images of every step. All chance follows from the seed, the step and the part: a training continued at a step sees what
it would have seen, and parts computed on two processes are those of one.

Legend: B images of a part, C channels, H x W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nasvit.data import DataSet
from nasvit.data.augment import Normaliser, light_batch
from nasvit.errors import ConfigError
from nasvit.torchvision_ops import ensure
from nasvit.training.recipe import Recipe

_MASK = (1 << 64) - 1
_ORDER, _LIGHT, _POLICY, _MIX, _DROP = range(5)  # what a draw is for


def chance(*parts: int) -> int:
    """A seed in [0, 2**63) that follows from the parts alone (SplitMix64 over them)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ part) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state = (state ^ state >> 31) + 0x9E3779B97F4A7C15 & _MASK
    return state >> 1


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(chance(seed, _ORDER, epoch)))


def batch_index(step: int, *, count: int, size: int, seed: int) -> Tensor:
    """(size,) indices of a step's images: one permutation per epoch; an incomplete last batch is left out, so no batch norm sees a
    single image."""
    epoch, number = divmod(step, count // size)
    return _permutation(seed, epoch, count)[number * size : (number + 1) * size]


@contextmanager
def _global_draws(seed: int) -> Iterator[None]:
    """timm's augmentations draw from Python's and NumPy's global states: seeded here, and given back."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def seed_dropout(*, seed: int, step: int, part: int, device: torch.device) -> None:
    """Dropout and drop path draw from torch's global generators. (torch.manual_seed also formats a stack for every unused back end.)"""
    value = chance(seed, _DROP, step, part)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)


class Examples:
    """`examples(step, part)` -> images (B, C, H, W) normalised and augmented, and labels (B,), or (B, classes) where images are mixed.

    parts: how many a batch is computed in. size: images of a step. steps_before: of earlier trainings; augmentation grows on.
    """

    def __init__(self, data: DataSet, *, seed: int, recipe: Recipe, device: torch.device, steps_before: int = 0, parts: int = 1) -> None:
        self.recipe, self.seed, self.parts, self.before = recipe, seed, parts, steps_before
        self.images, self.labels = data.train.images.to(device), data.train.labels.to(device)
        self.normalise = Normaliser.of(data.mean, data.std, device=device)
        self.flip = data.flip if recipe.flip is None else recipe.flip
        self.count = len(self.labels)
        self.size = min(recipe.batch_size, self.count)
        self.size -= self.size % parts if self.size < recipe.batch_size else 0
        mixes = bool(recipe.mixup or recipe.cutmix)
        least = 4 if mixes and self.size // parts % 2 else 2
        if self.size % parts or self.size // parts < least or (mixes and self.size // parts % 2):
            even = ", each part even, because mixup and CutMix pair its images" if mixes else ""
            raise ConfigError(f"a batch of {self.size} images cannot be computed in {parts} parts; accepted: a batch_size that accumulate "
                              f"times processes ({parts}) divides into parts of at least 2{even}")
        self.policy = _rand_augment(recipe.augment, data) if recipe.augment.startswith("rand") else None
        self.mix = _mixing(recipe, classes=data.num_classes) if mixes else None
        self.eraser = _erasing(recipe.erase, device=device) if recipe.erase else None

    @property
    def epochs(self) -> float:
        """Of one step."""
        return self.size / self.count

    def __call__(self, step: int, part: int = 0) -> tuple[Tensor, Tensor]:
        width = self.size // self.parts
        index = batch_index(step, count=self.count, size=self.size, seed=self.seed)[part * width : (part + 1) * width]
        index = index.to(self.images.device)
        x, labels = self._augmented(index, step, part), self.labels[index]
        if self.eraser is None and self.mix is None:
            return x, labels
        with _global_draws(chance(self.seed, _MIX, step, part)):
            if self.eraser is not None:
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(chance(self.seed, _MIX, step, part))
                    x = self.eraser(x)
            return (x, labels) if self.mix is None else self.mix(x, labels)

    def _augmented(self, index: Tensor, step: int, part: int) -> Tensor:
        if self.recipe.augment == "none":
            return self.normalise(self.images[index])
        share = min(1.0, (self.before * min(self.recipe.batch_size, self.count) / self.count + (step + 1) * self.epochs)
                    / self.recipe.augment_epochs)
        generator = torch.Generator().manual_seed(chance(self.seed, _LIGHT, step, part))
        images = self.images
        if self.policy is not None:
            with _global_draws(chance(self.seed, _POLICY, step, part)):
                images = _apply(self.policy, self.images[index], share=share)
            index = torch.arange(len(index), device=index.device)
        return light_batch(images, index, self.normalise, flip=self.flip, share=share, generator=generator)


def _apply(policy: Callable[[Any], Any], images: Tensor, *, share: float) -> Tensor:
    """A share of the uint8 images (B, C, H, W) through a function of Pillow images."""
    done = []
    for pixels in images.permute(0, 2, 3, 1).cpu().numpy():  # (B, H, W, C)
        if random.random() < share:
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            pixels = np.asarray(policy(picture)).reshape(pixels.shape)
        done.append(pixels)
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2).to(images.device)


def _rand_augment(text: str, data: DataSet) -> Callable[[Any], Any]:
    """timm's RandAugment with timm's own settings for size and fill colour."""
    if data.in_channels not in (1, 3):
        raise ConfigError(f"recipe: augment {text!r} is for images of 1 or 3 channels, not {data.in_channels}; accepted: light, none")
    ensure()
    from timm.data.auto_augment import rand_augment_transform

    fill = tuple(min(255, round(255 * value)) for value in data.mean)
    settings = {"translate_const": int(min(data.image_size) * 0.45), "img_mean": fill[0] if len(fill) == 1 else fill}
    try:
        transform: Callable[[Any], Any] = rand_augment_transform(text, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise ConfigError(f"recipe: augment {text!r} is not a RandAugment of timm ({error}); such as 'rand-m9-mstd0.5-inc1'") from None
    return transform


def _mixing(recipe: Recipe, *, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    ensure()
    from timm.data import Mixup

    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(
        mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, switch_prob=recipe.mix_switch, label_smoothing=recipe.label_smoothing,
        num_classes=classes)
    return mix


def _erasing(share: float, *, device: torch.device) -> Callable[[Tensor], Tensor]:
    ensure()
    from timm.data.random_erasing import RandomErasing

    erase: Callable[[Tensor], Tensor] = RandomErasing(share, mode="pixel", device=str(device))
    return erase
