"""CAS-ViT (arXiv 2408.03703): local integration, then the convolutional additive token mixer (CATM), then an MLP, in each block.

The published parameter counts include the classifier of a distillation head (`distillation=True`, the constructor's default in the
authors' code); their training script builds the models without it, and so do these by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nasvit.arch import Arch, Block, Grid, Head, MixerSpec, Stage, Stem
from nasvit.zoo.checkpoint import Checkpoint
from nasvit.zoo.family import FAMILIES, Family, cfg, checkpoint_filter_fn, create

from timm.models import generate_default_cfgs, register_model  # isort: skip (behind ours, which make torchvision importable)

__all__ = ["casvit_m", "casvit_s", "casvit_t", "casvit_xs", "checkpoint_filter_fn"]

# Our names of a block's parts and theirs.
_GATES = {f"oper_{which}.{old}": f"gates_{which}.{new}" for which in "qk"
          for old, new in {"0.block.0": "0.conv", "0.block.1": "0.norm", "0.block.3": "0.gate", "1.block.1": "1.gate"}.items()}
_CATM = {"qkv": "qkv", **_GATES, "dwc": "mix", "proj": "proj"}
_INTEGRATION = {"0": "expand", "1": "norm_inner", "2": "conv", "4": "project"}
BLOCK = {**{f"local_perception.network.{old}": f"mixers.0.{new}" for old, new in _INTEGRATION.items()}, "norm1": "norms.1.bn",
         **{f"attn.{old}": f"mixers.1.{new}" for old, new in _CATM.items()}, "norm2": "mlp_norm.bn", "mlp.fc1": "mlp.fc1",
         "mlp.fc2": "mlp.fc2"}


def arch(*, image_size: Grid, in_channels: int, num_classes: int, embed_dims: Sequence[int], depths: Sequence[int],
         mlp_ratios: float | Sequence[float] = 4.0, qkv_bias: bool = False, distillation: bool = False,
         feature_norms: bool = False) -> Arch:
    """Any H, W: each of the five stride-2 convolutions rounds up. mlp_ratios: one for all stages, or one each. feature_norms: every feature
    map has a batch norm of its own, as in the authors' backbones for detection and segmentation."""
    ratios = [mlp_ratios] * len(depths) if isinstance(mlp_ratios, (int, float)) else list(mlp_ratios)
    mixers = (MixerSpec.of("integration"), MixerSpec.of("catm", **({"qkv_bias": True} if qkv_bias else {})))
    stages = tuple(Stage(embed_dim=dim, blocks=(Block(mixers=mixers, mlp_dim=int(dim * ratio)),) * depth,
                         downsample="conv_bias" if s else "conv")
                   for s, (dim, depth, ratio) in enumerate(zip(embed_dims, depths, ratios, strict=True)))
    head = Head(kind="norm_mean", norm="batch", distillation=distillation, feature_norms=feature_norms)
    return Arch(image_size=image_size, in_channels=in_channels, num_classes=num_classes, stem=Stem(kind="conv_bias", stride=4),
                stages=stages, head=head)


def take_block(checkpoint: Checkpoint, theirs: str, to: str) -> dict[str, Tensor]:
    """One block; pointwise kernels (C', C, 1, 1) become linear weights (C', C)."""
    taken: dict[str, Tensor] = {}
    for old, new in BLOCK.items():
        taken |= checkpoint.take_all(f"{theirs}.{old}", f"{to}.{new}")
    return {name: value.flatten(1) if value.shape[2:] == (1, 1) else value for name, value in taken.items()}


def official(checkpoint: Checkpoint, arch: Arch) -> dict[str, Tensor]:
    """The authors' names and layouts to ours; in `network` stages and patch embeddings alternate.

    A backbone (`features_only=True, feature_norms=True`) has norm0, norm2, norm4, norm6 and no classifier.
    """
    ours: dict[str, Tensor] = {}
    if arch.head.feature_norms:
        for s in range(len(arch.stages)):
            ours |= checkpoint.take_all(f"norm{2 * s}", f"feature_norms.{s}.bn")
    else:
        ours |= checkpoint.take_all("norm", "norm.bn") | checkpoint.take_all("head", "head")
        if arch.head.distillation:
            ours |= checkpoint.take_all("dist_head", "head_dist")
    for i, (conv, norm) in enumerate(((0, 1), (3, 4))):
        ours |= checkpoint.take_all(f"patch_embed.{conv}", f"stem.layers.{i}.0")
        ours |= checkpoint.take_all(f"patch_embed.{norm}", f"stem.layers.{i}.1")
    for s, stage in enumerate(arch.stages):
        if s:
            for part in ("proj", "norm"):
                ours |= checkpoint.take_all(f"network.{2 * s - 1}.{part}", f"stages.{s}.downsample.{part}")
        for b in range(len(stage.blocks)):
            ours |= take_block(checkpoint, f"network.{2 * s}.{b}", f"stages.{s}.blocks.{b}")
    return ours


FAMILIES.register("casvit")(Family(name="casvit", arch=arch, official=official, relatives={}))

default_cfgs = generate_default_cfgs({f"casvit_{size}.authors_in1k": cfg("stem.layers.0.0", license="mit", classifier=("head", "head_dist"))
                                      for size in ("xs", "s", "m", "t")})


def _casvit(variant: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> Any:
    defaults = {"mlp_ratios": 4.0, "qkv_bias": False, "distillation": False, "feature_norms": False, **sizes}
    return create("casvit", variant, pretrained=pretrained, defaults=defaults, **kwargs)


@register_model
def casvit_xs(pretrained: bool = False, **kwargs: Any) -> Any:
    """CAS-ViT-XS: 78.3 % top-1 on ImageNet-1k in the authors' model zoo."""
    return _casvit("casvit_xs", pretrained, {"drop_path_rate": 0.1, **kwargs}, embed_dims=(48, 56, 112, 220), depths=(2, 2, 4, 2))


@register_model
def casvit_s(pretrained: bool = False, **kwargs: Any) -> Any:
    """CAS-ViT-S: 80.9 % top-1 on ImageNet-1k in the authors' model zoo."""
    return _casvit("casvit_s", pretrained, {"drop_path_rate": 0.1, **kwargs}, embed_dims=(48, 64, 128, 256), depths=(3, 3, 6, 3))


@register_model
def casvit_m(pretrained: bool = False, **kwargs: Any) -> Any:
    """CAS-ViT-M: 82.8 % top-1 on ImageNet-1k in the authors' model zoo."""
    return _casvit("casvit_m", pretrained, {"drop_path_rate": 0.1, **kwargs}, embed_dims=(64, 96, 192, 384), depths=(3, 3, 6, 3))


@register_model
def casvit_t(pretrained: bool = False, **kwargs: Any) -> Any:
    """CAS-ViT-T: 83.9 % top-1 on ImageNet-1k in the authors' model zoo."""
    return _casvit("casvit_t", pretrained, {"drop_path_rate": 0.1, **kwargs}, embed_dims=(96, 128, 256, 512), depths=(3, 3, 6, 3))
