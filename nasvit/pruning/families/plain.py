"""What the families of plain transformers share: the layout and the axes of `nasvit.pruning.transformer`, and parts of their reading."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nasvit.pruning.families.base import Axis, BlockLayout, Layout
from nasvit.pruning.families.reading import Tensors, activation_form, has_bias, norm_form, refuse
from nasvit.pruning.plan import OPERATORS, Plan, Source
from nasvit.pruning.transformer import Transformer, tokens_read

EMBED: Axis = ("embed.0",)
BLOCK_DEFAULTS: dict[str, Any] = {"post_norm": False, "qkv_bias": True, "proj_bias": True, "qk_norm": None, "attn_norm": None, "mlp": "mlp",
                                  "mlp_bias": [True, True], "mlp_norm": None, "layer_scale": [False, False], "rope": None,
                                  "rope_heads": False, "relative": False, "talking": False, "class_only": False}


def build(plan: Plan) -> nn.Module:
    """The owned transformer of a plan."""
    return Transformer(plan)


def layout(source: Source) -> Layout:
    """All blocks on one residual stream; token operators where no table of positions is tied to the tokens."""
    options = source.options
    blocks = tuple(BlockLayout(stage=0, heads=b["heads"], head_dim=b["head_dim"], mlp_dim=b["mlp_dim"], pairs=b["rope"],
                               joint=b["qk_norm"] is not None or b["rope"] is not None,
                               tokens=not b["class_only"]) for b in options["blocks"])
    refused = {}
    if any(b["relative"] or b["rope"] for b in options["blocks"]):
        reason = "its attention ties positions to tokens (relative bias or rotary), and tokens that go or merge have none"
        refused = dict.fromkeys(OPERATORS[1:], reason)
    elif not options["class_token"]:
        reason = "it ranks tokens by the class token's attention, and there is no class token"
        refused = dict.fromkeys(("slow_fast", "topk_fuse"), reason)
    height, width = options["image_size"]
    tokens = (height // options["patch"][0]) * (width // options["patch"][1])
    return Layout(blocks=blocks, embed_dims=(options["embed_dim"],), tokens=tokens,
                  operators=tuple(name for name in OPERATORS if name not in refused), refused=refused, read=tokens_read(options))


def axes(source: Source, name: str) -> tuple[Axis, ...]:
    """The axes of a tensor of the owned transformer."""
    parts = name.split(".")
    if parts[0] in ("blocks", "class_blocks"):
        forms, inner = source.options["blocks"], ".".join(parts[2:])
        i = int(parts[1]) + (sum(not form["class_only"] for form in forms) if parts[0] == "class_blocks" else 0)
        block = forms[i]
        glu = block["mlp"] != "mlp"
        qk, v, mlp = f"qk.{i}", f"v.{i}", f"mlp.{i}"
        table: dict[str, tuple[Axis, ...]] = {
            "attn.qkv.weight": ((qk, qk, v), EMBED), "attn.qkv.bias": ((qk, qk, v),), "attn.proj.weight": (EMBED, (v,)),
            "attn.proj.bias": (EMBED,), "attn.norm.weight": ((v,),), "attn.norm.bias": ((v,),), "attn.q.weight": ((qk,), EMBED),
            "attn.q.bias": ((qk,),),
            "attn.kv.weight": ((qk, v), EMBED), "attn.kv.bias": ((qk, v),), "attn.bias_table": (None, (f"heads.{i}",)),
            "mlp.fc1.weight": ((mlp, mlp) if glu else (mlp,), EMBED), "mlp.fc1.bias": ((mlp, mlp) if glu else (mlp,),),
            "mlp.norm.weight": ((mlp,),), "mlp.norm.bias": ((mlp,),), "mlp.fc2.weight": (EMBED, (mlp,)), "mlp.fc2.bias": (EMBED,)}
        if inner.startswith(("attn.q_norm", "attn.k_norm")):
            return ((f"qd.{i}",),)
        if inner in ("attn.sin", "attn.cos"):
            return ((f"heads.{i}",) if block["rope_heads"] else None, None, (f"qd.{i}",))
        if inner.startswith("attn.talk"):
            heads: Axis = (f"heads.{i}",)
            return (heads, heads) if parts[-1] == "weight" else (heads,)
        return table.get(inner, (EMBED,))
    if name in ("prefix", "class_token", "pos_embed"):
        return (None, None, EMBED)
    if name == "patch.weight":
        return (EMBED, None, None, None)
    if parts[0] in ("head", "head_dist"):
        return (None, EMBED) if parts[1] == "weight" else (None,)
    return (EMBED,)


def read_mlp(mlp: Any, tensors: Tensors, *, path: str, to: str) -> dict[str, Any]:
    """The options of timm's Mlp, GluMlp or SwiGLU, its tensors moved."""
    kind = type(mlp).__name__
    options: dict[str, Any] = {"mlp_dim": mlp.fc2.in_features, "act": activation_form(mlp.act), "mlp_norm": norm_form(mlp.norm)}
    tensors.move_all(f"{path}.fc2", f"{to}.fc2")
    tensors.move_all(f"{path}.norm", f"{to}.norm")
    if kind != "SwiGLU":
        glu = {"Mlp": "mlp", "GluMlp": "glu_last" if getattr(mlp, "gate_last", False) else "glu"}[kind]
        tensors.move_all(f"{path}.fc1", f"{to}.fc1")
        return {**options, "mlp": glu, "mlp_bias": [has_bias(mlp.fc1), has_bias(mlp.fc2)]}
    for ending in ("weight", "bias") if has_bias(mlp.fc1_g) else ("weight",):
        tensors.give(f"{to}.fc1.{ending}", torch.cat([tensors.pop(f"{path}.fc1_g.{ending}"), tensors.pop(f"{path}.fc1_x.{ending}")]))
    return {**options, "mlp": "glu", "mlp_bias": [has_bias(mlp.fc1_g), has_bias(mlp.fc2)]}


