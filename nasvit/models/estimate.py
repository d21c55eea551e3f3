"""Costs of an Arch in microseconds, without building the network: sums over its parts, each built once and remembered.

For choosing candidates only: the figures of a record are counted by `nasvit.cost`. Norms and slow-fast bookkeeping are left out.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from nasvit.arch import Arch, Block, Grid, MixerSpec, Stage, Stem, keep_count
from nasvit.models.mixers import make_mixer
from nasvit.models.patch_embed import make_downsample, make_stem


@lru_cache(maxsize=50_000)
def mixer_cost(spec: MixerSpec, dim: int, grid: Grid) -> tuple[int, int, bool]:
    """MACs on all tokens, parameters, and whether fewer tokens would do."""
    with torch.device("meta"):
        module = make_mixer(spec, dim=dim, resolution=grid)
    return module.macs(), sum(p.numel() for p in module.parameters()), module.token_sets


def _block(block: Block, dim: int, grid: Grid) -> tuple[int, int]:
    """MACs and parameters."""
    tokens = grid[0] * grid[1]
    kept = tokens if block.keep_ratio == 1 else keep_count(tokens, block.keep_ratio) + 1
    macs, params = 2 * dim * block.mlp_dim * kept, 2 * dim * block.mlp_dim + block.mlp_dim + dim + 2 * dim * (len(block.mixers) + 1)
    for spec in block.mixers:
        mixed, more, any_set = mixer_cost(spec, dim, grid)
        macs, params = macs + (mixed * kept // tokens if any_set else mixed), params + more
    return macs, params


@lru_cache(maxsize=10_000)
def join_cost(kind: str, in_dim: int, dim: int, grid: Grid) -> tuple[int, int]:
    """MACs and parameters of a downsampling that ends at this grid."""
    with torch.device("meta"):
        module = make_downsample(kind, dim=in_dim, out_dim=dim)
    params = sum(p.numel() for p in module.parameters())
    return _weights(module) * grid[0] * grid[1], params


def _weights(module: nn.Module) -> int:
    """Multiply-adds for each output position: every weight of a convolution or linear layer once."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))


@lru_cache(maxsize=1000)
def stem_cost(stem: Stem, image_size: Grid, in_channels: int, dim: int) -> tuple[int, int]:
    """MACs and parameters of a stem."""
    any_block = Block(mixers=(MixerSpec.of("catm"),), mlp_dim=1)
    stage = Stage(embed_dim=dim, blocks=(any_block,))
    arch = Arch(image_size=image_size, in_channels=in_channels, num_classes=1, stem=stem, stages=(stage,))
    with torch.device("meta"):
        module = make_stem(arch)
    height, width = image_size
    macs = 0
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            height, width = -(-height // layer.stride[0]), -(-width // layer.stride[1])
            macs += layer.weight.numel() * height * width
    return macs, sum(p.numel() for p in module.parameters())


def estimate(arch: Arch) -> tuple[int, int]:
    """(MACs of one image, parameters), about; slow-fast blocks save in proportion to the tokens they keep.

    Raises ArchError for a downsampling that no space has (LeViT's).
    """
    macs, params = stem_cost(arch.stem, arch.image_size, arch.in_channels, arch.stages[0].embed_dim)
    before = arch.stages[0].embed_dim
    for s, stage in enumerate(arch.stages):
        grid, dim = arch.grid(s), stage.embed_dim
        if s:
            joined, more = join_cost(stage.downsample, before, dim, grid)
            macs, params = macs + joined, params + more
        for block in stage.blocks:
            mixed, more = _block(block, dim, grid)
            macs, params = macs + mixed, params + more
        before = dim
    return macs + before * arch.num_classes, params + (before + 1) * arch.num_classes
