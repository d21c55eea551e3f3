"""timm's VisionTransformer and its distilled form: ViT, DeiT, DeiT-III, DINO, DINOv2 with registers, CLIP's image towers."""

from __future__ import annotations

from typing import Any

from nasvit.pruning.families import plain
from nasvit.pruning.families.base import FAMILIES, Family, Read, of_timm
from nasvit.pruning.families.reading import Tensors, has_bias, norm_form, refuse, survey

KNOWN = ("VisionTransformer", "VisionTransformerDistilled", "PatchEmbed", "Block", "ResPostBlock", "Attention", "Mlp", "GluMlp", "SwiGLU",
         "LayerScale")
POOLS = ("token", "avg", "max", "avgmax")


def read(model: Any) -> Read:
    """Raises UnsupportedModelError by name; the model is never changed."""
    survey(model, known=KNOWN)
    faults = []
    if model.global_pool not in POOLS:
        faults.append(f"global_pool {model.global_pool!r} (accepted: {', '.join(POOLS)})")
    for i, block in enumerate(model.blocks):
        if getattr(block.attn, "gate", None) is not None:
            faults.append(f"blocks.{i}.attn.gate (a gate on the attention)")
    refuse(model, faults)
    tensors = Tensors(model)
    description = plain.read_stem(model, tensors)
    description["norm_pre"] = norm_form(model.norm_pre)
    tensors.move_all("norm_pre", "norm_pre")
    description["blocks"] = [_read_block(block, tensors, f"blocks.{i}") for i, block in enumerate(model.blocks)]
    return Read(description=description, state=tensors.done())


def _read_block(block: Any, tensors: Tensors, path: str) -> dict[str, Any]:
    attn, scale = block.attn, type(getattr(block, "ls1", None)).__name__ == "LayerScale"
    for name in ("norm1", "norm2", "attn.qkv", "attn.proj", "attn.norm", "attn.q_norm", "attn.k_norm"):
        tensors.move_all(f"{path}.{name}", f"{path}.{name}")
    if scale:
        tensors.move(f"{path}.ls1.gamma", f"{path}.gamma1")
        tensors.move(f"{path}.ls2.gamma", f"{path}.gamma2")
    return {**plain.BLOCK_DEFAULTS, "heads": attn.num_heads, "head_dim": attn.head_dim, "norm": norm_form(block.norm1),
            "post_norm": type(block).__name__ == "ResPostBlock", "qkv_bias": has_bias(attn.qkv), "proj_bias": has_bias(attn.proj),
            "qk_norm": norm_form(attn.q_norm), "attn_norm": norm_form(attn.norm), "layer_scale": [scale, scale],
            **plain.read_mlp(block.mlp, tensors, path=f"{path}.mlp", to=f"{path}.mlp")}


FAMILIES.register("vit")(Family(name="vit", recognises=lambda model: of_timm(model, "VisionTransformer", "VisionTransformerDistilled"),
                                read=read, layout=plain.layout, build=plain.build, axes=plain.axes))
