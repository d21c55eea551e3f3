"""Slide attention: each token attends to its k x k neighbours, displaced by a learned kernel (Slide-Transformer, arXiv 2304.04237).

Legend: as in base; k kernel_size, T = k*k taps, row by row from the upper left; S_s(x) is x displaced by tap s, zero outside.
A tap t of the neighbourhood is not S_t(x) but sum_s W[c, t, s] S_s(x)_c + b[c, t]: the paper's fixed displacement
(W the identity) plus its learned depthwise convolution, both in one kernel W and one bias b.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Grid
from nasvit.models.mixers.base import MIXERS, Mixer, head_width

AT_ONCE = 500_000
"""A graph holds the map of T * d channels where it has at most so many elements an image: fewer, larger operations (in ONNX Runtime 0.5 to
1.0 of the time); a larger one leaves the cache (1.2 to 1.3)."""
TAPS = ("key_taps", "key_constant", "value_taps", "value_constant")  # buffers of the inference form


def displacement(kernel_size: int) -> Tensor:
    """(T, k, k): the fixed path; tap t has its single 1 at row t // k, column t % k."""
    return torch.eye(kernel_size**2).view(kernel_size**2, kernel_size, kernel_size)


def _displaced(x: Tensor, kernel_size: int) -> list[Tensor]:
    """(B*h, d, H, W) -> T views of the same shape into one padded copy."""
    reach = kernel_size // 2
    height, width = x.shape[-2:]
    padded = F.pad(x, (reach, reach, reach, reach))
    return [padded[..., row:row + height, column:column + width] for row in range(kernel_size) for column in range(kernel_size)]


class Taps(NamedTuple):
    """A kernel as the sums of `attend` read it. key (s, t, d), key_constant (h, T, d): bias and position; value (s, d, t),
    value_constant (d, T)."""

    key: Tensor
    key_constant: Tensor
    value: Tensor
    value_constant: Tensor


def lay_out(*, kernel: Tensor, bias: Tensor, position: Tensor, value_kernel: Tensor | None = None,
            value_bias: Tensor | None = None, scale: float = 1.0) -> Taps:
    """Kernel (d, T, k, k), fixed and learned path added, bias (d, T), position (h, T), added to every channel of the key -> Taps.

    The values use the same kernel and bias unless given their own. scale multiplies the logits.
    """
    value_kernel = kernel if value_kernel is None else value_kernel
    value_bias = bias if value_bias is None else value_bias
    return Taps(key=kernel.flatten(2).permute(2, 1, 0).contiguous() * scale,
                key_constant=(bias.t() + position.unsqueeze(-1)) * scale,
                value=value_kernel.flatten(2).permute(2, 0, 1).contiguous(), value_constant=value_bias)


def attend(q: Tensor, k: Tensor, v: Tensor, taps: Taps) -> Tensor:
    """Softmax attention over the T taps of each token, exact, without a map of T * d channels.

    q, k, v: (B, h, d, H, W), rows in one piece. Taps outside the map take part, as zeros. Returns (B, h, d, H, W).

    With W and b taken out of the sums (4 to 10 times faster on a CPU than convolving keys and values to T * d channels):
    logits_t = sum_s sum_c W[c,t,s] (q_c S_s(k)_c) + sum_c q_c (b[c,t] + r_t),
    out_c = sum_s S_s(v)_c (sum_t W[c,t,s] a_t) + sum_t b[c,t] a_t. The sums over s grow in place (a tenth faster).
    """
    batch, heads, dim, height, width = q.shape
    count, kernel_size = taps.key.shape[0], math.isqrt(taps.key.shape[0])
    pairs = batch * heads
    q, k, v = (t.reshape(pairs, dim, height, width) for t in (q, k, v))
    taps = Taps(*(t.to(q.dtype) for t in taps))  # products in place are not cast by autocast
    constant = taps.key_constant.expand(batch, heads, count, dim).reshape(pairs, count, dim) @ q.flatten(2)  # (B*h, T, N)
    if torch.compiler.is_compiling() and heads * dim * count * height * width <= AT_ONCE:
        return _attend_at_once(q, k, v, taps, constant=constant).view(batch, heads, dim, height, width)

    logits = constant
    for weight, near in zip(taps.key.unbind(), _displaced(k, kernel_size), strict=True):
        logits.baddbmm_(weight.expand(pairs, count, dim), (q * near).flatten(2))
    attention = logits.softmax(dim=1).to(q.dtype)  # autocast gives float32; cast once, not for each tap

    out = torch.bmm(taps.value_constant.expand(pairs, dim, count), attention).view_as(q)
    for weight, near in zip(taps.value.unbind(), _displaced(v, kernel_size), strict=True):
        share = torch.bmm(weight.expand(pairs, dim, count), attention).view_as(q)
        out.addcmul_(share, near)
    return out.view(batch, heads, dim, height, width)


