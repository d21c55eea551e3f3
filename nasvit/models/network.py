"""The one network of the search: stem, stages, head, behind timm's model interface.

Legend: B images, H x W pixels or the grid, C channels of the last stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.arch import Arch
from nasvit.errors import ConfigError
from nasvit.models.blocks import StageModule
from nasvit.models.layers import ConvStem, PatchStem, initialise, trunc_normal_


class Network(nn.Module):
    """An Arch as a module: (B, in_channels, H, W) -> (B, num_classes). Made by `build`.

    The class token, which scores tokens for slow-fast blocks, lives from the stem (`stem.class_token`) or from the first
    stage with such a block, until the last stage with one (the last stage, where the stem has it). Its classifier is
    used in training alone, through `forward_aux`. The prediction is the mean of all patch tokens.
    """

    def __init__(self, arch: Arch, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.arch = arch
        self.num_classes = arch.num_classes
        self.global_pool = "avg"
        dims = [stage.embed_dim for stage in arch.stages]
        self.num_features = self.head_hidden_size = dims[-1]
        stem = ConvStem if arch.stem.kind == "conv" else PatchStem
        self.stem = stem(arch.in_channels, dims[0], stride=arch.stem.stride)
        height, width = arch.grid(0)
        self.pos_embed = nn.Parameter(torch.zeros(1, height, width, dims[0])) if arch.stem.pos_embed else None

        slow = [i for i, stage in enumerate(arch.stages) if any(b.keep_ratio < 1 for b in stage.blocks)]
        self.class_from = 0 if arch.stem.class_token else min(slow, default=None)
        self.class_until = len(dims) - 1 if arch.stem.class_token else max(slow, default=None)
        self.class_token = None if self.class_from is None else nn.Parameter(torch.zeros(1, 1, dims[self.class_from]))

        rates = torch.linspace(0, drop_path, sum(len(s.blocks) for s in arch.stages)).tolist()
        self.stages = nn.ModuleList()
        for i, stage in enumerate(arch.stages):
            mine, rates = rates[: len(stage.blocks)], rates[len(stage.blocks):]
            self.stages.append(StageModule(stage, index=i, in_dim=dims[max(0, i - 1)], resolution=arch.grid(i),
                                           drop_paths=mine, class_enters=self._class_enters(i)))
        self.norm: nn.Module = nn.LayerNorm(dims[-1])
        self.head: nn.Module = nn.Linear(dims[-1], arch.num_classes)
        if self.class_until is not None:
            self.aux_norm = nn.LayerNorm(dims[self.class_until])
            self.aux_head: nn.Module = nn.Linear(dims[self.class_until], arch.num_classes)
        self.feature_info = [{"num_chs": dim, "reduction": arch.stem.stride * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)]
        initialise(self)
        for parameter in (self.pos_embed, self.class_token):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)

    def _class_enters(self, stage: int) -> bool:
        return self.class_from is not None and self.class_until is not None and self.class_from < stage <= self.class_until

    def _run(self, x: Tensor, upto: int | None = None) -> tuple[list[Tensor], Tensor | None]:
        """The outputs of the stages up to `upto`, (B, H, W, C) each, and the class token where its life ended."""
        if x.shape[1:] != (self.arch.in_channels, *self.arch.image_size):
            raise ConfigError(f"this network takes images of shape {(self.arch.in_channels, *self.arch.image_size)}, "
                              f"not {tuple(x.shape[1:])}; build the Arch for that size")
        x = self.stem(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        outputs, class_token, ended = [], None, None
        for i, stage in enumerate(self.stages[: None if upto is None else upto + 1]):
            if i == self.class_from and self.class_token is not None:
                class_token = self.class_token.expand(x.shape[0], -1, -1)
            x, class_token = stage(x, class_token)
            outputs.append(x)
            if i == self.class_until:
                class_token, ended = None, class_token
        return outputs, ended

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, H', W', C), the last stage's tokens, not normalised (the head does that after the mean)."""
        return self._run(x)[0][-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H', W', C) -> (B, num_classes), or (B, C) before the classifier."""
        x = self.norm(x.mean(dim=(1, 2)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_aux(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits, and the class token's own logits for the auxiliary loss (None without slow-fast blocks)."""
        outputs, class_token = self._run(x)
        aux = None if class_token is None else self.aux_head(self.aux_norm(class_token.squeeze(1)))
        return self.forward_head(outputs[-1]), aux

    def forward_intermediates(self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False, stop_early: bool = False,
                              output_fmt: str = "NCHW", intermediates_only: bool = False) -> Any:
        """timm's pyramid interface: outputs of the chosen stages (all by default, the last n for an int), NCHW or NHWC."""
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt must be NCHW or NHWC, not {output_fmt!r}")
        chosen = self._chosen(indices)
        outputs, _ = self._run(x, upto=max(chosen) if stop_early else None)
        maps = [self.norm(outputs[i]) if norm and i == len(self.stages) - 1 else outputs[i] for i in chosen]
        if output_fmt == "NCHW":
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return maps if intermediates_only else (outputs[-1], maps)

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """timm's hook for backbones: drops the stages behind the last one used, and the head. Returns the stages' indices."""
        chosen = self._chosen(indices)
        self.stages = self.stages[: max(chosen) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.head = nn.Identity()
        return chosen

    def _chosen(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.arch.stages)
        last = count if indices is None else indices
        wanted = list(range(count - last, count)) if isinstance(last, int) else list(last)
        chosen = [i + count if i < 0 else i for i in wanted]
        if not chosen or any(not 0 <= i < count for i in chosen):
            raise ConfigError(f"stage indices {wanted} are not among 0 to {count - 1} (negative ones count from the end)")
        return chosen

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (and a new one for the class token) for `num_classes`; 0 leaves the features."""
        if global_pool not in (None, "avg"):
            raise ConfigError(f"global_pool must be 'avg', not {global_pool!r}")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        heads = [self.head]
        if self.class_until is not None:
            self.aux_head = nn.Linear(self.aux_norm.normalized_shape[0], num_classes) if num_classes else nn.Identity()
            heads.append(self.aux_head)
        for head in heads:
            initialise(head)

    def no_weight_decay(self) -> set[str]:
        """Names excluded from weight decay beside the one-dimensional ones (timm's hook)."""
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in ("pos_embed", "class_token") or "table" in name}
