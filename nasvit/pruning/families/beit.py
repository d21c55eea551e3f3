"""timm's Beit: BEiT and BEiT v2, with a table of relative positions in each block.

A table that all blocks share (as in pretraining) is copied into each.
"""

from __future__ import annotations

from typing import Any

from nasvit.pruning.families import plain
from nasvit.pruning.families.base import FAMILIES, Family, Read, of_timm
from nasvit.pruning.families.eva import read_qkv
from nasvit.pruning.families.reading import Tensors, has_bias, norm_form, refuse, survey

KNOWN = ("Beit", "PatchEmbed", "Block", "Attention", "Mlp", "SwiGLU", "RelativePositionBias")


def read(model: Any) -> Read:
    """Raises UnsupportedModelError by name; the model is never changed."""
    survey(model, known=KNOWN)
    refuse(model, [] if model.global_pool in ("token", "avg") else [f"global_pool {model.global_pool!r} (accepted: token, avg)"])
    tensors = Tensors(model)
    description = plain.read_stem(model, tensors)
    description["norm_pre"] = None
    tensors.drop("relative_position_index", "k_bias")
    shared = tensors.pop("rel_pos_bias.relative_position_bias_table") if model.rel_pos_bias is not None else None
    blocks = []
    for i, block in enumerate(model.blocks):
        path, attn = f"blocks.{i}", block.attn
        for name in ("norm1", "norm2", "attn.proj"):
            tensors.move_all(f"{path}.{name}", f"{path}.{name}")
        biased = read_qkv(attn, tensors, path=f"{path}.attn")
        scaled = block.gamma_1 is not None
        if scaled:
            tensors.move(f"{path}.gamma_1", f"{path}.gamma1")
            tensors.move(f"{path}.gamma_2", f"{path}.gamma2")
        tables = [] if shared is None else [shared]
        if attn.relative_position_bias_table is not None:
            tables.append(tensors.pop(f"{path}.attn.relative_position_bias_table"))
        if tables:
            tensors.give(f"{path}.attn.bias_table", sum(tables[1:], tables[0]))
        blocks.append({**plain.BLOCK_DEFAULTS, "heads": attn.num_heads, "head_dim": attn.qkv.out_features // 3 // attn.num_heads,
                       "norm": norm_form(block.norm1), "qkv_bias": biased, "proj_bias": has_bias(attn.proj),
                       "layer_scale": [scaled, scaled], "relative": bool(tables),
                       **plain.read_mlp(block.mlp, tensors, path=f"{path}.mlp", to=f"{path}.mlp")})
    return Read(description={**description, "blocks": blocks}, state=tensors.done())


FAMILIES.register("beit")(Family(name="beit", recognises=lambda model: of_timm(model, "Beit"), read=read, layout=plain.layout,
                                 build=plain.build, axes=plain.axes))
