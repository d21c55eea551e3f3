"""The one network of the search: stem, stages, head, behind timm's model interface.

Legend: B images, H x W pixels or the grid, C channels of the last stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nasvit.arch import Arch
from nasvit.errors import ConfigError
from nasvit.models.blocks import Selected, StageModule
from nasvit.models.folding import affine, foldable, merge_linears_, scale_input_
from nasvit.models.layers import ChannelBatchNorm, initialise, make_norm
from nasvit.models.patch_embed import make_stem

_TABLES = ("pos_embed", "class_token", "class_position")


class Network(nn.Module):
    """An Arch as a module: (B, in_channels, H, W) -> (B, num_classes). Made by `build`.

    The class token lives from the stem (`stem.class_token`), from the last stage (head kind "class_token") or from the first stage
    with a slow-fast block, until the last stage with one (the last stage in the first two cases). It scores tokens for slow-fast
    blocks; unless the head predicts from it, its own classifier is used in training alone, through `forward_aux`.
    With `distilled_training` a network with a distillation head returns both logits in training, as timm's do.
    """

    distilled_training = False

    def __init__(self, arch: Arch, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.arch = arch
        self.num_classes = arch.num_classes
        self.global_pool = "token" if arch.head.kind == "class_token" else "avg"
        dims = [stage.embed_dim for stage in arch.stages]
        self.num_features = self.head_hidden_size = dims[-1]
        self.stem = make_stem(arch)
        self.pos_embed = self._positions(0) if arch.stem.pos_embed else None
        self._class_token_life()

        rates = torch.linspace(0, drop_path, sum(len(s.blocks) for s in arch.stages), device="cpu").tolist()
        self.stages = nn.ModuleList()
        scored = False
        for i, stage in enumerate(arch.stages):
            mine, rates = rates[: len(stage.blocks)], rates[len(stage.blocks):]
            module = StageModule(arch, i, drop_paths=mine, class_enters=self._class_enters(i), class_begins=i == self.class_from,
                                 scored=scored, keeps_only=self._keeps_only(i))
            scored = module.leaves_scored
            self.stages.append(module)
        used = False
        for later in reversed(self.stages):
            used = cast(StageModule, later).use_score(used)
        head = arch.head
        self.norm = make_norm(head.norm, dims[-1], eps=arch.norm_eps)
        self.head: nn.Module = nn.Identity()
        if head.distillation:
            # the norm before the mean is one for both; behind it each classifier has its own
            self.norm_dist: nn.Module = nn.Identity() if self._norm_first else make_norm(head.norm, dims[-1], eps=arch.norm_eps)
            self.head_dist: nn.Module = nn.Identity()
        if self.class_until is not None and head.kind != "class_token":
            self.aux_norm = make_norm(head.norm, dims[self.class_until], eps=arch.norm_eps)
            self.aux_head: nn.Module = nn.Identity()
            if head.distillation:  # LeViT's class token learns from the teacher as well
                self.aux_norm_dist = make_norm(head.norm, dims[self.class_until], eps=arch.norm_eps)
                self.aux_head_dist: nn.Module = nn.Identity()
        self._make_classifiers()
        ends = [i for i in range(len(dims)) if i + 1 == len(dims) or arch.stages[i + 1].downsample != "none"]
        self.feature_stages = ends
        if head.feature_norms:
            self.feature_norms = nn.ModuleList(make_norm(head.norm, dims[i], eps=arch.norm_eps) for i in ends)
        self.feature_info = [{"num_chs": dims[i], "reduction": arch.stem.stride * 2**n, "module": f"stages.{i}"}
                             for n, i in enumerate(ends)]
        initialise(self)
        for name, parameter in self.named_parameters():
            if name.rsplit(".", 1)[-1] in _TABLES:
                nn.init.trunc_normal_(parameter, std=0.02)

    @property
    def _norm_first(self) -> bool:
        return self.arch.head.kind in ("norm_mean", "class_token")

    def _positions(self, stage: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(1, *self.arch.grid(stage), self.arch.stages[stage].embed_dim))

    def _class_token_life(self) -> None:
        """Sets class_from, class_until, class_token and class_position (its share of the learned positions where it begins)."""
        arch, last = self.arch, len(self.arch.stages) - 1
        slow = [i for i, stage in enumerate(arch.stages) if any(b.keep_ratio < 1 for b in stage.blocks)]
        predicts = arch.head.kind == "class_token"
        whole = arch.stem.class_token or predicts
        self.class_from = 0 if arch.stem.class_token else min([*slow, *([last] if predicts else [])], default=None)
        self.class_until = last if whole else max(slow, default=None)
        self.class_token = self.class_position = None
        if self.class_from is not None:
            dim = arch.stages[self.class_from].embed_dim
            self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
            if arch.stem.pos_embed if self.class_from == 0 else arch.stages[self.class_from].pos_embed:
                self.class_position = nn.Parameter(torch.zeros(1, 1, dim))

    def _class_enters(self, stage: int) -> bool:
        return self.class_from is not None and self.class_until is not None and self.class_from < stage <= self.class_until

    def _keeps_only(self, stage: int) -> bool:
        return self.arch.head.kind == "mean_kept" and stage + 1 == len(self.arch.stages)

    def _run(self, x: Tensor, upto: int | None = None,
             traces: list[list[Selected]] | None = None) -> tuple[list[Tensor], Tensor | None]:
        """The outputs of the stages up to `upto`, (B, H, W, C) each, and the class token where its life ended. traces, where given,
        receives for each stage what its segments select."""
        if x.shape[1:] != (self.arch.in_channels, *self.arch.image_size):
            raise ConfigError(f"this network takes images of shape {(self.arch.in_channels, *self.arch.image_size)}, "
                              f"not {tuple(x.shape[1:])}; build the Arch for that size")
        x = self.stem(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        outputs, class_token, ended, score = [], None, None, None
        for i, stage in enumerate(self.stages[: None if upto is None else upto + 1]):
            if i == self.class_from and self.class_token is not None:
                begins = self.class_token if self.class_position is None else self.class_token + self.class_position
                class_token = begins.expand(x.shape[0], -1, -1)
            trace: list[Selected] | None = None if traces is None else []
            x, class_token, score = stage(x, class_token, score, trace)
            outputs.append(x)
            if traces is not None and trace is not None:
                traces.append(trace)
            if i == self.class_until:
                class_token, ended = None, class_token
        return outputs, ended

    def selected(self, x: Tensor) -> list[list[Selected]]:
        """(B, in, H, W) -> for each stage its slow-fast segments: first block, the one behind the last, raster positions kept (B, k)."""
        traces: list[list[Selected]] = []
        self._run(x, traces=traces)
        return traces

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        outputs, class_token = self._run(x)
        return self._final(outputs[-1], class_token), class_token

    def _final(self, x: Tensor, class_token: Tensor | None) -> Tensor:
        """What the head takes, of the last stage's output and the class token."""
        if self.arch.head.kind == "class_token" and class_token is not None:
            x = torch.cat([class_token, x.flatten(1, 2)], dim=1)
        return self.norm(x) if self._norm_first else x

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, H', W', C), the last stage's tokens; with a class token head (B, 1 + H'W', C), the class token first.

        Normalised where the head's norm comes before the mean, as timm does.
        """
        return self._features(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """What `forward_features` gives -> (B, num_classes), or (B, C) before the classifier."""
        pooled = x[:, 0] if self.arch.head.kind == "class_token" else x.mean(dim=(1, 2))
        normed = pooled if self._norm_first else self.norm(pooled)
        if pre_logits:
            return normed
        logits = self.head(normed)
        if not hasattr(self, "head_dist"):
            return logits
        second = self.head_dist(self.norm_dist(pooled))
        return (logits, second) if self.training and self.distilled_training else (logits + second) / 2

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))

    def forward_aux(self, x: Tensor) -> tuple[Any, Any]:
        """The logits, and the class token's own logits for the auxiliary loss (None where it has no classifier of its own).

        A network with a distillation head has two of both: with `distilled_training` pairs, else their means.
        """
        features, class_token = self._features(x)
        if class_token is None or not hasattr(self, "aux_head"):
            return self.forward_head(features), None
        token = class_token.squeeze(1)
        own = self.aux_head(self.aux_norm(token))
        if hasattr(self, "aux_head_dist"):
            second = self.aux_head_dist(self.aux_norm_dist(token))
            own = (own, second) if self.training and self.distilled_training else (own + second) / 2
        return self.forward_head(features), own

    def set_distilled_training(self, enable: bool = True) -> None:
        """timm's hook: whether training returns the logits of both heads instead of their mean."""
        self.distilled_training = enable

    def forward_intermediates(self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False, stop_early: bool = False,
                              output_fmt: str = "NCHW", intermediates_only: bool = False) -> Any:
        """timm's pyramid interface: outputs of the chosen stages (all by default, the last n for an int), NCHW or NHWC; before them, unless
        `intermediates_only`, what `forward_features` gives (where the stages end earlier, the last one's output).

        With the head's feature_norms each is normalised on its own; else the last one by the head's norm, where `norm` asks for it.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt must be NCHW or NHWC, not {output_fmt!r}")
        chosen = [self.feature_stages[i] for i in self._chosen(indices)]
        outputs, class_token = self._run(x, upto=max(chosen) if stop_early else None)
        last = len(self.arch.stages) - 1  # stages may have been pruned, and the norm is the last one's
        if self.arch.head.feature_norms:
            maps = [self.feature_norms[self.feature_stages.index(i)](outputs[i]) for i in chosen]
        else:
            maps = [self.norm(outputs[i]) if norm and i == last else outputs[i] for i in chosen]
        if output_fmt == "NCHW":
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        if intermediates_only:
            return maps
        return (self._final(outputs[-1], class_token) if len(outputs) > last else outputs[-1]), maps

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """timm's hook for backbones: drops the stages behind the last one used, and the head. Returns the stages' indices."""
        chosen = self._chosen(indices)
        self.stages = self.stages[: self.feature_stages[max(chosen)] + 1]
        if self.arch.head.feature_norms:
            self.feature_norms = self.feature_norms[: max(chosen) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            for stage in self.stages:
                cast(StageModule, stage).keeps_only = False  # nothing predicts from the kept tokens now: the maps are whole
            self.num_classes = 0
            self._make_classifiers()
        return chosen

    def _chosen(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.feature_stages)
        last = count if indices is None else indices
        if isinstance(last, int) and not 1 <= last <= count:
            raise ConfigError(f"the last {last} of {count} scales cannot be given; accepted: 1 to {count}")
        wanted = list(range(count - last, count)) if isinstance(last, int) else list(last)
        chosen = [i + count if i < 0 else i for i in wanted]
        if not chosen or any(not 0 <= i < count for i in chosen):
            raise ConfigError(f"stage indices {wanted} are not among 0 to {count - 1} (negative ones count from the end)")
        return chosen

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return (self.head, self.head_dist) if hasattr(self, "head_dist") else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers for `num_classes`, the class token's and the distillation's too; 0 leaves the features."""
        if global_pool not in (None, self.global_pool):
            raise ConfigError(f"global_pool must be {self.global_pool!r}, not {global_pool!r}")
        self.num_classes = num_classes
        for head in self._make_classifiers():
            initialise(head)

    def _make_classifiers(self) -> list[nn.Module]:
        made, place = [], next(self.stem.parameters())
        for name, dim in (("head", self.num_features), ("head_dist", self.num_features), ("aux_head", self._aux_dim),
                          ("aux_head_dist", self._aux_dim)):
            if hasattr(self, name):
                linear = nn.Linear(dim, self.num_classes, device=place.device, dtype=place.dtype) if self.num_classes else None
                setattr(self, name, linear or nn.Identity())
                made.append(getattr(self, name))
        return made

    @property
    def _aux_dim(self) -> int:
        return 0 if self.class_until is None else self.arch.stages[self.class_until].embed_dim

    def deploy_(self) -> None:
        """One classifier, with the batch norm before it inside; the auxiliary classifier goes."""
        for name in ("aux_head", "aux_norm", "aux_head_dist", "aux_norm_dist"):
            if hasattr(self, name):
                delattr(self, name)
        if not isinstance(self.head, nn.Linear):
            return
        heads: list[Any] = [self.head]
        norms: list[Any] = [self.norm]
        if hasattr(self, "head_dist"):
            heads.append(self.head_dist)
            norms.append(self.norm if self._norm_first else self.norm_dist)
        if isinstance(self.norm, ChannelBatchNorm) and foldable(self.norm.bn):
            for head, norm in zip(heads, norms, strict=True):
                scale_input_(head, *affine(norm.bn))
            self.norm = nn.Identity()
        elif len(heads) == 2 and not self._norm_first:  # both layer norms normalise alike, and differ in scale and shift alone
            for head, norm in zip(heads, norms, strict=True):
                scale_input_(head, norm.weight.double(), norm.bias.double())
            self.norm = nn.LayerNorm(self.num_features, eps=self.arch.norm_eps, elementwise_affine=False)
        if len(heads) == 2:
            merge_linears_(*heads)
            del self.head_dist, self.norm_dist

    def no_weight_decay(self) -> set[str]:
        """Names excluded from weight decay beside the one-dimensional ones (timm's hook)."""
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in _TABLES or "table" in name}
