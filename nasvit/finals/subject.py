"""Subject: a network to be trained in full, and what the search knew of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nasvit.arch import Arch
from nasvit.data import DataSet
from nasvit.errors import ConfigError
from nasvit.models.build import build
from nasvit.named import make_named
from nasvit.pruning.plan import Plan

NOT_ANEW = ("a pruned model is not trained anew, because its weights are those of its dense model; for a longer recovery prune once more, "
            "with a larger --recover-epochs and another --out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An Arch, the Plan of a pruned model, or a model of timm by `model` (without "timm:"). id: the name of its folder.

    searched: what the run recorded: origin ("search", "random" or "baseline"), trial, rung, accuracy, latency_ms with its interval.
    """

    id: str
    arch: Arch | None = None
    plan: Plan | None = None
    model: str | None = None
    searched: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_arch(cls, arch: Arch, **searched: Any) -> Subject:
        return cls(id=arch.id, arch=arch, searched=searched)

    @classmethod
    def of_model(cls, name: str, **searched: Any) -> Subject:
        """`timm:NAME`; raises ConfigError for another spelling."""
        if not name.startswith("timm:"):
            raise ConfigError(f"a model is timm:NAME, such as timm:levit_128s, not {name!r}")
        short = name.removeprefix("timm:")
        return cls(id=re.sub(r"[^A-Za-z0-9_.-]", "_", short).lstrip(".-") or "model", model=short, searched=searched)

    @property
    def label(self) -> str:
        """For people: the model's name, or the id of its Arch or Plan."""
        return f"timm:{self.model}" if self.model else f"{self.plan.source.name}, pruned: {self.id}" if self.plan else self.id

    def make(self, *, image_size: tuple[int, int], in_channels: int, num_classes: int, seed: int, drop_path: float = 0.0) -> nn.Module:
        """The untrained network. Raises ConfigError for an Arch that is for other images or classes, and for a Plan."""
        if self.plan is not None:
            raise ConfigError(f"{self.label}: {NOT_ANEW}")
        if self.arch is None:
            assert self.model is not None
            return make_named(self.model, image_size=image_size, in_channels=in_channels, num_classes=num_classes, seed=seed,
                              drop_path=drop_path)
        own, wanted = (self.arch.image_size, self.arch.in_channels, self.arch.num_classes), (image_size, in_channels, num_classes)
        if own != wanted:
            raise ConfigError(f"network {self.id} is for images of {own[0]} with {own[1]} channels and {own[2]} classes; the data has "
                              f"{wanted[0]}, {wanted[1]} and {wanted[2]}")
        return build(self.arch, seed=seed, drop_path=drop_path)

    def make_for(self, data: DataSet, *, seed: int, drop_path: float = 0.0) -> nn.Module:
        """`make` for the images and classes of a data set."""
        return self.make(image_size=data.image_size, in_channels=data.in_channels, num_classes=data.num_classes, seed=seed,
                         drop_path=drop_path)
