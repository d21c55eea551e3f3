"""The owned blocks of plain transformers (ViT, DeiT, DeiT-III, DINOv2, EVA, BEiT, CaiT).

Everything is built from a Plan: the source's description says what kind of part stands where, the plan's blocks how much is left of it.
The attention's scale stays the dense model's where head_dim is smaller. Layer scale is a parameter of the block, in every operator.

Legend: B images, P prefix tokens (class, distillation, registers), N tokens of the grid, T of them now, C channels, h heads,
d head_dim. A norm is described by [kind, eps, bias] or null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.models.mixers.base import scaled_attention
from nasvit.models.mixers.global_ import class_attention
from nasvit.pruning.plan import BlockPlan

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu, "relu": F.relu, "hardswish": F.hardswish}


def make_norm(form: list[Any] | None, dim: int) -> nn.Module:
    """The norm described by [kind, eps, bias] over `dim` channels; None: nothing."""
    if form is None:
        return nn.Identity()
    kind, eps, bias = form
    return nn.RMSNorm(dim, eps=eps) if kind == "rms" else nn.LayerNorm(dim, eps=eps, bias=bias)


def rotate(x: Tensor, sin: Tensor, cos: Tensor, *, half: bool) -> Tensor:
    """Rotary positions on (B, h, T, d); sin and cos (1 or h, T, d). half: channel j pairs with j + d / 2, else 2j with 2j + 1."""
    if half:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    else:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).reshape(x.shape)
    return x * cos + turned * sin


def attend(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, scale: float, fused: bool) -> Tensor:
    """softmax(q k^T * scale + bias) v over (B, h, T, d), by torch's fused kernel or written out."""
    if fused:
        return scaled_attention(q, k, v, bias=bias, scale=scale)
    logits = (q * scale) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(dim=-1) @ v


def confidence_of(q: Tensor, k: Tensor, *, bias: Tensor | None, scale: float) -> Tensor:
    """Each query's largest attention, mean of queries and images: (B, h, T, d) twice -> (h,)."""
    logits = (q * scale) @ k.transpose(-2, -1)
    largest = (logits if bias is None else logits + bias).softmax(dim=-1).amax(dim=-1)
    return largest.mean(dim=(0, 2))


def set_fused(module: nn.Module, fused: bool) -> None:
    """Choose the form of every attention in a pruned network: torch's fused kernel, or written out."""
    for part in module.modules():
        if hasattr(part, "fused"):
            cast(Any, part).fused = fused


