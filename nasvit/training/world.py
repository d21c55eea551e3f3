"""The processes of one training: alone, or those that torchrun started, which compute parts of every batch and average gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from nasvit.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process is number `rank` of `size`, and number `local_rank` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes; every process must ask."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def meet(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def joined(*, device: str) -> Iterator[World]:
    """The world that torchrun's environment describes; alone without one. Gloo on CPUs, NCCL on GPUs.

    Raises ConfigError where torchrun started more processes than there are GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    world = World(rank=int(os.environ["RANK"]), size=size, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    gpu = torch.device(device).type == "cuda"
    if gpu:
        if world.local_rank >= torch.cuda.device_count():
            raise ConfigError(f"torchrun started process {world.local_rank} here and there are {torch.cuda.device_count()} GPUs; "
                              "set --nproc-per-node to their number")
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()
