"""Window attention with relative positions and shifted windows (Swin Transformer, arXiv 2103.14030).

Legend: as in base; w window_size, n = w*w tokens of a window, Hp x Wp the map padded to multiples of w, nW windows of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Grid
from nasvit.models.mixers.base import MIXERS, Mixer, head_width, scaled_attention

OTHER_REGION = -100.0  # Swin's value: what rolled in from the far side of the map
KEPT_BIAS = 4_000_000
"""Elements of a bias that the inference form keeps in memory; a larger one (a window as large as the map) is made in each call."""


def partition(x: Tensor, *, window_size: int) -> Tensor:
    """(B, Hp, Wp, C) -> (B * nW, n, C), windows row by row."""
    batch, height, width, dim = x.shape
    rows, columns = height // window_size, width // window_size
    tiles = x.view(batch, rows, window_size, columns, window_size, dim).transpose(2, 3)
    return tiles.reshape(batch * rows * columns, window_size**2, dim)


def merge(windows: Tensor, *, window_size: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`: (B * nW, n, C) -> (B, Hp, Wp, C)."""
    rows, columns = height // window_size, width // window_size
    tiles = windows.reshape(-1, rows, columns, window_size, window_size, windows.shape[-1]).transpose(2, 3)
    return tiles.reshape(-1, height, width, windows.shape[-1])


def relative_index(window_size: int) -> Tensor:
    """(n * n,) rows of the bias table, query major: (dy + w - 1) * (2w - 1) + dx + w - 1, dy and dx query minus key."""
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(window_size), torch.arange(window_size), indexing="ij"))
    dy, dx = y[:, None] - y[None, :] + window_size - 1, x[:, None] - x[None, :] + window_size - 1
    return (dy * (2 * window_size - 1) + dx).flatten()


def window_mask(resolution: Grid, *, window_size: int, shift: int) -> Tensor | None:
    """(nW, n, n), added to the logits: -inf for keys in the padding, -100 between regions, else 0; None if all is 0.

    Every row keeps a finite entry (each window holds a token of the map), so no softmax is undefined.
    """
    height, width = resolution
    padded = [-(-size // window_size) * window_size for size in resolution]
    if padded == [height, width] and not shift:
        return None
    y, x = (torch.arange(size) for size in padded)
    outside = ((y >= height)[:, None] | (x >= width)[None, :]).roll((-shift, -shift), (0, 1))
    band_y, band_x = (((t >= size - window_size).long() + (t >= size - shift).long()) if shift else torch.zeros_like(t)
                      for t, size in zip((y, x), padded, strict=True))
    region = band_y[:, None] * 3 + band_x[None, :]
    outside, region = (partition(t[None, :, :, None], window_size=window_size)[..., 0] for t in (outside, region))
    mask = (region[:, :, None] != region[:, None, :]).float() * OTHER_REGION
    return mask.masked_fill(outside[:, None, :], float("-inf"))


@MIXERS.register("window")
class WindowMixer(Mixer):
    """Attention inside w x w windows, with a learned bias for each relative position and head.

    window_size: w, at most the shorter side of the map; a map that w does not divide is padded at the bottom and right,
    and the padding is never attended to. shift: windows are displaced by w // 2, and what that wraps around is masked.
    num_heads: divides C unless head_dim, the channels of a head, is given. Raises ArchError otherwise.
    """

    mask: Tensor | None
    index: Tensor
    bias: Tensor | None

    def __init__(self, dim: int, *, resolution: Grid, num_heads: int, window_size: int, shift: bool,
                 head_dim: int | None = None) -> None:
        super().__init__()
        self.head_dim = head_width("window", dim, resolution=resolution, num_heads=num_heads, head_dim=head_dim, window_size=window_size,
                                   shift=shift)
        self.dim, self.resolution, self.num_heads, self.window_size = dim, resolution, num_heads, window_size
        self.inner = num_heads * self.head_dim
        self.shift = window_size // 2 if shift else 0
        self.padded = tuple(-(-size // window_size) * window_size for size in resolution)
        self.pads = self.padded != tuple(resolution)
        self.qkv = nn.Linear(dim, 3 * self.inner)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.proj = nn.Linear(self.inner, dim)
        self.register_buffer("index", relative_index(window_size), persistent=False)
        self.register_buffer("mask", window_mask(resolution, window_size=window_size, shift=self.shift), persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def deploy_(self) -> None:
        """Bias and mask are added for good: 5 to 16 % of a call on one thread where windows are shifted, up to 8 % elsewhere.

        The state dict stays as it is, and loading one adds them anew."""
        windows = 1 if self.mask is None else len(self.mask)
        if windows * self.num_heads * self.window_size**4 <= KEPT_BIAS:
            self._keep_bias(self)
            self.register_load_state_dict_post_hook(self._keep_bias)

    @staticmethod
    def _keep_bias(mixer: nn.Module, _: object = None) -> None:
        assert isinstance(mixer, WindowMixer)
        with torch.no_grad():
            mixer.bias = mixer.logit_bias()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        batch, height, width, _ = x.shape
        padded_height, padded_width = self.padded
        if self.pads:  # projected first: the padding needs no q, k and v, for nobody looks at them
            x = F.pad(self.qkv(x), (0, 0, 0, padded_width - width, 0, padded_height - height))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = partition(x, window_size=self.window_size)
        out = self.attend(windows if self.pads else self.qkv(windows), batch=batch)
        out = merge(out, window_size=self.window_size, height=padded_height, width=padded_width)
        if self.shift:
            out = out.roll((self.shift, self.shift), (1, 2))
        if self.pads:
            out = out[:, :height, :width]
        return self.proj(out)

    def attend(self, projected: Tensor, *, batch: int) -> Tensor:
        """(B * nW, n, 3I) queries, keys and values -> (B * nW, n, I), attention inside each window."""
        count, tokens = projected.shape[:2]
        split = projected.view(count, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind()  # 3 of (B * nW, h, n, d)
        bias = self.logit_bias() if self.bias is None else self.bias
        if self.mask is not None:  # windows beside the heads: so one bias per window and head serves every image of the batch
            q, k, v = (t.reshape(batch, -1, tokens, self.head_dim) for t in (q, k, v))
        out = scaled_attention(q, k, v, bias=bias).view(count, self.num_heads, tokens, self.head_dim)
        return out.transpose(1, 2).reshape(count, tokens, self.inner)

    def logit_bias(self) -> Tensor:
        """(1, h, n, n), or (1, nW * h, n, n) where a mask tells windows apart: what is added to the scaled products."""
        tokens = self.window_size**2
        bias = self.relative_position_bias_table.index_select(0, self.index).t().view(1, self.num_heads, tokens, tokens)
        return bias if self.mask is None else (bias + self.mask.unsqueeze(1)).flatten(0, 1)[None]

    def macs(self) -> int:
        """Multiply-adds of one image: projections on the map itself, attention on the padded map."""
        tokens, padded = (height * width for height, width in (self.resolution, self.padded))
        return self.inner * (padded * 2 * self.window_size**2 + tokens * 4 * self.dim)