class Attention(nn.Module):
    """Multi-head attention with what the families add: norms of q and k, rotary positions, a relative position bias, an inner norm.

    Queries, keys and values stand one behind the other in `qkv`, head by head. fused: torch's kernel, else written out. read: where only
    the first tokens are read behind a block, how many; the others' outputs are not computed then (None: all are).
    """

    sin: Tensor
    cos: Tensor
    bias: Tensor | None
    bias_index: Tensor

    def __init__(self, dim: int, *, options: Mapping[str, Any], heads: int, head_dim: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.prefix, self.fused = heads, head_dim, prefix, True
        self.scale = options["head_dim"] ** -0.5
        inner = heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=options["qkv_bias"])
        self.q: nn.Linear | None = None
        self.kv: nn.Linear | None = None
        self.q_norm, self.k_norm = make_norm(options["qk_norm"], head_dim), make_norm(options["qk_norm"], head_dim)
        self.normed = options["qk_norm"] is not None
        self.norm = make_norm(options["attn_norm"], inner)
        self.proj = nn.Linear(inner, dim, bias=options["proj_bias"])
        self.rope = options["rope"]
        if self.rope is not None:
            count = prefix + grid[0] * grid[1]
            tables = heads if options["rope_heads"] else 1
            self.register_buffer("sin", torch.zeros(tables, count, head_dim))
            self.register_buffer("cos", torch.ones(tables, count, head_dim))
        self.talking = options["talking"]
        if self.talking:
            self.talk_before, self.talk_after = nn.Linear(heads, heads), nn.Linear(heads, heads)
        self.relative = options["relative"]
        if self.relative:
            self.bias_table = nn.Parameter(torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, heads))
            self.register_buffer("bias_index", class_relative_index(grid), persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def project(self, x: Tensor, read: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> queries (B, h, T or `read`, d), keys and values (B, h, T, d)."""
        def by_head(out: Tensor) -> tuple[Tensor, ...]:
            return out.unflatten(-1, (-1, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()

        if self.q is None or self.kv is None:
            q, k, v = by_head(self.qkv(x))
            q = q[:, :, :read]
        else:
            (q,), (k, v) = by_head(self.q(x[:, :read])), by_head(self.kv(x))
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            half = self.rope == "half"
            q = rotate(q, self.sin[:, :read], self.cos[:, :read], half=half)
            k = rotate(k, self.sin, self.cos, half=half)
        return q, k, v

    def divide_(self) -> None:
        """Queries get a linear layer of their own, so that fewer of them cost less."""
        inner = self.proj.in_features
        self.q, self.kv = _outputs(self.qkv, slice(inner)), _outputs(self.qkv, slice(inner, None))
        del self.qkv

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """(B, h, T, d) three times -> (B, h, T, d). Talking heads (CaiT, arXiv 2103.17239) mix logits and attention across heads, and no
        fused kernel does that."""
        if not self.talking:
            return attend(q, k, v, bias=bias, scale=self.scale, fused=self.fused)
        logits = self.talk_before(((q * self.scale) @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = (logits if bias is None else logits + bias).softmax(dim=-1)
        return self.talk_after(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v

    def output(self, out: Tensor) -> Tensor:
        """(B, h, T, d) -> (B, T, C)"""
        return self.proj(self.norm(out.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """(B, P + N, C) -> (B, P + N or `read`, C)"""
        q, k, v = self.project(x, read)
        return self.output(self.attend(q, k, v, self.position_bias()[:, :, :read] if self.relative else None))

    def forward_scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P + T, C) -> the same shape, and the class token's attention to the T tokens (B, T), mean of the heads."""
        q, k, v = self.project(x)
        out = self.output(self.attend(q, k, v, None))
        return out, class_attention(q, k, scale=self.scale)[:, self.prefix - 1 :]

    def forward_sized(self, x: Tensor, bias: Tensor | None, read: int | None = None) -> tuple[Tensor, Tensor]:
        """(B, P + T, C) -> (B, P + T or `read`, C), and the keys of the T tokens, mean of the heads (B, T, d). bias: log of the sizes."""
        q, k, v = self.project(x, read)
        return self.output(self.attend(q, k, v, bias)), k[:, :, self.prefix :].mean(dim=1)

    def confidence(self, x: Tensor) -> Tensor:
        """(B, P + N, C) -> (h,), the mean of each query's largest attention."""
        q, k, _ = self.project(x)
        return confidence_of(q, k, bias=self.position_bias() if self.relative else None, scale=self.scale)

    def position_bias(self) -> Tensor:
        """(1, h, P + N, P + N), from the table by the offset of query and key."""
        if self.bias is not None:
            return self.bias
        count = self.bias_index.shape[0]
        return self.bias_table.index_select(0, self.bias_index.flatten()).t().reshape(1, self.heads, count, count)

    def deploy_(self) -> None:
        """The relative position bias is gathered once."""
        if self.relative:
            with torch.no_grad():
                self.bias = self.position_bias()


def class_relative_index(grid: tuple[int, int]) -> Tensor:
    """(1 + N, 1 + N) rows of BEiT's bias table (arXiv 2106.08254): offsets of the grid, then class to token, token to class, class to
    class."""
    height, width = grid
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    offsets = (y[:, None] - y + height - 1) * (2 * width - 1) + x[:, None] - x + width - 1
    count = (2 * height - 1) * (2 * width - 1)
    index = torch.full((1 + height * width, 1 + height * width), count)
    index[1:, 1:], index[1:, 0], index[0, 0] = offsets, count + 1, count + 2
    return index


class Mlp(nn.Module):
    """Linear, activation, linear; "glu" multiplies the activated first half with the second, "glu_last" the first with the activated
    second. (.., C) -> (.., C)"""

    def __init__(self, dim: int, *, options: Mapping[str, Any], mlp_dim: int) -> None:
        super().__init__()
        self.kind, self.act = options["mlp"], ACTIVATIONS[options["act"]]
        first, second = options["mlp_bias"]
        self.fc1 = nn.Linear(dim, mlp_dim if self.kind == "mlp" else 2 * mlp_dim, bias=first)
        self.norm = make_norm(options["mlp_norm"], mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim, bias=second)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.kind == "mlp":
            x = self.act(x)
        else:
            first, second = x.chunk(2, dim=-1)
            x = self.act(first) * second if self.kind == "glu" else first * self.act(second)
        return self.fc2(self.norm(x))


class Block(nn.Module):
    """Attention and MLP in residual branches, each with its layer scale; a part of which nothing is left is not there."""

    def __init__(self, dim: int, *, options: Mapping[str, Any], left: BlockPlan, grid: tuple[int, int], prefix: int) -> None:
        super().__init__()
        self.post_norm = options["post_norm"]
        scaled_attention, scaled_mlp = options["layer_scale"]
        self.attn: Attention | None = None
        self.mlp: Mlp | None = None
        if left.heads:
            self.norm1 = make_norm(options["norm"], dim)
            self.attn = Attention(dim, options=options, heads=left.heads, head_dim=left.head_dim, grid=grid, prefix=prefix)
            self.gamma1 = nn.Parameter(torch.ones(dim)) if scaled_attention else None
        if left.mlp_dim:
            self.norm2 = make_norm(options["norm"], dim)
            self.mlp = Mlp(dim, options=options, mlp_dim=left.mlp_dim)
            self.gamma2 = nn.Parameter(torch.ones(dim)) if scaled_mlp else None

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C), or of the first tokens alone (B, read, C)"""
        kept = x[:, :read]
        if self.attn is not None:
            kept = kept + self.finish_attention(self.attn(self.start_attention(x), read))
        return self.mix_channels(kept)

    def start_attention(self, x: Tensor) -> Tensor:
        """What the attention reads."""
        return x if self.post_norm else self.norm1(x)

    def finish_attention(self, out: Tensor) -> Tensor:
        """What the attention's branch adds."""
        out = self.norm1(out) if self.post_norm else out
        return out if self.gamma1 is None else out * self.gamma1

    def mix_channels(self, x: Tensor) -> Tensor:
        """The MLP's branch."""
        if self.mlp is None:
            return x
        out = self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x))
        return x + (out if self.gamma2 is None else out * self.gamma2)

    def deploy_(self) -> None:
        """Layer scale goes into the last linear map of its branch."""
        if self.post_norm:
            return
        with torch.no_grad():
            if self.attn is not None and self.gamma1 is not None:
                _scale(self.attn.proj, self.gamma1)
                self.gamma1 = None
            if self.mlp is not None and self.gamma2 is not None:
                _scale(self.mlp.fc2, self.gamma2)
                self.gamma2 = None


