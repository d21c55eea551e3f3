"""timm's Levit (arXiv 2104.01136), with linear maps or 1 x 1 convolutions, and its owned network.

Batch norms stay beside their linear maps for training; `nasvit.models.deploy` folds them. The stem's inner channels are cut as the
first stage's width is. The attention that halves a map is a block whose attention cannot be dropped, for nothing passes it by.

Legend: B images, N tokens, C channels, h heads, d head_dim, e value channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.models.folding import fold_norm_
from nasvit.models.mixers.levit import LinearNorm
from nasvit.pruning.blocks import ACTIVATIONS, attend, confidence_of
from nasvit.pruning.families.base import FAMILIES, Axis, BlockLayout, Family, Layout, Read, Units, of_timm
from nasvit.pruning.families.reading import Tensors, activation_form, refuse, survey
from nasvit.pruning.plan import OPERATORS, BlockPlan, Plan, PlanError, Source

KNOWN = ("Levit", "LevitDistilled", "ConvNorm", "LinearNorm", "NormLinear", "Stem8", "Stem16", "Downsample", "Attention",
         "AttentionDownsample", "LevitMlp", "LevitDownsample", "LevitBlock", "LevitStage", "AvgPool2d")


class ConvNorm(nn.Module):
    """A 3 x 3 convolution of stride 2 without bias, and a batch norm."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x))

    def deploy_(self) -> None:
        """The batch norm goes into the convolution."""
        self.bn = fold_norm_(self.linear, self.bn)


