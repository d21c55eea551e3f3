"""CSWin Transformer (arXiv 2107.00652; released code, three sizes): cross-shaped windows, the baselines that BOAT-CSWin stands on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from nasvit.arch import Arch, Block, Grid, Head, MixerSpec, Stage, Stem
from nasvit.zoo.checkpoint import Checkpoint
from nasvit.zoo.family import FAMILIES, Family, cfg, checkpoint_filter_fn, create

from timm.models import generate_default_cfgs, register_model  # isort: skip (behind ours, which make torchvision importable)

__all__ = ["checkpoint_filter_fn", "cswin_base", "cswin_small", "cswin_tiny"]

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 64, "depths": (1, 2, 21, 1), "num_heads": (2, 4, 8, 16)},
    "small": {"embed_dim": 64, "depths": (2, 4, 32, 2), "num_heads": (2, 4, 8, 16)},
    "base": {"embed_dim": 96, "depths": (2, 4, 32, 2), "num_heads": (4, 8, 16, 32)},
}
"""The published sizes; at 224 px stripes are 1, 2, 7 tokens wide (1, 2, 12 at 384 px), and cover the map of the last stage."""

Beside = Callable[[int, int, Grid], tuple[MixerSpec, ...]]
"""(stage, block, grid) -> mixers that follow the cross-shaped windows of a block."""


def cswin_arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int],
               split_sizes: Sequence[int], mlp_ratio: float, beside: Beside) -> Arch:
    """CSWin's pyramid. The last stage attends to its whole map whatever its split size, as in the released code."""
    def stage(s: int, depth: int) -> Stage:
        dim, divisor = embed_dim * 2**s, 4 * 2**s
        grid = (-(-image_size[0] // divisor), -(-image_size[1] // divisor))
        split = max(grid) if s + 1 == len(depths) else min(split_sizes[s], max(grid))
        cross = MixerSpec.of("cross_window", num_heads=num_heads[s], split_size=split)
        blocks = tuple(Block(mixers=(cross, *beside(s, b, grid)), mlp_dim=int(dim * mlp_ratio)) for b in range(depth))
        return Stage(embed_dim=dim, blocks=blocks, downsample="overlap_norm" if s else "conv")

    return Arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes, stem=Stem(kind="cswin", stride=4),
                stages=tuple(stage(s, depth) for s, depth in enumerate(depths)), head=Head(kind="norm_mean"))


def arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int],
         split_sizes: Sequence[int] = (1, 2, 7, 7), mlp_ratio: float = 4.0) -> Arch:
    """Any H, W divisible by 4; stripes that do not divide a map are padded, and the padding is not attended to."""
    return cswin_arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes, embed_dim=embed_dim, depths=depths,
                      num_heads=num_heads, split_sizes=split_sizes, mlp_ratio=mlp_ratio, beside=lambda s, b, grid: ())


def take_block(checkpoint: Checkpoint, theirs: str, to: str, *, branches: int) -> dict[str, Tensor]:
    """One block without what BOAT adds; `branches`: of its attention, 1 where a stripe covers the map."""
    names = {"norm1": "norms.0", "qkv": "mixers.0.qkv", "proj": "mixers.0.proj", "norm2": "mlp_norm", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2", **{f"attns.{i}.get_v": f"mixers.0.branches.{i}.lepe" for i in range(branches)}}
    ours: dict[str, Tensor] = {}
    for old, new in names.items():
        ours |= checkpoint.take_all(f"{theirs}.{old}", f"{to}.{new}")
    return ours


def around(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """Everything but what BOAT adds to a block, from the authors' names."""
    ours = {**checkpoint.take_all("stage1_conv_embed.0", "stem.proj"), **checkpoint.take_all("stage1_conv_embed.2", "stem.norm"),
            **checkpoint.take_all("norm", "norm"), **checkpoint.take_all("head", "head")}
    for s, stage in enumerate(arch.stages):
        if s:
            for old, new in (("conv", "proj"), ("norm", "norm")):
                ours |= checkpoint.take_all(f"merge{s}.{old}", f"stages.{s}.downsample.{new}")
        for b, block in enumerate(stage.blocks):
            covers = int(block.mixers[0].kwargs["split_size"]) >= max(arch.grid(s))
            ours |= take_block(checkpoint, f"stage{s + 1}.{b}", f"stages.{s}.blocks.{b}", branches=1 if covers else 2)
    return ours


def official(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """The authors' names to ours; the layouts are the same."""
    return around(checkpoint, arch)


FAMILIES.register("cswin")(Family(name="cswin", arch=arch, official=official, relatives={}))

default_cfgs = generate_default_cfgs({f"cswin_{size}.authors_in1k": cfg("stem.proj", license="mit") for size in SIZES})


def _cswin(size: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    defaults = {"split_sizes": (1, 2, 7, 7), "mlp_ratio": 4.0, **SIZES[size]}
    return create("cswin", f"cswin_{size}", pretrained=pretrained, defaults=defaults, **kwargs)


@register_model
def cswin_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """CSWin-T: 82.7 % top-1 on ImageNet-1k in the paper."""
    return _cswin("tiny", pretrained, {"drop_path_rate": 0.2, **kwargs})


@register_model
def cswin_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """CSWin-S: 83.6 % top-1 on ImageNet-1k in the paper."""
    return _cswin("small", pretrained, {"drop_path_rate": 0.4, **kwargs})


@register_model
def cswin_base(pretrained: bool = False, **kwargs: Any) -> Any:
    """CSWin-B: 84.2 % top-1 on ImageNet-1k in the paper."""
    return _cswin("base", pretrained, {"drop_path_rate": 0.5, **kwargs})