def read_stem(model: Any, tensors: Tensors) -> dict[str, Any]:
    """Patch embedding, prefix tokens, positions, last norms, pool and classifier of a timm transformer."""
    patch, options = model.patch_embed, {}
    height, width = patch.img_size
    if height % patch.patch_size[0] or width % patch.patch_size[1]:
        padded = getattr(patch, "dynamic_img_pad", False)
        refuse(model, [f"patch_embed (images of {height}x{width} px padded to whole patches)"] if padded else [])
    tensors.move_all("patch_embed.proj", "patch")
    tensors.move_all("patch_embed.norm", "patch_norm")
    for name in ("norm", "fc_norm", "head", "head_dist"):
        tensors.move_all(name, name)
    names = [n for n in ("cls_token", "dist_token", "reg_token") if n in tensors]
    prefix = [tensors.pop(n) for n in names]
    count = sum(t.shape[1] for t in prefix)
    options["pos_embed"] = "pos_embed" in tensors
    joint = torch.cat(prefix, dim=1) if prefix else None
    if options["pos_embed"]:
        position = tensors.pop("pos_embed")
        extra = position.shape[1] - patch.num_patches  # positions of the first prefix tokens
        if joint is not None and extra:
            joint = torch.cat([joint[:, :extra] + position[:, :extra], joint[:, extra:]], dim=1)
        tensors.give("pos_embed", position[:, extra:])
    if joint is not None:
        tensors.give("prefix", joint)
    return {**options, "image_size": [int(height), int(width)], "in_channels": patch.proj.in_channels, "patch": list(patch.patch_size),
            "patch_bias": has_bias(patch.proj), "patch_norm": norm_form(patch.norm), "prefix": count, "class_token": "cls_token" in names,
            "norm": norm_form(model.norm), "fc_norm": norm_form(model.fc_norm), "num_classes": model.num_classes,
            "pool": model.global_pool, "pool_prefix": bool(getattr(model, "pool_include_prefix", False)),
            "head_bias": has_bias(model.head), "distilled": hasattr(model, "head_dist"), "embed_dim": model.embed_dim}
