"""What the systems built on Swin (arXiv 2103.14030) share: its Arch, and its names in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from nasvit.arch import Arch, Block, Grid, Head, MixerSpec, Stage, Stem
from nasvit.zoo.checkpoint import Checkpoint

Mixers = Callable[[int, int, Grid], tuple[MixerSpec, ...]]
"""(stage, block, grid) -> the block's mixers."""


def window(grid: Grid, *, num_heads: int, window_size: int, shift: bool) -> MixerSpec:
    """Window attention where the map's shorter side may be below the window: then one window covers it, unshifted (Swin's rule)."""
    size = min(window_size, *grid)
    return MixerSpec.of("window", num_heads=num_heads, window_size=size, shift=shift and size < min(grid))


def swin_arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dim: int, depths: Sequence[int], mixers: Mixers,
              mlp_ratio: float = 4.0, patch_size: int = 4) -> Arch:
    """Swin's pyramid: patches of 4x4 with layer norm, patch merging, widths that double, layer norm before the mean."""
    def stage(s: int, depth: int) -> Stage:
        dim, divisor = embed_dim * 2**s, patch_size * 2**s
        grid = (-(-image_size[0] // divisor), -(-image_size[1] // divisor))
        blocks = tuple(Block(mixers=mixers(s, b, grid), mlp_dim=int(dim * mlp_ratio)) for b in range(depth))
        return Stage(embed_dim=dim, blocks=blocks, downsample="merge" if s else "conv")

    return Arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes, stem=Stem(kind="patch_norm", stride=patch_size),
                stages=tuple(stage(s, depth) for s, depth in enumerate(depths)), head=Head(kind="norm_mean"))


def around(checkpoint: Checkpoint, arch: Arch, *, head: str = "head", merging_leads: bool = False) -> dict[str, Tensor]:
    """Everything but the blocks' mixers, from Swin's official names: embedding, merging, norms, MLPs, head.

    merging_leads: the patch merging stands at the beginning of a stage (timm, with the head `head.fc`), not at the end of the one before.
    """
    ours = {**checkpoint.take_all("patch_embed.proj", "stem.proj"), **checkpoint.take_all("patch_embed.norm", "stem.norm"),
            **checkpoint.take_all("norm", "norm"), **checkpoint.take_all(head, "head")}
    for s, stage in enumerate(arch.stages):
        if s:
            for part in ("norm", "reduction"):
                ours |= checkpoint.take_all(f"layers.{s if merging_leads else s - 1}.downsample.{part}", f"stages.{s}.downsample.{part}")
        for b in range(len(stage.blocks)):
            theirs, to = f"layers.{s}.blocks.{b}", f"stages.{s}.blocks.{b}"
            ours |= checkpoint.take_all(f"{theirs}.norm1", f"{to}.norms.0")
            ours |= checkpoint.take_all(f"{theirs}.norm2", f"{to}.mlp_norm")
            for layer in ("fc1", "fc2"):
                ours |= checkpoint.take_all(f"{theirs}.mlp.{layer}", f"{to}.mlp.{layer}")
    return ours


def window_attention(checkpoint: Checkpoint, theirs: str, to: str) -> dict[str, Tensor]:
    """Swin's window attention: the names are ours already, but for derived tables."""
    return checkpoint.take_all(theirs, to)
