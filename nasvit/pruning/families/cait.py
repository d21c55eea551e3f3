"""timm's Cait (arXiv 2103.17239): talking heads in the trunk, then blocks that update the class token alone."""

from __future__ import annotations

from typing import Any

import torch

from nasvit.pruning.families import plain
from nasvit.pruning.families.base import FAMILIES, Family, Read, of_timm
from nasvit.pruning.families.reading import Tensors, has_bias, norm_form, refuse, survey

KNOWN = ("Cait", "PatchEmbed", "LayerScaleBlock", "LayerScaleBlockClassAttn", "TalkingHeadAttn", "ClassAttn", "Mlp")


def read(model: Any) -> Read:
    """Raises UnsupportedModelError by name; the model is never changed."""
    survey(model, known=KNOWN)
    refuse(model, [] if model.global_pool == "token" else [f"global_pool {model.global_pool!r} (accepted: token)"])
    tensors, patch = Tensors(model), model.patch_embed
    tensors.move_all("patch_embed.proj", "patch")
    tensors.move_all("patch_embed.norm", "patch_norm")
    for name in ("norm", "head"):
        tensors.move_all(name, name)
    tensors.move("cls_token", "class_token")
    tensors.move("pos_embed", "pos_embed")
    blocks = [_read_block(block, tensors, f"blocks.{i}", f"blocks.{i}", talks=True) for i, block in enumerate(model.blocks)]
    blocks += [_read_block(block, tensors, f"blocks_token_only.{i}", f"class_blocks.{i}", talks=False)
               for i, block in enumerate(model.blocks_token_only)]
    description = {"image_size": [int(v) for v in patch.img_size], "in_channels": patch.proj.in_channels, "patch": list(patch.patch_size),
                   "patch_bias": has_bias(patch.proj), "patch_norm": norm_form(patch.norm), "prefix": 0, "class_token": False,
                   "pos_embed": True, "norm_pre": None, "norm": norm_form(model.norm), "fc_norm": None, "pool": "token",
                   "pool_prefix": False, "num_classes": model.num_classes, "head_bias": has_bias(model.head), "distilled": False,
                   "embed_dim": model.embed_dim, "blocks": blocks}
    return Read(description=description, state=tensors.done())


def _read_block(block: Any, tensors: Tensors, path: str, to: str, *, talks: bool) -> dict[str, Any]:
    attn = block.attn
    for name in ("norm1", "norm2", "attn.proj"):
        tensors.move_all(f"{path}.{name}", f"{to}.{name}")
    for number in (1, 2):
        tensors.move(f"{path}.gamma_{number}", f"{to}.gamma{number}")
    first = attn.qkv if talks else attn.q
    if talks:
        tensors.move_all(f"{path}.attn.qkv", f"{to}.attn.qkv")
        tensors.move_all(f"{path}.attn.proj_l", f"{to}.attn.talk_before")
        tensors.move_all(f"{path}.attn.proj_w", f"{to}.attn.talk_after")
    else:
        tensors.move_all(f"{path}.attn.q", f"{to}.attn.q")
        for ending in ("weight", "bias") if has_bias(attn.k) else ("weight",):
            tensors.give(f"{to}.attn.kv.{ending}", torch.cat([tensors.pop(f"{path}.attn.{n}.{ending}") for n in "kv"]))
    return {**plain.BLOCK_DEFAULTS, "heads": attn.num_heads, "head_dim": attn.proj.in_features // attn.num_heads,
            "norm": norm_form(block.norm1), "qkv_bias": has_bias(first), "layer_scale": [True, True], "talking": talks,
            "class_only": not talks, **plain.read_mlp(block.mlp, tensors, path=f"{path}.mlp", to=f"{to}.mlp")}


FAMILIES.register("cait")(Family(name="cait", recognises=lambda model: of_timm(model, "Cait"), read=read, layout=plain.layout,
                                 build=plain.build, axes=plain.axes))
