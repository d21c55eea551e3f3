"""FSLA, feature-space local attention (BOAT, arXiv 2201.13027): attention inside balanced clusters of alike tokens.

Per image and head, the queries are split in two equal halves again and again, `depth` times; every token then attends
to the tokens of its own cluster and, across the last cut only, to the nearest `overlap` tokens of the sibling cluster.

Legend: as in base; k cluster_depth, 2**k clusters of m = N / 2**k tokens, n the overlap, G = 2**level lists of s tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Grid
from nasvit.errors import ArchError, ConfigError
from nasvit.models.mixers.base import MIXERS, Mixer, head_width, rows, scaled_attention, to_channels_first, to_channels_last
from nasvit.registry import unknown

ASSIGNMENTS = ("hard", "soft")
ITERATIONS = 2  # of the public code; the article gives no number
TEMPERATURE = 100.0


@torch.no_grad()
def cluster_order(q: Tensor, *, depth: int, iterations: int = ITERATIONS, assign: str = "soft",
                  temperature: float = TEMPERATURE) -> Tensor:
    """The token list after `depth` balanced splits: its 2**depth consecutive equal pieces are the clusters.

    q: (.., N, d), each leading index clustered on its own. Returns (.., N) int64, a permutation of 0..N-1. No gradient.
    assign: "soft" weights every token by softmax(temperature * cosine) in the iterations and cuts once at the end (the
    public code); "hard" cuts in every iteration (the article). Raises ArchError where N does not divide by 2**depth.
    """
    if q.dtype in (torch.bfloat16, torch.float16):  # cosines of 8 bits are ties: the cuts would be chance
        with torch.autocast(q.device.type, enabled=False):
            return cluster_order(q.float(), depth=depth, iterations=iterations, assign=assign, temperature=temperature)
    if assign not in ASSIGNMENTS:
        raise ConfigError(unknown("cluster assignment", assign, list(ASSIGNMENTS)))
    tokens, dim = q.shape[-2:]
    if not torch.jit.is_tracing() and tokens % 2**depth:  # while tracing, sizes are tensors and a test of one warns
        raise ArchError(f"{tokens} tokens cannot be split into {2**depth} equal clusters: choose a smaller cluster_depth")
    lead = q.shape[:-2]
    if depth == 0:
        return torch.arange(tokens, device=q.device).expand(*lead, tokens)
    q = q.reshape(-1, dim)  # (.., N, d) -> (rows, d), reordered after each level
    order = torch.arange(tokens, device=q.device).expand(q.shape[0] // tokens, tokens).reshape(-1)
    inverse_norm = q.norm(dim=-1).clamp_min(1e-12).reciprocal()
    for level in range(depth):
        size = tokens // 2**level
        ratio = _split_ratio(q.view(-1, size, dim), inverse_norm.view(-1, 1, size), iterations, assign, temperature)
        first = torch.arange(0, q.shape[0], size, device=q.device).unsqueeze(1)
        rows = (ascending(ratio) + first).flatten()  # (G, s) -> rows of the flat list
        order = order.index_select(0, rows)
        if level + 1 < depth:
            q, inverse_norm = q.index_select(0, rows), inverse_norm.index_select(0, rows)
    return order.view(*lead, tokens)


def _split_ratio(q: Tensor, inverse_norm: Tensor, iterations: int, assign: str, temperature: float) -> Tensor:
    """(G, s, d) queries and (G, 1, s) inverse norms -> (G, s) ratio of similarities to the two centroids of each list.

    The first centroids are the means of the halves of the list as it stands: its order matters.
    """
    lists, size, dim = q.shape
    columns, sharpness = q.transpose(1, 2), inverse_norm * temperature
    centroids = F.normalize(q.view(lists, 2, size // 2, dim).sum(dim=2), dim=-1)  # (G, 2, d)
    for _ in range(iterations):
        if assign == "soft":  # softmax over two is the sigmoid of the difference, of either sign
            differences = (centroids - centroids.flip(1)) @ columns  # (G, 2, d) @ (G, d, s)
            weights = differences.mul_(sharpness).sigmoid_()
        else:
            rank = ascending(ascending(_ratio(centroids, columns, inverse_norm)))
            nearer = (rank >= size // 2).to(q.dtype).unsqueeze(1)
            weights = torch.cat((nearer, 1 - nearer), dim=1)
        centroids = F.normalize(weights @ q, dim=-1)  # (G, 2, s) @ (G, s, d)
    return _ratio(centroids, columns, inverse_norm)


def _ratio(centroids: Tensor, columns: Tensor, inverse_norm: Tensor) -> Tensor:
    """(G, 2, d), (G, d, s), (G, 1, s) -> (G, s): (cos_0 + 1) / (cos_1 + 1)"""
    cosines = (centroids @ columns).mul_(inverse_norm).add_(1)
    return cosines[:, 0] / cosines[:, 1]


def ascending(keys: Tensor) -> Tensor:
    """(G, s) -> (G, s), the positions of each row's keys in ascending order; which of two equal keys is first is left open.

    By numpy on a CPU outside of traces: it sorts with vector instructions, in 0.16 to 0.25 of torch's time (AMD EPYC, AVX-512).
    Plain sort elsewhere: sort(stable=True) cannot be exported to ONNX.
    """
    eager = type(keys) is Tensor and keys.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    if eager and keys.dtype in (torch.float32, torch.float64, torch.int64):
        return torch.from_numpy(np.argsort(keys.numpy(), axis=-1))
    return keys.sort(dim=-1).indices


def key_lists(order: Tensor, *, depth: int, overlap: int) -> Tensor:
    """(.., N) -> (.., 2**depth, m + overlap): the tokens that serve each cluster as keys and values.

    Of two siblings A, B of the last split, A sees A and the first `overlap` of B, B sees the last `overlap` of A and B.
    """
    size = order.shape[-1] // 2**depth
    if depth == 0 or overlap == 0:
        return order.unflatten(-1, (2**depth, size))
    siblings = order.unflatten(-1, (2 ** (depth - 1), 2 * size))  # (.., pairs, A then B)
    pairs = torch.stack((siblings[..., : size + overlap], siblings[..., size - overlap:]), dim=-2)
    return pairs.flatten(-3, -2)


def cluster_attention(q: Tensor, k: Tensor, v: Tensor, order: Tensor, *, depth: int, overlap: int, scale: float | None = None) -> Tensor:
    """Attention of every query to the keys of its cluster; all (B, h, N, d), result in the order of `q`.

    order: (B, h, N) of `cluster_order`. overlap is of keys and values only, so nothing has to be merged. scale: d**-0.5.
    """
    packed = torch.stack((q, k, v), dim=3).permute(0, 2, 3, 1, 4)  # (B, N, 3, h, d)
    return packed_attention(packed, order, depth=depth, overlap=overlap, scale=scale).transpose(1, 2)


def packed_attention(qkv: Tensor, order: Tensor, *, depth: int, overlap: int, scale: float | None) -> Tensor:
    """`cluster_attention` on (B, N, 3, h, d), what a projection gives: (B, N, h, d), with one gather before and one behind.

    Nothing is copied into another layout on the way: every queried row is found where the projection left it.
    """
    batch, tokens, _, heads, dim = qkv.shape
    if depth == 0:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        return scaled_attention(q, k, v, scale=scale).transpose(1, 2)
    image = torch.arange(0, batch * tokens, tokens, device=order.device).view(-1, 1, 1)
    head = torch.arange(heads, device=order.device).view(-1, 1)
    flat = (order + image) * (3 * heads) + head  # (B, h, N), the row of each query in `qkv` as a list of rows
    keys = key_lists(flat, depth=depth, overlap=overlap) + heads
    lists = heads * 2**depth
    picked = rows(qkv, torch.cat((flat.flatten(), keys.flatten(), keys.flatten() + heads)))
    q, k, v = picked.split((flat.numel(), keys.numel(), keys.numel()))
    q, k, v = (t.view(batch, lists, -1, dim) for t in (q, k, v))  # (B, h * 2**k, m, d), and m + n keys and values
    out = scaled_attention(q, k, v, scale=scale)
    position = torch.arange(tokens, device=order.device).expand_as(order)
    inverse = torch.zeros_like(order).scatter(-1, order, position) + (image * heads + head * tokens)
    return rows(out, inverse.transpose(1, 2))


@MIXERS.register("fsla")
class FSLAMixer(Mixer):
    """Attention inside 2**cluster_depth balanced clusters per head, plus LePE: a depthwise 3x3 convolution of the values.

    num_heads: divides C unless head_dim, the channels of a head, is given. cluster_depth: 0 is plain attention; 2**cluster_depth
    divides N. overlap: tokens of the sibling cluster each cluster also sees, 0 to N / 2**cluster_depth (0 at cluster_depth 0). qk_scale:
    what the logits are multiplied by, a positive float; left out it is d ** -0.5 (BOAT-CSWin's weights are trained with 1.0). Raises
    ArchError otherwise.
    """

    def __init__(self, dim: int, *, resolution: Grid, num_heads: int, cluster_depth: int, overlap: int,
                 head_dim: int | None = None, qk_scale: float | None = None) -> None:
        super().__init__()
        self.head_dim = head_width("fsla", dim, resolution=resolution, num_heads=num_heads, head_dim=head_dim, cluster_depth=cluster_depth,
                                   overlap=overlap)
        self.dim, self.resolution, self.inner = dim, resolution, num_heads * self.head_dim
        own = self.head_dim**-0.5  # a network has one spelling
        if qk_scale is not None and not (isinstance(qk_scale, float) and 0 < qk_scale < math.inf and qk_scale != own):
            raise ArchError(f"mixer fsla: qk_scale {qk_scale!r} is not possible; accepted: a positive float, "
                            f"left out where it is d ** -0.5, here {own}")
        self.num_heads, self.cluster_depth, self.overlap, self.qk_scale = num_heads, cluster_depth, overlap, qk_scale
        self.qkv = nn.Linear(dim, 3 * self.inner)
        self.lepe = nn.Conv2d(self.inner, self.inner, 3, padding=1, groups=self.inner)
        self.proj = nn.Linear(self.inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x)
        packed = qkv.view(batch, height * width, 3, self.num_heads, self.head_dim)
        order = cluster_order(packed[:, :, 0].transpose(1, 2), depth=self.cluster_depth)  # of (B, h, N, d)
        out = packed_attention(packed, order, depth=self.cluster_depth, overlap=self.overlap, scale=self.qk_scale)
        values = to_channels_first(qkv[..., 2 * self.inner:])
        return self.proj(out.reshape(batch, height, width, self.inner) + to_channels_last(self.lepe(values)))

    def macs(self) -> int:
        """Multiply-adds of one image: projections, LePE, attention, and the matrix products of the clustering."""
        tokens = self.resolution[0] * self.resolution[1]
        keys = (tokens >> self.cluster_depth) + self.overlap
        clustering = self.cluster_depth * (4 * ITERATIONS + 2)  # per iteration 2 similarities and 2 centroids, then 2 similarities
        return tokens * self.inner * (4 * self.dim + 9 + 2 * keys + clustering)
