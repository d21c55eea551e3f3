"""The owned network of plain transformers, with their token operators.

Legend: B images, P prefix tokens (class, distillation, registers), N tokens of the grid, T of them now, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.models import tokens
from nasvit.pruning import operators
from nasvit.pruning.blocks import Block, ClassBlock, make_norm
from nasvit.pruning.plan import Plan, PlanError


class Transformer(nn.Module):
    """A plain transformer from a Plan: (B, in, H, W) -> (B, classes).

    `trace`, where given, receives for each block which token stands for each place of the grid, (B, N), -1 for none: values on
    request, never module state.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        options, dim = plan.source.options, plan.embed_dims[0]
        self.plan, self.num_classes, self.operator = plan, options["num_classes"], plan.operator
        self.num_features = self.head_hidden_size = dim
        height, width = options["image_size"]
        patch = tuple(options["patch"])
        self.grid = (height // patch[0], width // patch[1])
        self.image_shape = (options["in_channels"], height, width)
        self.prefix_count = options["prefix"]
        self.patch = nn.Conv2d(options["in_channels"], dim, patch, stride=patch, bias=options["patch_bias"])
        self.patch_norm = make_norm(options["patch_norm"], dim)
        count = self.grid[0] * self.grid[1]
        self.prefix = nn.Parameter(torch.zeros(1, self.prefix_count, dim)) if self.prefix_count else None
        self.pos_embed = nn.Parameter(torch.zeros(1, count, dim)) if options["pos_embed"] else None
        self.norm_pre = make_norm(options["norm_pre"], dim)
        forms = list(zip(options["blocks"], plan.blocks, strict=True))
        self.blocks = nn.ModuleList(Block(dim, options=form, left=left, grid=self.grid, prefix=self.prefix_count)
                                    for form, left in forms if not form["class_only"])
        self.class_blocks = nn.ModuleList(ClassBlock(dim, options=form, left=left) for form, left in forms if form["class_only"])
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if self.class_blocks else None
        self.norm = make_norm(options["norm"], dim)
        self.pool, self.pool_prefix = options["pool"], options["pool_prefix"]
        self.fc_norm = make_norm(options["fc_norm"], dim)
        self.head = nn.Linear(dim, self.num_classes, bias=options["head_bias"]) if self.num_classes else nn.Identity()
        self.head_dist: nn.Module | None = None
        if options["distilled"]:
            self.head_dist = nn.Linear(dim, self.num_classes) if self.num_classes else nn.Identity()
        self.read: int | None = None
        self.keep = plan.kept(count)[: len(self.blocks)]
        self.segments = tuple(_runs(self.keep)) if plan.operator == "slow_fast" else ()
        self.last_attention = max((i for i, block in enumerate(self._blocks()) if block.attn is not None), default=0)
        self.last_selection = max((start for start, _, keep in self.segments if keep < count), default=0)

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def embed(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, P + N, C)"""
        if x.shape[1:] != self.image_shape:
            raise PlanError(f"this network takes images of shape {self.image_shape}, not {tuple(x.shape[1:])}")
        x = self.patch_norm(self.patch(x).flatten(2).transpose(1, 2))
        if self.pos_embed is not None:
            x = x + self.pos_embed
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm_pre(x)

    def forward_features(self, x: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        """(B, in, H, W) -> (B, P + T, C), normed where the norm stands before the pool."""
        return self._run(x, trace, None)[0]

    def _run(self, x: Tensor, trace: list[Tensor] | None, read: int | None) -> tuple[Tensor, Tensor | None]:
        """read: how many of the first tokens are read behind the blocks; None: all."""
        x, size = self.embed(x), None
        if self.operator == "merge":
            x, size = self._merge(x, trace, read)
        elif self.operator == "topk_fuse":
            x = self._fuse(x, trace, read)
        elif self.operator == "slow_fast":
            x = self._slow_fast(x, trace, read)
        else:
            for i, block in enumerate(self.blocks):
                x = block(x, self._at(i, read))
                _note(trace, _all_places(x, self.keep[0]))
        if self.class_token is not None:
            bias = None if size is None else F.pad(size.log().squeeze(2), (1, 0))[:, None, None]
            first = self.class_token.expand(x.shape[0], -1, -1)
            for block in self.class_blocks:
                first = block(first, x, bias)
            x = torch.cat([first, x], dim=1)
        return self.norm(x), size

    def _at(self, i: int, read: int | None) -> int | None:
        """How many tokens block i has to give where only `read` are read in the end: from the last attention on each goes its own way."""
        return read if i >= self.last_attention else None

    def forward(self, x: Tensor) -> Any:
        x, size = self._run(x, None, self.read)
        if self.head_dist is not None:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        return self.head(self.fc_norm(self._pooled(x, size)))

    def _pooled(self, x: Tensor, size: Tensor | None) -> Tensor:
        if self.pool == "token":
            return x[:, 0]
        if not self.pool_prefix:
            x = x[:, self.prefix_count :]
        elif size is not None:
            size = F.pad(size, (0, 0, self.prefix_count, 0), value=1.0)
        if self.pool == "max":
            return x.amax(dim=1)
        # a merged token counts for all the tokens it stands for
        mean = x.mean(dim=1) if size is None else (x * size).sum(dim=1) / size.sum(dim=1)
        return mean if self.pool == "avg" else 0.5 * (x.amax(dim=1) + mean)

    def _merge(self, x: Tensor, trace: list[Tensor] | None, read: int | None) -> tuple[Tensor, Tensor | None]:
        size, bias, before = None, None, self.grid[0] * self.grid[1]
        places = _all_places(x, before)
        for i, (block, keep) in enumerate(zip(self._blocks(), self.keep, strict=True)):
            few = self._at(i, read)
            if block.attn is not None:
                out, metric = block.attn.forward_sized(block.start_attention(x), bias, few)
                x = x[:, :few] + block.finish_attention(out)
                if keep < before and few is None:
                    rest, size, moved = operators.merge(x[:, self.prefix_count :], size, metric, keep=keep, traced=trace is not None)
                    x = torch.cat([x[:, : self.prefix_count], rest], dim=1) if self.prefix_count else rest
                    bias = F.pad(size.log().squeeze(2), (self.prefix_count, 0))[:, None, None]  # proportional attention
                    before = keep
                    if moved is not None:
                        places = moved.gather(1, places)
            x = block.mix_channels(x[:, :few])
            _note(trace, places)
        return x, size

    def _fuse(self, x: Tensor, trace: list[Tensor] | None, read: int | None) -> Tensor:
        before, prefix = self.grid[0] * self.grid[1], self.prefix_count
        places = _all_places(x, before)
        for i, (block, keep) in enumerate(zip(self._blocks(), self.keep, strict=True)):
            few = self._at(i, read)
            if keep == before or block.attn is None or few is not None:
                x = block(x, few)
            else:
                out, score = block.attn.forward_scored(block.start_attention(x))
                x = x + block.finish_attention(out)
                rest, kept = operators.fuse(x[:, prefix:], score, keep=keep)
                x, before = block.mix_channels(torch.cat([x[:, :prefix], rest], dim=1)), keep
                if trace is not None:
                    new = torch.full((x.shape[0], score.shape[1]), -1, device=x.device).scatter(
                        1, kept, torch.arange(keep, device=x.device).expand_as(kept))
                    places = torch.where(places < 0, places, new.gather(1, places.clamp(min=0)))
            _note(trace, places)
        return x

    def _slow_fast(self, x: Tensor, trace: list[Tensor] | None, read: int | None) -> Tensor:
        count, prefix, score = self.grid[0] * self.grid[1], self.prefix_count, None
        places = _all_places(x, count)
        for start, stop, keep in self.segments:
            if self._at(start - 1, read) is not None:
                for i in range(start, stop):
                    x = self.blocks[i](x, read)
                continue
            if keep == count:
                for i in range(start, stop):
                    x, score = self._scored(i, x, score, read)
                    _note(trace, places)
                continue
            assert score is not None  # `check` refuses plans whose first block is slow
            flat = x[:, prefix:]
            selection = tokens.select(score, keep=keep)
            before = torch.cat([x[:, :prefix], tokens.slow_path(flat, selection)], dim=1)
            after = before
            for i in range(start, stop):
                after, row = self._scored(i, after, None, read)
                if row is not None:
                    score = tokens.update_score(score, row[:, :keep], tradeoff=0.5, selection=selection)
                _note(trace, torch.where(selection.restore < keep, places, -1) if trace is not None else places)
            if self._at(stop - 1, read) is not None:
                x = after
                continue
            x = torch.cat([after[:, :prefix], tokens.restore(flat, (after - before)[:, prefix:], selection)], dim=1)
        return x

    def _scored(self, i: int, x: Tensor, score: Tensor | None, read: int | None) -> tuple[Tensor, Tensor | None]:
        """One block, and the running score where a later segment needs it (Evo-ViT's: half the old, half this block's)."""
        block = cast(Block, self.blocks[i])
        if block.attn is None or i >= self.last_selection:  # nothing is selected behind it
            return block(x, self._at(i, read)), score
        out, row = block.attn.forward_scored(block.start_attention(x))
        x = block.mix_channels(x + block.finish_attention(out))
        return x, row if score is None else tokens.update_score(score, row, tradeoff=0.5)

    def deploy_(self) -> None:
        """Of the last block with an attention, and behind it, only what the head reads is computed: where that is the class token, its
        output alone."""
        self.read = tokens_read(self.plan.source.options)
        last = cast(Block, self.blocks[self.last_attention])
        if self.read is not None and last.attn is not None:
            last.attn.divide_()

    def no_weight_decay(self) -> set[str]:
        """Names excluded from weight decay beside the one-dimensional ones (timm's hook)."""
        tables = ("prefix", "class_token", "pos_embed", "bias_table")
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in tables}


def tokens_read(options: Mapping[str, Any]) -> int | None:
    """How many of the first tokens the head reads behind the last block; None: all, or those that further blocks read."""
    if options["pool"] != "token" or any(block["class_only"] for block in options["blocks"]):
        return None
    return 2 if options["distilled"] else 1


def _runs(keep: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(start, stop, tokens kept) of each run of blocks that keep equally many."""
    cuts = [0, *(i for i in range(1, len(keep)) if keep[i] != keep[i - 1]), len(keep)]
    return [(a, b, keep[a]) for a, b in pairwise(cuts)]


def _all_places(x: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=x.device).expand(x.shape[0], -1)


def _note(trace: list[Tensor] | None, places: Tensor) -> None:
    if trace is not None:
        trace.append(places)
