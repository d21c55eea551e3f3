"""timm's Swin Transformer v1 (arXiv 2103.14030) and v2 (arXiv 2111.09883), and their owned network.

v2's network for continuous positions is evaluated once: its owned form has a table like v1's. timm pads maps that the window does
not divide with zeros behind the norm, and the padding is attended to; so it is here.

Legend: B images, H x W the map, w = (h, v) window, n its tokens, nW windows, C channels, d head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.pruning.blocks import Mlp, attend, confidence_of, make_norm
from nasvit.pruning.families import plain
from nasvit.pruning.families.base import FAMILIES, Axis, BlockLayout, Family, Layout, Read, of_timm
from nasvit.pruning.families.reading import Tensors, has_bias, norm_form, refuse, survey
from nasvit.pruning.plan import OPERATORS, BlockPlan, Plan, PlanError, Source

KNOWN = ("SwinTransformer", "SwinTransformerV2", "PatchEmbed", "SwinTransformerStage", "SwinTransformerV2Stage", "SwinTransformerBlock",
         "SwinTransformerV2Block", "WindowAttention", "PatchMerging", "Mlp", "ClassifierHead", "SelectAdaptivePool2d",
         "FastAdaptiveAvgPool")
OTHER_REGION = -100.0  # Swin's value: what rolled in from the far side of the map
LARGEST_SCALE = math.log(100.0)  # of cosine attention, as in v2


def windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, H, W, C) -> (B, nW, n, C), H and W multiples of the window's sides."""
    batch, height, width, dim = x.shape
    tiles = x.view(batch, height // window[0], window[0], width // window[1], window[1], dim).transpose(2, 3)
    return tiles.reshape(batch, -1, window[0] * window[1], dim)


def maps(tiles: Tensor, window: tuple[int, int], *, height: int, width: int) -> Tensor:
    """The inverse of `windows`."""
    batch, dim = tiles.shape[0], tiles.shape[-1]
    split = tiles.view(batch, height // window[0], width // window[1], window[0], window[1], dim).transpose(2, 3)
    return split.reshape(batch, height, width, dim)


def relative_index(window: tuple[int, int]) -> Tensor:
    """(n * n,) rows of the bias table by the offset of query and key."""
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(window[0]), torch.arange(window[1]), indexing="ij"))
    return ((y[:, None] - y + window[0] - 1) * (2 * window[1] - 1) + x[:, None] - x + window[1] - 1).flatten()


