"""A pruned ViT as timm's own module, where timm has a module of those shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nasvit.pruning.families.reading import same_eval
from nasvit.pruning.plan import Plan, PlanError
from nasvit.torchvision_ops import ensure

SAME = 1e-4
_NAMES = {"patch": "patch_embed.proj", "patch_norm": "patch_embed.norm"}


def to_timm(module: nn.Module) -> nn.Module:
    """timm's module with the weights of a pruned network: the same function, and a state dict that timm loads.

    Possible for family vit where the blocks left are alike, heads * head_dim is the width, and no token operator is at work. Raises
    PlanError saying what stands in the way.
    """
    plan = getattr(module, "plan", None)
    if not isinstance(plan, Plan):
        raise PlanError(f"{type(module).__name__} is no pruned network; accepted: what nasvit.pruning.slice_weights or load gave")
    obstacle = _obstacle(plan)
    if obstacle:
        raise PlanError(f"{plan.source.name}: timm has no module of these shapes: {obstacle}")
    ensure()
    import timm

    name, arguments = timm_arguments(plan)
    options = plan.source.options
    if not timm.is_model(name):
        raise PlanError(f"{plan.source.name}: timm has no model of this name")
    try:
        model = timm.create_model(name, **arguments)
        model.load_state_dict(_state(module, plan, model))
    except (RuntimeError, TypeError, ValueError) as error:  # a model made with options that its name does not say
        why = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise PlanError(f"{plan.source.name}: timm's module does not take the weights: {why}") from error
    first = next(module.parameters())
    model.to(first.device, first.dtype).eval()
    difference = same_eval(module, model, shape=(options["in_channels"], *options["image_size"]))
    if not difference <= SAME:
        raise PlanError(f"{plan.source.name}: timm's module differs by {difference:.1e}: the name says other options")
    return model


def timm_arguments(plan: Plan) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of timm.create_model for a plan that `to_timm` accepts; JSON data."""
    options, left = plan.source.options, [b for b in plan.blocks if not b.gone]
    hidden = left[0].mlp_dim * (1 if options["blocks"][0]["mlp"] == "mlp" else 2)
    return plan.source.name.removeprefix("timm:"), {
        "img_size": list(options["image_size"]), "depth": len(left), "in_chans": options["in_channels"],
        "num_classes": options["num_classes"], "embed_dim": plan.embed_dims[0], "num_heads": left[0].heads,
        "mlp_ratio": (hidden + 0.5) / plan.embed_dims[0]}


def _obstacle(plan: Plan) -> str | None:
    """What keeps a plan from being a timm module, or None."""
    left = [b for b in plan.blocks if not b.gone]
    if plan.source.family != "vit" or not plan.source.name.startswith("timm:"):
        return f"it is {plan.source.name} of family {plan.source.family}; accepted: family vit, named timm:NAME"
    if plan.operator != "none":
        return f"the token operator {plan.operator}"
    if len({(b.heads, b.head_dim, b.mlp_dim) for b in left}) != 1 or not left[0].heads or not left[0].mlp_dim:
        return "its blocks differ"
    if left[0].heads * left[0].head_dim != plan.embed_dims[0]:
        return f"{left[0].heads} heads of {left[0].head_dim} are not the width {plan.embed_dims[0]}"
    return None


def _state(module: nn.Module, plan: Plan, model: Any) -> dict[str, Tensor]:
    """Our tensors under timm's names. Positions of class and register tokens are inside the tokens already; theirs are zero."""
    own, target, dense = module.state_dict(), model.state_dict(), plan.source.options["blocks"][0]
    found: dict[str, Tensor] = {}
    order = [i for i, b in enumerate(plan.blocks) if not b.gone]
    inner = plan.embed_dims[0]
    factor = (plan.blocks[order[0]].head_dim / dense["head_dim"]) ** 0.5  # timm's scale follows the narrower head
    for name, value in own.items():
        head, _, rest = name.partition(".")
        if head == "blocks":
            number, _, inside = rest.partition(".")
            name = f"blocks.{order.index(int(number))}.{inside.replace('gamma1', 'ls1.gamma').replace('gamma2', 'ls2.gamma')}"
            scaled = ("attn.q_norm.weight", "attn.q_norm.bias") if dense["qk_norm"] else ("attn.qkv.weight", "attn.qkv.bias")
            if inside in scaled:
                value = value * factor if dense["qk_norm"] else torch.cat([value[:inner] * factor, value[inner:]])
        elif head in _NAMES:
            name = f"{_NAMES[head]}.{rest}"
        elif head in ("prefix", "pos_embed"):
            continue
        found[name] = value
    if "prefix" in own:
        names = [n for n in ("cls_token", "dist_token", "reg_token") if n in target]
        found |= dict(zip(names, own["prefix"].split([target[n].shape[1] for n in names], dim=1), strict=True))
    if "pos_embed" in own and "pos_embed" in target:  # else loading them says what is missing
        missing = target["pos_embed"].shape[1] - own["pos_embed"].shape[1]
        found["pos_embed"] = nn.functional.pad(own["pos_embed"], (0, 0, missing, 0))
    return found
