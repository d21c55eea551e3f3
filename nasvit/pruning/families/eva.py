"""timm's Eva: EVA, EVA-02 (rotary positions, SwiGLU, inner norms), DINOv3, PE and rotary ViTs.

Rotary positions are evaluated once for the model's image size; learned frequencies are constants from then on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nasvit.pruning.families import plain
from nasvit.pruning.families.base import FAMILIES, Family, Read, of_timm
from nasvit.pruning.families.reading import Tensors, has_bias, norm_form, refuse, survey

KNOWN = ("Eva", "PatchEmbed", "EvaBlock", "EvaBlockPostNorm", "EvaAttention", "AttentionRope", "Mlp", "GluMlp", "SwiGLU",
         "RotaryEmbeddingCat", "RotaryEmbeddingMixed", "RotaryEmbeddingDinoV3")
POOLS = ("token", "avg", "max", "avgmax")


def read(model: Any) -> Read:
    """Raises UnsupportedModelError by name; the model is never changed."""
    survey(model, known=KNOWN)
    faults = [] if model.global_pool in POOLS else [f"global_pool {model.global_pool!r} (accepted: {', '.join(POOLS)})"]
    for i, block in enumerate(model.blocks):
        if getattr(block.attn, "gate", None) is not None:
            faults.append(f"blocks.{i}.attn.gate (a gate on the attention)")
        if getattr(block.attn, "num_kv_groups", 1) > 1:
            faults.append(f"blocks.{i}.attn (queries share keys, grouped-query attention)")
    refuse(model, faults)
    tensors = Tensors(model)
    description = plain.read_stem(model, tensors)
    description["norm_pre"] = norm_form(model.norm_pre)
    tensors.move_all("norm_pre", "norm_pre")
    rope = _positions(model)
    tensors.drop("rope.freqs", "rope.periods", "rope.bands", "rope.t_x", "rope.t_y", "rope.pos_embed", "rope.pos_embed_sin",
                 "rope.pos_embed_cos")
    description["blocks"] = [_read_block(block, tensors, i, rope=rope, prefix=description["prefix"])
                             for i, block in enumerate(model.blocks)]
    return Read(description=description, state=tensors.done())


def _positions(model: Any) -> torch.Tensor | None:
    """(N, 2d), or (blocks, h, N, 2d) where each head learned its own: sines, then cosines; None without rotary positions."""
    if model.rope is None:
        return None
    modes = {m: m.training for m in model.rope.modules()}
    try:
        model.rope.eval()  # DINOv3's positions are jittered in training
        with torch.no_grad():
            cached = getattr(model.rope, "feat_shape", None) is not None
            embedding = model.rope.get_embed() if cached else model.rope.get_embed(shape=model.patch_embed.grid_size)
    finally:
        for part, mode in modes.items():
            part.training = mode
    return embedding.detach()


def _read_block(block: Any, tensors: Tensors, i: int, *, rope: torch.Tensor | None, prefix: int) -> dict[str, Any]:
    path, attn, post = f"blocks.{i}", block.attn, type(block).__name__ == "EvaBlockPostNorm"
    for name in ("norm1", "norm2", "attn.proj", "attn.norm", "attn.q_norm", "attn.k_norm"):
        tensors.move_all(f"{path}.{name}", f"{path}.{name}")
    biased = read_qkv(attn, tensors, path=f"{path}.attn")
    scales = [getattr(block, "gamma_1", None) is not None, getattr(block, "gamma_2", None) is not None]
    for number, there in enumerate(scales, start=1):
        if there:
            tensors.move(f"{path}.gamma_{number}", f"{path}.gamma{number}")
    form: str | None = None
    if rope is not None:
        table = rope[i] if rope.dim() == 4 else rope.unsqueeze(0)  # (1 or h, N, 2d)
        sin, cos = table.float().chunk(2, dim=-1)
        tensors.give(f"{path}.attn.sin", torch.cat([torch.zeros_like(sin[:, :1]).expand(-1, prefix, -1), sin], dim=1))
        tensors.give(f"{path}.attn.cos", torch.cat([torch.ones_like(cos[:, :1]).expand(-1, prefix, -1), cos], dim=1))
        form = "half" if getattr(attn, "rotate_half", False) else "interleaved"
    return {**plain.BLOCK_DEFAULTS, "heads": attn.num_heads, "head_dim": attn.head_dim, "norm": norm_form(block.norm1), "post_norm": post,
            "qkv_bias": biased, "proj_bias": has_bias(attn.proj), "qk_norm": norm_form(attn.q_norm), "attn_norm": norm_form(attn.norm),
            "layer_scale": scales, "rope": form, "rope_heads": rope is not None and rope.dim() == 4,
            **plain.read_mlp(block.mlp, tensors, path=f"{path}.mlp", to=f"{path}.mlp")}


def read_qkv(attn: Any, tensors: Tensors, *, path: str) -> bool:
    """The projections of EVA's and BEiT's attention, in one map or three, to our one; whether it has biases. Where keys have none, theirs
    is zero."""
    if isinstance(attn.qkv, nn.Linear):
        tensors.move(f"{path}.qkv.weight", f"{path}.qkv.weight")
        if has_bias(attn.qkv):
            tensors.move(f"{path}.qkv.bias", f"{path}.qkv.bias")
            return True
        if getattr(attn, "q_bias", None) is None:
            return False
        biases = {"q": tensors.pop(f"{path}.q_bias"), "v": tensors.pop(f"{path}.v_bias")}
    else:
        tensors.give(f"{path}.qkv.weight", torch.cat([tensors.pop(f"{path}.{n}_proj.weight") for n in "qkv"]))
        biases = {n: tensors.pop(f"{path}.{n}_proj.bias") for n in "qkv" if f"{path}.{n}_proj.bias" in tensors}
        if not biases:
            return False
    tensors.give(f"{path}.qkv.bias", torch.cat([biases[n] if n in biases else torch.zeros_like(biases["q"]) for n in "qkv"]))
    return True


FAMILIES.register("eva")(Family(name="eva", recognises=lambda model: of_timm(model, "Eva"), read=read, layout=plain.layout,
                                build=plain.build, axes=plain.axes))