def shift_mask(padded: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor | None:
    """(nW, n, n): -100 between tokens that only rolling brought together, 0 else; None where nothing is rolled."""
    if not any(shift):
        return None
    bands = []
    for size, side, step in zip(padded, window, shift, strict=True):
        place = torch.arange(size)
        bands.append((place >= size - side).long() + (place >= size - step).long() if step else torch.zeros_like(place))
    region = windows((bands[0][:, None] * 3 + bands[1])[None, :, :, None], window)[0, :, :, 0]  # (nW, n)
    return (region[:, :, None] != region[:, None, :]).float() * OTHER_REGION


class WindowAttention(nn.Module):
    """Attention inside windows with a table of relative positions; `cosine` (v2) compares directions, with a learned scale per head."""

    mask: Tensor | None
    index: Tensor
    bias: Tensor | None

    def __init__(self, dim: int, *, options: Mapping[str, Any], heads: int, head_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.head_dim, self.fused, self.cosine = heads, head_dim, True, options["cosine"]
        self.window, self.shift = tuple(options["window"]), tuple(options["shift"])
        self.padded = tuple(-(-size // side) * side for size, side in zip(grid, self.window, strict=True))
        self.scale = 1.0 if self.cosine else options["head_dim"] ** -0.5
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=options["qkv_bias"])
        self.proj = nn.Linear(heads * head_dim, dim)
        if self.cosine:
            self.logit_scale = nn.Parameter(torch.zeros(heads, 1, 1))
        self.bias_table = nn.Parameter(torch.zeros((2 * self.window[0] - 1) * (2 * self.window[1] - 1), heads))
        self.register_buffer("index", relative_index(self.window), persistent=False)
        self.register_buffer("mask", shift_mask(self.padded, self.window, self.shift), persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        batch, height, width, _ = x.shape
        q, k, v = self.project(windows(self.arranged(x), self.window))
        bias = self.logit_bias() if self.bias is None else self.bias
        out = attend(q, k, v, bias=bias, scale=self.scale, fused=self.fused)
        out = out.reshape(batch, -1, self.heads, *out.shape[2:]).transpose(2, 3)  # (B, nW, n, h, d)
        if torch.compiler.is_exporting():  # the exporter's fused attention lies otherwise in memory than the one that ran: no view will do
            out = out.clone(memory_format=torch.contiguous_format)
        out = out.flatten(3)
        x = maps(self.proj(out), self.window, height=self.padded[0], width=self.padded[1])
        if self.padded != (height, width):
            x = x[:, :height, :width]
        return x.roll(self.shift, (1, 2)) if any(self.shift) else x

    def arranged(self, x: Tensor) -> Tensor:
        """The map rolled by the shift, then padded to whole windows."""
        height, width = x.shape[1:3]
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), (1, 2))
        return x if self.padded == (height, width) else F.pad(x, (0, 0, 0, self.padded[1] - width, 0, self.padded[0] - height))

    def project(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, nW, n, C) -> queries, keys, values, (B * nW, h, n, d) each, or (B, nW * h, n, d) where a mask tells windows apart."""
        batch, count, tokens = tiles.shape[:3]
        split = self.qkv(tiles).view(batch, count, tokens, 3, self.heads, self.head_dim)
        q, k, v = split.permute(3, 0, 1, 4, 2, 5).unbind()  # (B, nW, h, n, d)
        if self.cosine:
            q = F.normalize(q, dim=-1) * self.logit_scale.clamp(max=LARGEST_SCALE).exp()
            k = F.normalize(k, dim=-1)
        shape = (batch * count, self.heads) if self.mask is None else (batch, count * self.heads)
        return q.reshape(*shape, tokens, self.head_dim), k.reshape(*shape, tokens, self.head_dim), v.reshape(*shape, tokens, self.head_dim)

    def confidence(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (h,), the mean of each query's largest attention."""
        q, k, _ = self.project(windows(self.arranged(x), self.window))
        each = confidence_of(q, k, bias=self.logit_bias(), scale=self.scale)
        return each.view(-1, self.heads).mean(dim=0)

    def logit_bias(self) -> Tensor:
        """(1, h, n, n), or (1, nW * h, n, n) where a mask tells windows apart."""
        tokens = self.window[0] * self.window[1]
        bias = self.bias_table.index_select(0, self.index).t().reshape(1, self.heads, tokens, tokens)
        return bias if self.mask is None else (bias + self.mask.unsqueeze(1)).flatten(0, 1)[None]

    def deploy_(self) -> None:
        """Bias and mask are added once."""
        with torch.no_grad():
            self.bias = self.logit_bias()


class Block(nn.Module):
    """Window attention and MLP; v2 has its norms behind them."""

    def __init__(self, dim: int, *, options: Mapping[str, Any], left: BlockPlan, grid: tuple[int, int]) -> None:
        super().__init__()
        self.post_norm = options["post_norm"]
        self.attn: WindowAttention | None = None
        self.mlp: Mlp | None = None
        if left.heads:
            self.norm1 = make_norm(options["norm"], dim)
            self.attn = WindowAttention(dim, options=options, heads=left.heads, head_dim=left.head_dim, grid=grid)
        if left.mlp_dim:
            self.norm2 = make_norm(options["norm"], dim)
            self.mlp = Mlp(dim, options=options, mlp_dim=left.mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        if self.attn is not None:
            x = x + (self.norm1(self.attn(x)) if self.post_norm else self.attn(self.norm1(x)))
        if self.mlp is not None:
            x = x + (self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x)))
        return x


class PatchMerging(nn.Module):
    """2 x 2 neighbours to one token: (B, H, W, C) -> (B, H / 2, W / 2, C'), rounded up; the norm stands before (v1) or behind (v2)."""

    def __init__(self, dim: int, out_dim: int, *, norm: list[Any], norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm = make_norm(norm, 4 * dim if norm_first else out_dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2)) if x.shape[1] % 2 or x.shape[2] % 2 else x
        batch, height, width, dim = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x)) if self.norm_first else self.norm(self.reduction(x))