def _attend_at_once(q: Tensor, k: Tensor, v: Tensor, taps: Taps, *, constant: Tensor) -> Tensor:
    """`attend` with all taps in one product, for graphs: (B*h, d, H, W) -> the same."""
    pairs, dim = q.shape[:2]
    count = taps.key.shape[0]
    kernel_size = math.isqrt(count)
    products = q.unsqueeze(1) * torch.stack(_displaced(k, kernel_size), dim=1)  # (B*h, T, d, H, W)
    logits = taps.key.transpose(0, 1).reshape(count, count * dim) @ products.reshape(pairs, count * dim, -1) + constant
    attention = logits.softmax(dim=1)
    shares = (taps.value.reshape(count * dim, count) @ attention).view(products.shape)
    out = (shares * torch.stack(_displaced(v, kernel_size), dim=1)).sum(dim=1)
    return out + (taps.value_constant @ attention).view(q.shape)


@MIXERS.register("slide")
class SlideMixer(Mixer):
    """Attention to the kernel_size x kernel_size neighbours with deformed shifting; one kernel serves keys, values and all heads.

    kernel_size: odd, from 3. num_heads: divides C unless head_dim, the channels of a head, is given. Raises ArchError otherwise. The
    fixed path's kernel is no parameter, its bias is one, as published; the two paths are added anew in each forward, so the sum is never
    stale. `deploy_` adds them for good.
    """

    fixed: Tensor

    def __init__(self, dim: int, *, resolution: Grid, num_heads: int, kernel_size: int, head_dim: int | None = None) -> None:
        super().__init__()
        head_dim = head_width("slide", dim, resolution=resolution, num_heads=num_heads, head_dim=head_dim, kernel_size=kernel_size)
        self.dim, self.resolution, self.num_heads, self.kernel_size = dim, resolution, num_heads, kernel_size
        self.head_dim, self.inner, taps = head_dim, num_heads * head_dim, kernel_size**2
        self.scale = head_dim**-0.5
        self.merged = False
        self.qkv = nn.Linear(dim, 3 * self.inner)
        self.kernel = nn.Parameter(torch.empty(head_dim, taps, kernel_size, kernel_size))
        self.kernel_bias = nn.Parameter(torch.empty(head_dim, taps))
        self.fixed_bias = nn.Parameter(torch.empty(head_dim, taps))
        for parameter in (self.kernel, self.kernel_bias, self.fixed_bias):  # what a depthwise k x k convolution starts with
            nn.init.uniform_(parameter, -1 / kernel_size, 1 / kernel_size)
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_heads, taps))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("fixed", displacement(kernel_size), persistent=False)
        self.proj = nn.Linear(self.inner, dim)

    def merged_kernel(self) -> tuple[Tensor, Tensor]:
        """Kernel (d, T, k, k) and bias (d, T) of the fixed and the learned path together."""
        return self.fixed + self.kernel, self.fixed_bias + self.kernel_bias

    def taps(self) -> Taps:
        """The kernel as `attend` reads it: laid out anew from the parameters, or once and for all in the inference form."""
        if self.merged:
            return Taps(*(self.get_buffer(name) for name in TAPS))
        kernel, bias = self.merged_kernel()
        return lay_out(kernel=kernel, bias=bias, position=self.relative_position_bias_table, scale=self.scale)

    def deploy_(self) -> None:
        """The merged kernel as buffers in place of the paths' parameters: nothing is left to lay out in a forward."""
        if self.merged:
            return
        with torch.no_grad():
            taps = self.taps()
        for name in ("kernel", "kernel_bias", "fixed_bias", "relative_position_bias_table", "fixed"):
            delattr(self, name)
        for name, tensor in zip(TAPS, taps, strict=True):
            self.register_buffer(name, tensor.clone())
        self.merged = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        batch, height, width, _ = x.shape
        split = self.qkv(x).view(batch, height, width, 3, self.num_heads, self.head_dim)
        q, k, v = split.permute(3, 0, 4, 5, 1, 2).contiguous().unbind()  # 3 of (B, h, d, H, W): rows lie in one piece
        out = attend(q, k, v, self.taps())
        return self.proj(out.permute(0, 3, 4, 1, 2).reshape(batch, height, width, self.inner))

    def product_macs(self) -> int:
        """T products per channel with the keys and T with the values: elementwise here, sums of products in the paper."""
        return 2 * self.kernel_size**2 * self.resolution[0] * self.resolution[1] * self.inner

    def macs(self) -> int:
        """Multiply-adds of one image: projections, kernel of keys and of values (k**4 each), products, and biases."""
        tokens, taps = self.resolution[0] * self.resolution[1], self.kernel_size**2
        return tokens * self.inner * (4 * self.dim + 2 * taps**2 + 2 * taps + 2 * taps)
