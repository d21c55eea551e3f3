"""A block, and a stage of blocks with its slow-fast segments.

Values passed along, never module state: the tokens x (B, H, W, C), the class token (B, 1, C) or None, and the score
(B, N) of the patch tokens or None.

Legend: B images, H x W the grid, N = H*W patch tokens, k kept tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from nasvit.arch import Arch, Block, Grid, keep_count
from nasvit.errors import ArchError
from nasvit.models import tokens
from nasvit.models.folding import affine, foldable, scale_input_
from nasvit.models.layers import ChannelBatchNorm, ConvMlp, DropPath, Mlp, make_norm
from nasvit.models.levit import LevitDownsample, LevitMlp
from nasvit.models.mixers import Mixer, make_mixer
from nasvit.models.patch_embed import make_downsample

State = tuple[Tensor, Tensor | None, Tensor | None]
Selected = tuple[int, int, Tensor]  # first block of a segment, the one behind its last, raster positions of its kept tokens (B, k)

MLPS: dict[str, Callable[..., nn.Module]] = {"gelu": Mlp, "conv": ConvMlp, "levit": LevitMlp}

# Evo-ViT: a plain layer's class attention replaces the score, inside a segment it is averaged into it with this weight.
TRADEOFF = 0.5
# Beginnings of a stage that hand the score on; behind the others a stage scores its tokens anew.
CARRY_SCORE = ("none", "levit")


class MixerBlock(nn.Module):
    """x + mixer(norm(x)) for each mixer, then x + mlp(norm(x)).

    The MLP is normalised as the last mixer is (Swin's blocks: layer norm; CAS-ViT's: batch norm). The class token takes
    part where a mixer runs on token sets, and passes by unchanged otherwise.
    """

    def __init__(self, spec: Block, *, dim: int, resolution: Grid, drop_path: float, where: str, norm_eps: float) -> None:
        super().__init__()
        mixers = [make_mixer(m, dim=dim, resolution=resolution, where=where) for m in spec.mixers]
        self.mixers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(make_norm(m.norm, dim, eps=norm_eps) for m in mixers)
        kind = mixers[-1].norm
        inside = spec.mlp == "levit"  # its batch norms stand behind its linear maps
        self.mlp_norm = make_norm("none" if inside else "layer" if kind == "none" else kind, dim, eps=norm_eps)
        self.mlp = MLPS[spec.mlp](dim, hidden_features=spec.mlp_dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def deploy_(self) -> None:
        """Batch norms go into the linear maps behind them; stochastic depth goes."""
        for i, norm in enumerate(self.norms):
            if isinstance(norm, ChannelBatchNorm) and foldable(norm.bn) and hasattr(self.mixers[i], "absorb_norm_"):
                cast(Any, self.mixers[i]).absorb_norm_(*affine(norm.bn))
                self.norms[i] = nn.Identity()
        if isinstance(self.mlp_norm, ChannelBatchNorm) and foldable(self.mlp_norm.bn) and isinstance(self.mlp, (Mlp, ConvMlp)):
            scale_input_(cast(nn.Linear, self.mlp.fc1), *affine(self.mlp_norm.bn))
            self.mlp_norm = nn.Identity()
        self.drop_path = nn.Identity()

    @property
    def token_sets(self) -> bool:
        """Whether every mixer runs on any set of tokens, so that a segment of such blocks never needs the grid."""
        return all(m.token_sets for m in self.mixers)

    @property
    def sees_class_token(self) -> bool:
        """Whether some mixer attends with the class token."""
        return any(m.token_sets for m in self.mixers)

    @property
    def _scorer(self) -> int:
        """The mixer whose class row scores the tokens: the last that attends with the class token; -1 where none does."""
        return max((i for i, m in enumerate(self.mixers) if m.token_sets), default=-1)

    def tradeoff(self, *, slow: bool) -> Tensor | float:
        """The share of this block's class row in the score: its last mixer's own, or 1 for a plain block and 0.5 inside a segment."""
        own = next((cast(Mixer, m).tradeoff() for m in reversed(list(self.mixers)) if m.token_sets), None)
        return own if own is not None else TRADEOFF if slow else 1.0

    def scored_by(self, score: Tensor | None, row: Tensor | None) -> Tensor | None:
        """The score behind a plain block with this class row; the first score is the row itself."""
        if row is None:
            return score
        return row if score is None else tokens.update_score(score, row, tradeoff=self.tradeoff(slow=False))

    def mlp_change(self, x: Tensor) -> Tensor:
        """(.., C) -> (.., C), the MLP's residual branch."""
        return self.drop_path(self.mlp(self.mlp_norm(x)))

    def mix(self, x: Tensor, i: int) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), the residual branch of mixer i."""
        return self._dropped(self.mixers[i](self.norms[i](x)), i)

    def _dropped(self, change: Tensor, i: int) -> Tensor:
        return self.drop_path(change) if cast(Mixer, self.mixers[i]).stochastic_depth else change

    def mix_set(self, x: Tensor, i: int, *, class_row: bool) -> tuple[Tensor, Tensor | None]:
        """(B, n, C) with the class token first -> the residual branch of mixer i, and its class row."""
        change, row = cast(Mixer, self.mixers[i]).forward_tokens(self.norms[i](x), class_row=class_row)
        return self._dropped(change, i), row

    def forward_set(self, x: Tensor, *, class_row: bool) -> tuple[Tensor, Tensor | None]:
        """The whole block on (B, n, C), the class token first. Only for `token_sets`."""
        row = None
        for i in range(len(self.mixers)):
            change, row = self.mix_set(x, i, class_row=class_row and i == self._scorer)
            x = x + change
        return x + self.mlp_change(x), row

    def forward(self, x: Tensor, class_token: Tensor | None, *, scored: bool) -> State:
        """The plain block. The third value is this block's class row (B, N), if `scored` and it has one."""
        if class_token is None or not self.sees_class_token:
            for i in range(len(self.mixers)):
                x = x + self.mix(x, i)
            return x + self.mlp_change(x), class_token, None
        shape, score = x.shape, None
        for i, mixer in enumerate(self.mixers):
            if mixer.token_sets:
                joint = torch.cat([class_token, x.flatten(1, 2)], dim=1)
                change, row = self.mix_set(joint, i, class_row=scored and i == self._scorer)
                joint, score = joint + change, row if row is not None else score
                class_token, x = joint[:, :1], joint[:, 1:].reshape(shape)
            else:
                x = x + self.mix(x, i)
        joint = torch.cat([class_token, x.flatten(1, 2)], dim=1)
        joint = joint + self.mlp_change(joint)
        return joint[:, 1:].reshape(shape), joint[:, :1], score

    def forward_segment(self, x: Tensor, class_token: Tensor, selection: tokens.Selection, score: Tensor, *,
                        scored: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The block inside a segment, for mixers that need the grid: x is (B, H, W, C). Mixing is done on the whole
        grid where it must be, the MLP on the slow path."""
        shape, k = x.shape, selection.kept.shape[1]
        for i, mixer in enumerate(self.mixers):
            if mixer.token_sets:
                flat = x.flatten(1, 2)
                change, row = self.mix_set(torch.cat([class_token, tokens.slow_path(flat, selection)], dim=1), i,
                                           class_row=scored and i == self._scorer)
                class_token = class_token + change[:, :1]
                x = tokens.restore(flat, change[:, 1:], selection).view(shape)
                if row is not None:
                    score = tokens.update_score(score, row[:, :k], tradeoff=self.tradeoff(slow=True), selection=selection)
            else:
                x = x + self.mix(x, i)
        flat = x.flatten(1, 2)
        slow = tokens.slow_path(flat, selection)
        if not self.sees_class_token:
            return tokens.restore(flat, self.mlp_change(slow), selection).view(shape), class_token, score
        change = self.mlp_change(torch.cat([class_token, slow], dim=1))
        return tokens.restore(flat, change[:, 1:], selection).view(shape), class_token + change[:, :1], score


class ClassAttention(nn.Module):
    """The class token attends once to all patch tokens: it is updated, and its attention is their score.

    Needed at the start of a segment that no attention with the class token precedes. One head whose key projection is
    merged into the query (q^T K x = (K^T q)^T x), so the cost is linear in N with a small factor: about 2NC + 2C^2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.scale = dim**-0.5

    def forward(self, class_token: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, C), (B, N, C) -> the updated class token and the score (B, N), which sums to 1."""
        patch = self.norm(x)
        query = self.query(self.norm(class_token)) * self.scale
        score = (query @ patch.transpose(1, 2)).softmax(dim=-1)  # (B, 1, N)
        return class_token + self.value(score @ patch), score.squeeze(1)


class StageModule(nn.Module):
    """Downsampling (not in the first stage), then the blocks, run segment by segment.

    class_enters: a class token comes from the stage before, and is projected to this width. class_begins: it begins here. scored:
    a score comes too, if the downsampling hands it on. keeps_only: the tokens that the last segment does not keep are left out of the
    output, which is then (B, k, 1, C). The network calls `use_score` once it has all its stages.
    """

    def __init__(self, arch: Arch, index: int, *, drop_paths: list[float], class_enters: bool, class_begins: bool, scored: bool,
                 keeps_only: bool) -> None:
        super().__init__()
        stage, resolution = arch.stages[index], arch.grid(index)
        dim, in_dim = stage.embed_dim, arch.stages[max(0, index - 1)].embed_dim
        self.carries_score = bool(index) and stage.downsample in CARRY_SCORE
        self.class_enters = class_enters
        self.downsample: nn.Module = nn.Identity()
        if index:
            self.downsample = (LevitDownsample.of(arch, index, class_token=class_enters, drop_path=drop_paths[0])
                               if stage.downsample == "levit" else
                               make_downsample(stage.downsample, dim=in_dim, out_dim=dim))
        self.class_proj = nn.Linear(in_dim, dim) if class_enters and not self.carries_score else nn.Identity()
        self.pos_embed = nn.Parameter(torch.zeros(1, *resolution, dim)) if stage.pos_embed else None
        self.norm = make_norm("layer" if stage.norm else "none", dim, eps=arch.norm_eps)
        self.blocks = nn.ModuleList(
            MixerBlock(block, dim=dim, resolution=resolution, drop_path=rate, where=f"stage {index}, block {b}", norm_eps=arch.norm_eps)
            for b, (block, rate) in enumerate(zip(stage.blocks, drop_paths, strict=True)))
        for b, block in enumerate(stage.blocks):
            joined = (class_enters or class_begins) and cast(MixerBlock, self.blocks[b]).sees_class_token
            if block.mlp == "conv" and (joined or block.keep_ratio < 1):
                beside = "the class token" if joined else f"keep_ratio {block.keep_ratio}"
                raise ArchError(f"stage {index}, block {b}: mlp conv runs on the whole grid alone, not with {beside}; "
                                f"accepted: {', '.join(kind for kind in MLPS if kind != 'conv')}")
        self.representative = arch.representative
        self.keeps_only = keeps_only
        self.segments = tokens.segments(stage.blocks)
        self.keep = tuple(keep_count(resolution[0] * resolution[1], ratio) for _, _, ratio in self.segments)
        self.scored_at_entry, own = scored and self.carries_score, {}
        scored = self.scored_at_entry or (class_enters and isinstance(self.downsample, LevitDownsample))
        for start, stop, ratio in self.segments:
            if ratio < 1 and not scored:
                own[str(start)] = ClassAttention(dim)
            scored = scored or ratio < 1 or any(b.sees_class_token for b in self._blocks(start, stop))
        self.leaves_scored = scored and (class_enters or class_begins)
        self.class_attention = nn.ModuleDict(own)
        self.rows_needed = (False,) * len(stage.blocks)

    def _blocks(self, start: int, stop: int) -> list[MixerBlock]:
        return [cast(MixerBlock, self.blocks[i]) for i in range(start, stop)]

    def use_score(self, after: bool) -> bool:
        """Settle which blocks compute their class row: those that a later selection depends on, in this stage or, with `after`, behind it.

        A plain block that replaces the score makes the earlier rows useless. Returns whether a selection depends on the score of the
        stage before.
        """
        needed = [False] * len(self.blocks)
        for start, stop, ratio in reversed(self.segments):
            for i in reversed(range(start, stop)):
                block = cast(MixerBlock, self.blocks[i])
                needed[i] = after and block.sees_class_token
                share = block.tradeoff(slow=ratio < 1)
                after = after and not (ratio == 1 and needed[i] and isinstance(share, float) and share == 1)
            after = (after or ratio < 1) and str(start) not in self.class_attention
        self.rows_needed = tuple(needed)
        self._freeze_tradeoffs(used=after)
        return after and self.carries_score

    def _freeze_tradeoffs(self, *, used: bool) -> None:
        """Learned trade-offs that no selection's representative depends on are not trained; they stay for the authors' checkpoints. used:
        the score is, behind the downsampling."""
        scored = self.scored_at_entry
        if isinstance(self.downsample, LevitDownsample):
            if self.downsample.learn_tradeoff is not None:
                self.downsample.learn_tradeoff.requires_grad_(self.representative and scored and used)
            scored = self.class_enters
        for start, stop, ratio in self.segments:
            for i, block in enumerate(self._blocks(start, stop), start=start):
                for mixer in block.mixers:
                    if getattr(mixer, "learn_tradeoff", None) is not None:
                        mixer.learn_tradeoff.requires_grad_(self.representative and self.rows_needed[i] and (scored or ratio < 1))
                scored = scored or ratio < 1 or block.sees_class_token

    def forward(self, x: Tensor, class_token: Tensor | None, score: Tensor | None, trace: list[Selected] | None = None) -> State:
        """(B, H', W', C') -> (B, H, W, C), the class token at this stage's width, and the score of its tokens (B, N).

        trace, where given, receives what each segment selects.
        """
        if isinstance(self.downsample, LevitDownsample):
            x, entered, score = self.downsample(x, class_token if self.class_enters else None, score)
            class_token = entered if self.class_enters else class_token
        else:
            x = self.downsample(x)
        if not self.carries_score:
            score = None
        if self.pos_embed is not None:
            x = x + self.pos_embed
        if class_token is not None and self.class_enters:
            class_token = self.class_proj(class_token)
        for (start, stop, ratio), keep in zip(self.segments, self.keep, strict=True):
            blocks = self._blocks(start, stop)
            if ratio < 1 and class_token is not None:
                x, class_token, score = self._segment(x, class_token, score, start, stop, keep, trace)
            elif class_token is not None and all(b.token_sets for b in blocks):
                x, class_token, score = self._plain_set(x, class_token, score, start, stop)
            else:
                for i, block in enumerate(blocks, start=start):
                    x, class_token, row = block(x, class_token, scored=self.rows_needed[i])
                    score = block.scored_by(score, row)
        return self.norm(x), None if class_token is None else self.norm(class_token), score

    def _plain_set(self, x: Tensor, class_token: Tensor, score: Tensor | None, start: int, stop: int) -> State:
        """Plain blocks that all run on any set of tokens: the class token stays beside the others throughout."""
        joint = torch.cat([class_token, x.flatten(1, 2)], dim=1)
        for i, block in enumerate(self._blocks(start, stop), start=start):
            joint, row = block.forward_set(joint, class_row=self.rows_needed[i])
            score = block.scored_by(score, row)
        return joint[:, 1:].view(x.shape), joint[:, :1], score

    def _segment(self, x: Tensor, class_token: Tensor, score: Tensor | None, start: int, stop: int, keep: int,
                 trace: list[Selected] | None) -> tuple[Tensor, Tensor, Tensor]:
        shape, flat = x.shape, x.flatten(1, 2)
        if score is None:
            class_token, score = self.class_attention[str(start)](class_token, flat)
        selection = tokens.select(score, keep=keep, representative=self.representative)
        if trace is not None:
            trace.append((start, stop, selection.kept))
        blocks = self._blocks(start, stop)
        scored = any(self.rows_needed[start:stop])
        if not all(b.token_sets for b in blocks):
            for block in blocks:
                x, class_token, score = block.forward_segment(x, class_token, selection, score, scored=scored)
            return self._kept(x, selection, stop), class_token, score
        before = torch.cat([class_token, tokens.slow_path(flat, selection)], dim=1)
        after = before
        for block in blocks:
            after, row = block.forward_set(after, class_row=scored)
            if row is not None:
                score = tokens.update_score(score, row[:, :keep], tradeoff=block.tradeoff(slow=True), selection=selection)
        if self._drops(stop):
            return after[:, 1 : keep + 1].unsqueeze(2), after[:, :1], score
        return tokens.restore(flat, (after - before)[:, 1:], selection).view(shape), after[:, :1], score

    def _drops(self, stop: int) -> bool:
        return self.keeps_only and stop == len(self.blocks)

    def _kept(self, x: Tensor, selection: tokens.Selection, stop: int) -> Tensor:
        return tokens.take(x.flatten(1, 2), selection.kept).unsqueeze(2) if self._drops(stop) else x