class Swin(nn.Module):
    """A Swin Transformer from a Plan: (B, in, H, W) -> (B, classes)."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        options, dims = plan.source.options, plan.embed_dims
        self.plan, self.num_classes = plan, options["num_classes"]
        self.num_features = self.head_hidden_size = dims[-1]
        patch = tuple(options["patch"])
        self.image_shape = (options["in_channels"], *options["image_size"])
        self.patch = nn.Conv2d(options["in_channels"], dims[0], patch, stride=patch, bias=options["patch_bias"])
        self.patch_norm = make_norm(options["patch_norm"], dims[0])
        self.stages = nn.ModuleList()
        left = iter(plan.blocks)
        for s, stage in enumerate(options["stages"]):
            parts = nn.ModuleDict()
            if stage["merges"]:
                parts["downsample"] = PatchMerging(dims[s - 1], dims[s], norm=stage["merge_norm"], norm_first=options["norm_first"])
            parts["blocks"] = nn.ModuleList(Block(dims[s], options=form, left=next(left), grid=tuple(stage["grid"]))
                                            for form in stage["blocks"])
            self.stages.append(parts)
        self.norm = make_norm(options["norm"], dims[-1])
        self.head = nn.Linear(dims[-1], self.num_classes, bias=options["head_bias"]) if self.num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, H', W', C), normed."""
        if x.shape[1:] != self.image_shape:
            raise PlanError(f"this network takes images of shape {self.image_shape}, not {tuple(x.shape[1:])}")
        x = self.patch_norm(self.patch(x).permute(0, 2, 3, 1))
        for stage in cast(Iterable[nn.ModuleDict], self.stages):
            if "downsample" in stage:
                x = stage["downsample"](x)
            for block in cast(Iterable[nn.Module], stage["blocks"]):
                x = block(x)
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean(dim=(1, 2)))

    def no_weight_decay(self) -> set[str]:
        """Names excluded from weight decay beside the one-dimensional ones (timm's hook)."""
        return {name for name, _ in self.named_parameters() if name.endswith(("bias_table", "logit_scale"))}


def read(model: Any) -> Read:
    """Raises UnsupportedModelError by name; the model is never changed."""
    survey(model, known=KNOWN)
    second = type(model).__name__ == "SwinTransformerV2"
    pool = model.head.global_pool.pool_type
    refuse(model, [] if pool == "avg" else [f"head.global_pool {pool!r} (accepted: avg)"])
    tensors, patch = Tensors(model), model.patch_embed
    tensors.move_all("patch_embed.proj", "patch")
    tensors.move_all("patch_embed.norm", "patch_norm")
    tensors.move_all("norm", "norm")
    tensors.move_all("head.fc", "head")
    tensors.drop("relative_position_index", "attn_mask", "relative_coords_table", "k_bias")
    stages = [_read_stage(stage, tensors, s, second=second) for s, stage in enumerate(model.layers)]
    description = {"image_size": [int(v) for v in patch.img_size], "in_channels": patch.proj.in_channels, "patch": list(patch.patch_size),
                   "patch_bias": has_bias(patch.proj), "patch_norm": norm_form(patch.norm), "norm": norm_form(model.norm),
                   "num_classes": model.num_classes, "head_bias": has_bias(model.head.fc), "norm_first": not second, "stages": stages}
    return Read(description=description, state=tensors.done())


def _read_stage(stage: Any, tensors: Tensors, s: int, *, second: bool) -> dict[str, Any]:
    merges, path = not isinstance(stage.downsample, nn.Identity), f"layers.{s}"
    tensors.move_all(f"{path}.downsample", f"stages.{s}.downsample")
    blocks = []
    for b, block in enumerate(stage.blocks):
        to, at, attn = f"stages.{s}.blocks.{b}", f"{path}.blocks.{b}", block.attn
        for name in ("norm1", "norm2", "attn.proj"):
            tensors.move_all(f"{at}.{name}", f"{to}.{name}")
        tensors.move(f"{at}.attn.qkv.weight", f"{to}.attn.qkv.weight")
        if second:
            _read_second(attn, tensors, at=f"{at}.attn", to=f"{to}.attn")
        else:
            tensors.move(f"{at}.attn.relative_position_bias_table", f"{to}.attn.bias_table")
            if has_bias(attn.qkv):
                tensors.move(f"{at}.attn.qkv.bias", f"{to}.attn.qkv.bias")
        blocks.append({"heads": attn.num_heads, "head_dim": attn.qkv.out_features // 3 // attn.num_heads, "cosine": second,
                       "window": [int(v) for v in block.window_size], "shift": [int(v) for v in block.shift_size], "post_norm": second,
                       "qkv_bias": has_bias(attn.qkv) or getattr(attn, "q_bias", None) is not None, "norm": norm_form(block.norm1),
                       **plain.read_mlp(block.mlp, tensors, path=f"{at}.mlp", to=f"{to}.mlp")})
    return {"merges": merges, "merge_norm": norm_form(stage.downsample.norm) if merges else None, "dim": stage.blocks[0].dim,
            "grid": [int(v) for v in stage.blocks[0].input_resolution], "blocks": blocks}