def _outputs(linear: nn.Linear, which: slice) -> nn.Linear:
    """The layer with these of its outputs."""
    made = nn.Linear(linear.in_features, len(linear.weight[which]), bias=linear.bias is not None, device="meta")
    made.weight = nn.Parameter(linear.weight[which].detach().clone())
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias[which].detach().clone())
    return made


def _scale(linear: nn.Linear, factors: Tensor) -> None:
    linear.weight.mul_(factors.unsqueeze(1))
    if linear.bias is not None:
        linear.bias.mul_(factors)


class ClassAttention(nn.Module):
    """The class token attends to all tokens and itself (CaiT): (B, 1 + T, C) -> (B, 1, C)."""

    def __init__(self, dim: int, *, options: Mapping[str, Any], heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.fused, self.scale = heads, head_dim, True, options["head_dim"] ** -0.5
        self.q = nn.Linear(dim, heads * head_dim, bias=options["qkv_bias"])
        self.kv = nn.Linear(dim, 2 * heads * head_dim, bias=options["qkv_bias"])
        self.proj = nn.Linear(heads * head_dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1 + T, C) -> one query, keys and values of each head."""
        q = self.q(x[:, :1]).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        k, v = self.kv(x).view(x.shape[0], x.shape[1], 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = self.project(x)
        return self.proj(attend(q, k, v, bias=bias, scale=self.scale, fused=self.fused).transpose(1, 2).flatten(2))

    def confidence(self, x: Tensor) -> Tensor:
        """(B, 1 + T, C) -> (h,), the class token's largest attention."""
        q, k, _ = self.project(x)
        return confidence_of(q, k, bias=None, scale=self.scale)


class ClassBlock(nn.Module):
    """A block that updates the class token alone, from all tokens."""

    def __init__(self, dim: int, *, options: Mapping[str, Any], left: BlockPlan) -> None:
        super().__init__()
        self.attn: ClassAttention | None = None
        self.mlp: Mlp | None = None
        if left.heads:
            self.norm1, self.gamma1 = make_norm(options["norm"], dim), nn.Parameter(torch.ones(dim))
            self.attn = ClassAttention(dim, options=options, heads=left.heads, head_dim=left.head_dim)
        if left.mlp_dim:
            self.norm2, self.gamma2 = make_norm(options["norm"], dim), nn.Parameter(torch.ones(dim))
            self.mlp = Mlp(dim, options=options, mlp_dim=left.mlp_dim)

    def forward(self, class_token: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """(B, 1, C), (B, T, C) -> (B, 1, C)"""
        if self.attn is not None:
            class_token = class_token + self.attn(self.norm1(torch.cat([class_token, x], dim=1)), bias) * self.gamma1
        return class_token if self.mlp is None else class_token + self.mlp(self.norm2(class_token)) * self.gamma2