class Attention(nn.Module):
    """Attention with a table of biases by distance; `halves`: with every second query of both sides. (B, N, C) -> (B, N', C')

    fused is off at first: values are wider than keys, for which torch's kernel has no fast form on a CPU.
    """

    index: Tensor
    bias: Tensor | None

    def __init__(self, dim: int, out_dim: int, *, options: Mapping[str, Any], heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.fused, self.scale = heads, head_dim, False, options["head_dim"] ** -0.5
        self.value_dim, self.halves, self.grid = head_dim * options["value_ratio"], options["halves"], tuple(options["grid"])
        self.q = LinearNorm(dim, heads * head_dim)
        self.kv = LinearNorm(dim, heads * (head_dim + self.value_dim))
        self.proj = LinearNorm(heads * self.value_dim, out_dim)
        self.act = ACTIVATIONS[options["attn_act"]]
        self.bias_table = nn.Parameter(torch.zeros(heads, self.grid[0] * self.grid[1]))
        self.register_buffer("index", distance_index(self.grid, step=2 if self.halves else 1), persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, h, N', d), keys (B, h, N, d), values (B, h, N, e)."""
        chosen = x.unflatten(1, self.grid)[:, ::2, ::2].flatten(1, 2) if self.halves else x
        q = self.q(chosen).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        k, v = self.kv(x).split([self.heads * self.head_dim, self.heads * self.value_dim], dim=-1)
        return q, *(t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (k, v))

    def logit_bias(self) -> Tensor:
        """(1, h, N', N)"""
        if self.bias is not None:
            return self.bias
        return self.bias_table.index_select(1, self.index.flatten()).view(1, self.heads, *self.index.shape)

    def forward(self, x: Tensor) -> Tensor:
        out = attend(*self.project(x), bias=self.logit_bias(), scale=self.scale, fused=self.fused)
        return self.proj(self.act(out.transpose(1, 2).flatten(2)))

    def confidence(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (h,), the mean of each query's largest attention."""
        q, k, _ = self.project(x)
        return confidence_of(q, k, bias=self.logit_bias(), scale=self.scale)

    def deploy_(self) -> None:
        """The biases are gathered once."""
        with torch.no_grad():
            self.bias = self.logit_bias()


def distance_index(grid: tuple[int, int], *, step: int) -> Tensor:
    """(N', N) entries of the bias table: the absolute offsets of every step-th query and each key."""
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"))
    at_y, at_x = (t.flatten() for t in torch.meshgrid(torch.arange(0, grid[0], step), torch.arange(0, grid[1], step), indexing="ij"))
    return (at_y[:, None] - y).abs() * grid[1] + (at_x[:, None] - x).abs()


class Block(nn.Module):
    """Attention, in a residual branch unless it halves the map, then the MLP."""

    def __init__(self, dim: int, out_dim: int, *, options: Mapping[str, Any], left: BlockPlan) -> None:
        super().__init__()
        self.attn = Attention(dim, out_dim, options=options, heads=left.heads, head_dim=left.head_dim) if left.heads else None
        self.halves, self.act = options["halves"], ACTIVATIONS[options["act"]]
        self.fc1 = LinearNorm(out_dim, left.mlp_dim) if left.mlp_dim else None
        self.fc2 = LinearNorm(left.mlp_dim, out_dim) if left.mlp_dim else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N', C')"""
        if self.attn is not None:
            x = self.attn(x) if self.halves else x + self.attn(x)
        return x if self.fc1 is None or self.fc2 is None else x + self.fc2(self.act(self.fc1(x)))


class NormLinear(nn.Module):
    """A batch norm and the classifier."""

    def __init__(self, dim: int, classes: int, *, bias: bool) -> None:
        super().__init__()
        self.bn, self.linear = nn.BatchNorm1d(dim), nn.Linear(dim, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.bn(x))


class Levit(nn.Module):
    """A LeViT from a Plan: (B, in, H, W) -> (B, classes), the mean of both classifiers where it was distilled."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        options, dims = plan.source.options, plan.embed_dims
        self.plan, self.num_classes = plan, options["num_classes"]
        self.num_features = self.head_hidden_size = dims[-1]
        self.image_shape = (options["in_channels"], *options["image_size"])
        widths = [options["in_channels"], *(units.keep for units in extra(plan).values()), dims[0]]
        self.stem = nn.ModuleList(ConvNorm(a, b) for a, b in pairwise(widths))
        self.act = ACTIVATIONS[options["stem_act"]]
        stages = [form["stage"] for form in options["blocks"]]
        self.blocks = nn.ModuleList(Block(dims[s - 1] if form["halves"] else dims[s], dims[s], options=form, left=left)
                                    for s, form, left in zip(stages, options["blocks"], plan.blocks, strict=True))
        heads = options["heads"] if self.num_classes else []
        self.heads = nn.ModuleList(NormLinear(dims[-1], self.num_classes, bias=bias) for bias in heads)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, N, C)"""
        if x.shape[1:] != self.image_shape:
            raise PlanError(f"this network takes images of shape {self.image_shape}, not {tuple(x.shape[1:])}")
        for i, layer in enumerate(self.stem):
            x = layer(x) if i == 0 else layer(self.act(x))
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x).mean(dim=1)
        if not self.heads:
            return x
        return self.heads[0](x) if len(self.heads) == 1 else (self.heads[0](x) + self.heads[1](x)) / 2


def read(model: Any) -> Read:
    """Raises UnsupportedModelError by name; the model is never changed."""
    survey(model, known=KNOWN)
    faults = [] if model.global_pool == "avg" else [f"global_pool {model.global_pool!r} (accepted: avg)"]
    parts = [(path, m) for path, m in model.named_modules() if type(m).__name__ in ("LevitBlock", "LevitDownsample")]
    for path, part in parts:
        attn = part.attn if hasattr(part, "attn") else part.attn_downsample
        pool = getattr(getattr(attn, "q", None), "down", None) if hasattr(attn, "q") else None
        if getattr(pool, "pool", None) is not None or getattr(pool, "kernel_size", 1) != 1:
            faults.append(f"{path} (queries are pooled)")
        if attn.val_dim % attn.key_dim:
            faults.append(f"{path} (value channels {attn.val_dim} are no multiple of key channels {attn.key_dim})")
    refuse(model, faults)
    tensors = Tensors(model)
    tensors.drop("attention_bias_idxs")
    stem = [m for m in model.stem if type(m).__name__ == "ConvNorm"]
    for i, (name, _) in enumerate((n, m) for n, m in model.stem.named_children() if type(m).__name__ == "ConvNorm"):
        tensors.move_all(f"stem.{name}", f"stem.{i}")
    stem_act = next(m for m in model.stem if type(m).__name__ != "ConvNorm")
    stage, blocks = 0, []
    for i, (path, part) in enumerate(parts):
        stage += type(part).__name__ == "LevitDownsample"
        blocks.append({"stage": stage, **_read_block(part, tensors, path, f"blocks.{i}")})
    heads = []
    for number, name in enumerate(n for n in ("head", "head_dist") if hasattr(getattr(model, n, None), "linear")):
        tensors.move_all(name, f"heads.{number}")
        heads.append(getattr(model, name).linear.bias is not None)
    stride = 2 ** len(stem)
    first = parts[0][1].attn.resolution
    description = {"image_size": [int(v) * stride for v in first], "in_channels": stem[0].linear.in_channels,
                   "stem": [m.linear.out_channels for m in stem], "stem_act": activation_form(stem_act),
                   "num_classes": model.num_classes, "heads": heads, "embed_dims": [int(v) for v in model.embed_dim], "blocks": blocks}
    return Read(description=description, state=tensors.done())


def _read_block(part: Any, tensors: Tensors, path: str, to: str) -> dict[str, Any]:
    halves = type(part).__name__ == "LevitDownsample"
    attn, at = (part.attn_downsample, f"{path}.attn_downsample") if halves else (part.attn, f"{path}.attn")
    heads, d, e = attn.num_heads, attn.key_dim, attn.val_dim
    if halves:
        _move(tensors, f"{at}.q.ln", f"{to}.attn.q")
        _split(tensors, f"{at}.kv", {f"{to}.attn.kv": ["k", "v"]}, heads=heads, parts={"k": d, "v": e})
    else:
        _split(tensors, f"{at}.qkv", {f"{to}.attn.q": ["q"], f"{to}.attn.kv": ["k", "v"]}, heads=heads, parts={"q": d, "k": d, "v": e})
    _move(tensors, f"{at}.proj.ln", f"{to}.attn.proj")
    tensors.move(f"{at}.attention_biases", f"{to}.attn.bias_table")
    _move(tensors, f"{path}.mlp.ln1", f"{to}.fc1")
    _move(tensors, f"{path}.mlp.ln2", f"{to}.fc2")
    return {"heads": heads, "head_dim": d, "value_ratio": e // d, "halves": halves, "grid": [int(v) for v in attn.resolution],
            "mlp_dim": part.mlp.ln1.linear.weight.shape[0], "act": activation_form(part.mlp.act),
            "attn_act": activation_form(attn.proj.act)}


def _move(tensors: Tensors, path: str, to: str) -> None:
    """A linear map with its norm; the weight of a 1 x 1 convolution becomes a matrix."""
    tensors.give(f"{to}.linear.weight", tensors.pop(f"{path}.linear.weight").flatten(1))
    tensors.move_all(f"{path}.bn", f"{to}.bn")


def _split(tensors: Tensors, path: str, to: Mapping[str, list[str]], *, heads: int, parts: Mapping[str, int]) -> None:
    """timm has a head's queries, keys and values side by side; ours stand one behind the other, each head by head."""
    widths = list(parts.values())
    cut: dict[str, dict[str, Tensor]] = {}
    for ending in ("linear.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
        value = tensors.pop(f"{path}.{ending}")
        value = value.flatten(1) if ending == "linear.weight" else value
        pieces = value.unflatten(0, (heads, sum(widths))).split(widths, dim=1)
        cut[ending] = {name: piece.flatten(0, 1) for name, piece in zip(parts, pieces, strict=True)}
    batches = tensors.pop(f"{path}.bn.num_batches_tracked")
    for target, names in to.items():
        for ending, found in cut.items():
            tensors.give(f"{target}.{ending}", torch.cat([found[name] for name in names]))
        tensors.give(f"{target}.bn.num_batches_tracked", batches)


def layout(source: Source) -> Layout:
    """Tables of distances are tied to the grid, and maps are halved, so there are no token operators."""
    options = source.options
    blocks = tuple(BlockLayout(stage=b["stage"], heads=b["heads"], head_dim=b["head_dim"], mlp_dim=b["mlp_dim"],
                               value_ratio=b["value_ratio"], drop_attention=not b["halves"], drop_block=not b["halves"])
                   for b in options["blocks"])
    height, width = options["blocks"][0]["grid"]
    reason = "its tables of distances and the halving of its maps need every token"
    return Layout(blocks=blocks, embed_dims=tuple(options["embed_dims"]), tokens=height * width,
                  refused=dict.fromkeys(OPERATORS[1:], reason))


def extra(plan: Plan) -> dict[str, Units]:
    """The stem's inner channels, cut in the ratio of the first stage's width, at least 8."""
    options, dims = plan.source.options, plan.embed_dims
    return {f"stem.{i}": Units(count=width, keep=min(width, max(8, width * dims[0] // options["embed_dims"][0])))
            for i, width in enumerate(options["stem"][:-1])}


def axes(source: Source, name: str) -> tuple[Axis, ...]:
    """The axes of a tensor of the owned LeViT."""
    parts, options = name.split("."), source.options
    if parts[-1] == "num_batches_tracked":
        return ()
    if parts[0] == "stem":
        i, last = int(parts[1]), len(options["stem"]) - 1
        out: Axis = ("embed.0",) if i == last else (f"stem.{i}",)
        return (out, (f"stem.{i - 1}",) if i else None, None, None) if parts[2] == "linear" else (out,)
    if parts[0] == "heads":
        embed: Axis = (f"embed.{len(options['embed_dims']) - 1}",)
        if parts[2] == "bn":
            return (embed,)
        return (None, embed) if parts[3] == "weight" else (None,)
    i = int(parts[1])
    block = options["blocks"][i]
    embed = (f"embed.{block['stage']}",)
    before: Axis = (f"embed.{block['stage'] - 1}",) if block["halves"] else embed
    if parts[-1] == "bias_table":
        return ((f"heads.{i}",), None)
    groups: dict[str, tuple[Axis, Axis]] = {
        "q": ((f"qk.{i}",), before), "kv": ((f"qk.{i}", f"v.{i}"), before), "proj": (embed, (f"v.{i}",)),
        "fc1": ((f"mlp.{i}",), embed), "fc2": (embed, (f"mlp.{i}",))}
    outputs, inputs = groups[parts[3] if parts[2] == "attn" else parts[2]]
    return (outputs, inputs) if parts[-2] == "linear" else (outputs,)


FAMILIES.register("levit")(Family(name="levit", recognises=lambda model: of_timm(model, "Levit", "LevitDistilled"), read=read,
                                  layout=layout, build=Levit, axes=axes, extra=extra))