def _read_second(attn: Any, tensors: Tensors, *, at: str, to: str) -> None:
    """v2's attention: queries and values have biases, keys none; the table is what the position network says."""
    if attn.q_bias is not None:
        q, v = tensors.pop(f"{at}.q_bias"), tensors.pop(f"{at}.v_bias")
        tensors.give(f"{to}.qkv.bias", torch.cat([q, torch.zeros_like(q), v]))
    tensors.move(f"{at}.logit_scale", f"{to}.logit_scale")
    first, second = attn.cpb_mlp[0], attn.cpb_mlp[2]
    with torch.no_grad():
        hidden = F.relu(F.linear(attn.relative_coords_table, first.weight, first.bias))
        tensors.give(f"{to}.bias_table", 16 * torch.sigmoid(F.linear(hidden, second.weight).view(-1, attn.num_heads)))
    tensors.drop(f"{at}.cpb_mlp.0.weight", f"{at}.cpb_mlp.0.bias", f"{at}.cpb_mlp.2.weight")


def layout(source: Source) -> Layout:
    """Windows need whole maps, so there are no token operators."""
    options = source.options
    blocks = tuple(BlockLayout(stage=s, heads=b["heads"], head_dim=b["head_dim"], mlp_dim=b["mlp_dim"])
                   for s, stage in enumerate(options["stages"]) for b in stage["blocks"])
    height, width = options["stages"][0]["grid"]
    reason = "windows need every token of the map"
    return Layout(blocks=blocks, embed_dims=tuple(stage["dim"] for stage in options["stages"]), tokens=height * width,
                  refused=dict.fromkeys(OPERATORS[1:], reason))


def axes(source: Source, name: str) -> tuple[Axis, ...]:
    """The axes of a tensor of the owned Swin."""
    parts, stages = name.split("."), source.options["stages"]
    if parts[0] != "stages":
        last = f"embed.{len(stages) - 1}"
        if parts[0] == "patch":
            return (("embed.0",), None, None, None) if parts[1] == "weight" else (("embed.0",),)
        if parts[0] == "head":
            return (None, (last,)) if parts[1] == "weight" else (None,)
        return (("embed.0",) if parts[0] == "patch_norm" else (last,),)
    s = int(parts[1])
    embed = f"embed.{s}"
    if parts[2] == "downsample":
        four: Axis = (f"embed.{s - 1}",) * 4
        if parts[3] == "reduction":
            return ((embed,), four)
        return (four if source.options["norm_first"] else (embed,),)
    i = sum(len(stage["blocks"]) for stage in stages[:s]) + int(parts[3])
    qk, v, mlp, inner = f"qk.{i}", f"v.{i}", f"mlp.{i}", ".".join(parts[4:])
    table: dict[str, tuple[Axis, ...]] = {
        "attn.qkv.weight": ((qk, qk, v), (embed,)), "attn.qkv.bias": ((qk, qk, v),), "attn.proj.weight": ((embed,), (v,)),
        "attn.logit_scale": ((f"heads.{i}",), None, None), "attn.bias_table": (None, (f"heads.{i}",)),
        "mlp.fc1.weight": ((mlp,), (embed,)), "mlp.fc1.bias": ((mlp,),), "mlp.fc2.weight": ((embed,), (mlp,))}
    return table.get(inner, ((embed,),))


FAMILIES.register("swin")(Family(name="swin", recognises=lambda model: of_timm(model, "SwinTransformer", "SwinTransformerV2"), read=read,
                                 layout=layout, build=Swin, axes=axes))
