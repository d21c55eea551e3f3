"""BOAT (arXiv 2201.13027; released code, three sizes each of Swin and CSWin): bilateral blocks, in which feature-space local
attention (FSLA) follows the attention of the image-space windows.

The released code can only cut 224 px (and 448 px) into clusters of 49. Here the cluster size is an argument, and each stage takes
the cluster depth whose clusters come nearest to it: see `clusters`. In the released CSWin code images of a batch mix in the
last stage, where one cluster has no sibling to overlap with; here, as in the article, they do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nasvit.arch import Arch, Grid, MixerSpec, Scalar
from nasvit.errors import ArchError
from nasvit.zoo import cswin, swin
from nasvit.zoo.checkpoint import Checkpoint
from nasvit.zoo.family import FAMILIES, Family, cfg, checkpoint_filter_fn, create

from timm.models import generate_default_cfgs, register_model  # isort: skip (behind ours, which make torchvision importable)

__all__ = ["boat_cswin_base", "boat_cswin_small", "boat_cswin_tiny", "boat_swin_base", "boat_swin_small", "boat_swin_tiny",
           "checkpoint_filter_fn"]

CLUSTER_SIZE, OVERLAP = 49, 20  # fixed in the released code


def clusters(grid: Grid, *, num_heads: int, cluster_size: int, overlap: int, qk_scale: Scalar | None = None) -> MixerSpec:
    """FSLA whose clusters come nearest to `cluster_size` tokens by ratio, the larger ones of two equally near.

    N tokens can be halved as often as 2 divides N, so clusters have N / 2**depth tokens: an odd N is one cluster, which
    is plain attention and has no overlap. Raises ArchError for a cluster size or an overlap that is not possible.
    """
    tokens = grid[0] * grid[1]
    for name, value, least in (("cluster_size", cluster_size, 1), ("overlap", overlap, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArchError(f"{name} must be an integer from {least}, not {value!r}")
    deepest = (tokens & -tokens).bit_length() - 1
    depth = min(range(deepest + 1), key=lambda k: abs(math.log2(tokens / 2**k / cluster_size)))
    size = tokens >> depth
    if depth and overlap > size:
        raise ArchError(f"an overlap of {overlap} tokens is not possible on a {grid[0]}x{grid[1]} map with cluster_size {cluster_size}: "
                        f"its clusters have {size} tokens; accepted: 0 to {size}")
    scale = {} if qk_scale is None else {"qk_scale": qk_scale}
    return MixerSpec.of("fsla", num_heads=num_heads, cluster_depth=depth, overlap=overlap if depth else 0, **scale)


# ---- BOAT-Swin ------------------------------------------------------------------------------------------------------

def swin_arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int],
              window_size: int = 7, cluster_size: int = CLUSTER_SIZE, overlap: int = OVERLAP, fsla_stages: int = 3,
              mlp_ratio: float = 4.0) -> Arch:
    """Swin with FSLA behind the shifted windows of the first `fsla_stages` stages. Any H, W divisible by 4.

    The released code has FSLA wherever windows are shifted; at 224 px that is the first three stages.
    """
    def mixers(s: int, b: int, grid: Grid) -> tuple[MixerSpec, ...]:
        window = swin.window(grid, num_heads=num_heads[s], window_size=window_size, shift=b % 2 == 1)
        if s >= fsla_stages or not window.kwargs["shift"]:
            return (window,)
        return window, clusters(grid, num_heads=num_heads[s], cluster_size=cluster_size, overlap=overlap)

    return swin.swin_arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes, embed_dim=embed_dim, depths=depths,
                          mixers=mixers, mlp_ratio=mlp_ratio)


def content_attention(checkpoint: Checkpoint, theirs: str, to: str, *, attention: str, norm: str) -> dict[str, Tensor]:
    """The FSLA branch of a block, the second of its mixers."""
    names = {f"{attention}.qkv": "mixers.1.qkv", f"{attention}.proj": "mixers.1.proj", f"{attention}.get_v": "mixers.1.lepe",
             norm: "norms.1"}
    ours: dict[str, Tensor] = {}
    for old, new in names.items():
        ours |= checkpoint.take_all(f"{theirs}.{old}", f"{to}.{new}")
    return ours


def take_swin_block(checkpoint: Checkpoint, theirs: str, to: str, *, fsla: bool) -> dict[str, Tensor]:
    """The attentions of a block, and the norm of the second; `swin.around` takes the rest."""
    ours = swin.window_attention(checkpoint, f"{theirs}.attn", f"{to}.mixers.0")
    return ours | (content_attention(checkpoint, theirs, to, attention="attnC", norm="norm4") if fsla else {})


def swin_official(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """The released names to ours; the layouts are the same."""
    ours = swin.around(checkpoint, arch)
    for s, stage in enumerate(arch.stages):
        for b, block in enumerate(stage.blocks):
            ours |= take_swin_block(checkpoint, f"layers.{s}.blocks.{b}", f"stages.{s}.blocks.{b}", fsla=len(block.mixers) > 1)
    return ours


# ---- BOAT-CSWin -----------------------------------------------------------------------------------------------------

def cswin_arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int],
               split_sizes: Sequence[int] = (1, 2, 7, 7), cluster_size: int = CLUSTER_SIZE, overlap: int = OVERLAP,
               fsla_scale: float | str = 1.0, mlp_ratio: float = 4.0) -> Arch:
    """CSWin with FSLA in every second block, from the first. Any H, W divisible by 4.

    fsla_scale: what FSLA's logits are multiplied by; the released weights are trained with 1.0; "head_dim" is d ** -0.5.
    """
    def beside(s: int, b: int, grid: Grid) -> tuple[MixerSpec, ...]:
        if b % 2:
            return ()
        own = (embed_dim * 2**s // num_heads[s]) ** -0.5
        scale = None if fsla_scale in ("head_dim", own) else fsla_scale
        return (clusters(grid, num_heads=num_heads[s], cluster_size=cluster_size, overlap=overlap, qk_scale=scale),)

    return cswin.cswin_arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes, embed_dim=embed_dim, depths=depths,
                            num_heads=num_heads, split_sizes=split_sizes, mlp_ratio=mlp_ratio, beside=beside)


def take_cswin_content(checkpoint: Checkpoint, theirs: str, to: str) -> dict[str, Tensor]:
    """The FSLA branch of a BOAT-CSWin block."""
    return content_attention(checkpoint, theirs, to, attention="content_attn", norm="norm3")


def cswin_official(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """The released names to ours; the layouts are the same."""
    ours = cswin.around(checkpoint, arch)
    for s, stage in enumerate(arch.stages):
        for b, block in enumerate(stage.blocks):
            if len(block.mixers) > 1:
                ours |= take_cswin_content(checkpoint, f"stage{s + 1}.{b}", f"stages.{s}.blocks.{b}")
    return ours


FAMILIES.register("boat_swin")(Family(name="boat_swin", arch=swin_arch, official=swin_official,
                                      relatives={"swintransformer": swin.from_timm}))
FAMILIES.register("boat_cswin")(Family(name="boat_cswin", arch=cswin_arch, official=cswin_official, relatives={}))

SWIN_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}

default_cfgs = generate_default_cfgs({f"boat_{base}_{size}.authors_in1k": cfg("stem.proj", license="none stated")
                                      for base in ("swin", "cswin") for size in SWIN_SIZES})


def _boat_swin(size: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    defaults = {"window_size": 7, "cluster_size": CLUSTER_SIZE, "overlap": OVERLAP, "fsla_stages": 3, "mlp_ratio": 4.0, **SWIN_SIZES[size]}
    return create("boat_swin", f"boat_swin_{size}", pretrained=pretrained, defaults=defaults, **kwargs)


def _boat_cswin(size: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    defaults = {"split_sizes": (1, 2, 7, 7), "cluster_size": CLUSTER_SIZE, "overlap": OVERLAP, "fsla_scale": 1.0, "mlp_ratio": 4.0,
                **cswin.SIZES[size]}
    return create("boat_cswin", f"boat_cswin_{size}", pretrained=pretrained, defaults=defaults, **kwargs)


@register_model
def boat_swin_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """BOAT-Swin-T: Swin-T with FSLA in 5 of its 12 blocks."""
    return _boat_swin("tiny", pretrained, {"drop_path_rate": 0.2, **kwargs})


@register_model
def boat_swin_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """BOAT-Swin-S: Swin-S with FSLA in 11 of its 24 blocks."""
    return _boat_swin("small", pretrained, {"drop_path_rate": 0.3, **kwargs})


@register_model
def boat_swin_base(pretrained: bool = False, **kwargs: Any) -> Any:
    """BOAT-Swin-B: Swin-B with FSLA in 11 of its 24 blocks."""
    return _boat_swin("base", pretrained, {"drop_path_rate": 0.5, **kwargs})


@register_model
def boat_cswin_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """BOAT-CSWin-T: 83.7 % top-1 on ImageNet-1k in the paper's abstract; FSLA in 14 of its 25 blocks."""
    return _boat_cswin("tiny", pretrained, {"drop_path_rate": 0.2, **kwargs})


@register_model
def boat_cswin_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """BOAT-CSWin-S: CSWin-S with FSLA in 20 of its 40 blocks."""
    return _boat_cswin("small", pretrained, {"drop_path_rate": 0.4, **kwargs})


@register_model
def boat_cswin_base(pretrained: bool = False, **kwargs: Any) -> Any:
    """BOAT-CSWin-B: CSWin-B with FSLA in 20 of its 40 blocks."""
    return _boat_cswin("base", pretrained, {"drop_path_rate": 0.5, **kwargs})
