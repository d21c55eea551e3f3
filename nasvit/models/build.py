"""build(arch, seed=...) is the only constructor of searched networks."""

from __future__ import annotations

import torch

from nasvit.arch import Arch
from nasvit.models.network import Network


def build(arch: Arch, *, seed: int, drop_path: float = 0.0) -> Network:
    """The network of an Arch, on the CPU, in train mode. Pure: the same seed gives bit-equal weights, and the caller's
    random state is untouched. drop_path: the last block's rate of stochastic depth, rising linearly from 0.

    Raises ArchError naming stage and block where a mixer or an MLP cannot be built there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(arch, drop_path=drop_path)
