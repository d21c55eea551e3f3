"""Samples of a search space, built, counted and run: the proof that a space holds what its file promises."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nasvit.arch import Arch
from nasvit.cost import count
from nasvit.models.build import build
from nasvit.space import SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """One sample; error is None where it was built, counted and run with a finite result of the right shape."""

    arch: Arch
    macs: int = 0
    params: int = 0
    error: str | None = None


def probe(space: SearchSpace, *, samples: int, seed: int) -> Iterator[Probed]:
    """Draw Archs, and build, count and run each on one random image; results come one by one."""
    rng = random.Random(seed)
    for _ in range(samples):
        yield _one(space.sample(rng), seed=seed)


def _one(arch: Arch, *, seed: int) -> Probed:
    shape = (1, arch.in_channels, *arch.image_size)
    try:
        module = build(arch, seed=seed).eval()
        cost = count(module, input_shape=shape)
        with torch.inference_mode():
            logits = module(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
        if tuple(logits.shape) != (1, arch.num_classes) or not bool(torch.isfinite(logits).all()):
            return Probed(arch=arch, error=f"gave {tuple(logits.shape)} with finite values {bool(torch.isfinite(logits).all())}")
        return Probed(arch=arch, macs=cost.macs, params=cost.params)
    except Exception as error:  # any failure of any sample is the finding
        return Probed(arch=arch, error=f"{type(error).__name__}: {error}")
