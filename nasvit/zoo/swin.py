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
              mlp_ratio: float = 4.0, patch_size: int = 4, pos_embed: bool = False, patch_norm: bool = True) -> Arch:
    """Swin's pyramid: patches of 4x4 with layer norm, patch merging, widths that double, layer norm before the mean."""
    def stage(s: int, depth: int) -> Stage:
        dim, divisor = embed_dim * 2**s, patch_size * 2**s
        grid = (-(-image_size[0] // divisor), -(-image_size[1] // divisor))
        blocks = tuple(Block(mixers=mixers(s, b, grid), mlp_dim=int(dim * mlp_ratio)) for b in range(depth))
        return Stage(embed_dim=dim, blocks=blocks, downsample="merge" if s else "conv")

    return Arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes,
                stem=Stem(kind="patch_norm" if patch_norm else "patch", stride=patch_size, pos_embed=pos_embed),
                stages=tuple(stage(s, depth) for s, depth in enumerate(depths)), head=Head(kind="norm_mean"))


def around(checkpoint: Checkpoint, arch: Arch, *, head: str | None = "head", merging_leads: bool = False) -> dict[str, Tensor]:
    """Everything but the blocks' mixers, from Swin's official names: embedding, merging, norms, MLPs, head (None: there is none).

    merging_leads: the patch merging stands at the beginning of a stage (timm, with the head `head.fc`), not at the end of the one before.
    """
    ours = checkpoint.take_all("patch_embed.proj", "stem.proj") | checkpoint.take_all("norm", "norm")
    if head:
        ours |= checkpoint.take_all(head, "head")
    if arch.stem.kind == "patch_norm":
        ours |= checkpoint.take_all("patch_embed.norm", "stem.norm")
    if arch.stem.pos_embed:
        ours["pos_embed"] = checkpoint.take("absolute_pos_embed").unflatten(1, arch.grid(0))
    for s, stage in enumerate(arch.stages):
        if s:
            for part in ("norm", "reduction"):
                ours |= checkpoint.take_all(f"layers.{s if merging_leads else s - 1}.downsample.{part}", f"stages.{s}.downsample.{part}")
        for b in range(len(stage.blocks)):
            ours |= around_mixer(checkpoint, f"layers.{s}.blocks.{b}", f"stages.{s}.blocks.{b}")
    return ours


def around_mixer(checkpoint: Checkpoint, theirs: str, to: str) -> dict[str, Tensor]:
    """The norms and the MLP of a block."""
    ours = checkpoint.take_all(f"{theirs}.norm1", f"{to}.norms.0") | checkpoint.take_all(f"{theirs}.norm2", f"{to}.mlp_norm")
    for layer in ("fc1", "fc2"):
        ours |= checkpoint.take_all(f"{theirs}.mlp.{layer}", f"{to}.mlp.{layer}")
    return ours


def window_attention(checkpoint: Checkpoint, theirs: str, to: str) -> dict[str, Tensor]:
    """Swin's window attention: the names are ours already, but for derived tables. No bias of q, k and v is a bias of zeros."""
    ours = checkpoint.take_all(theirs, to)
    weight = ours.get(f"{to}.qkv.weight")
    return {f"{to}.qkv.bias": weight.new_zeros(len(weight)), **ours} if weight is not None else ours


def from_timm(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """timm's Swin into any system built on it: of each block's first mixer the projections, and its bias table where that is of the
    same window; a mixer that is added to Swin, or put in the window's place, otherwise keeps its initial values."""
    ours = around(checkpoint, arch, head="head.fc" if "head.fc.weight" in checkpoint else None, merging_leads=True)
    for s, stage in enumerate(arch.stages):
        for b, block in enumerate(stage.blocks):
            theirs, to, mixer = f"layers.{s}.blocks.{b}.attn", f"stages.{s}.blocks.{b}.mixers.0", block.mixers[0].kwargs
            for layer in ("qkv", "proj"):
                ours |= checkpoint.take_all(f"{theirs}.{layer}", f"{to}.{layer}")
            table = f"{theirs}.relative_position_bias_table"
            if "window_size" in mixer and checkpoint.fits(table, ((2 * int(mixer["window_size"]) - 1) ** 2, int(mixer["num_heads"]))):
                ours[f"{to}.relative_position_bias_table"] = checkpoint.take(table)
    return ours
