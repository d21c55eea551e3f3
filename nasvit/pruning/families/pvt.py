"""timm's PyramidVisionTransformerV2 (arXiv 2106.13797), with spatial reduction and its linear form, and its owned network.

timm's network takes images of any size; a plan is for one. The channels that the reduction's convolution makes are cut as the width of
their stage is, and ranked on their own.

Legend: B images, H x W the map, N = H * W, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.pruning.blocks import ACTIVATIONS, attend, confidence_of, make_norm
from nasvit.pruning.families.base import FAMILIES, Axis, BlockLayout, Family, Layout, Read, Units, of_timm
from nasvit.pruning.families.reading import Tensors, activation_form, has_bias, norm_form, refuse, survey
from nasvit.pruning.plan import OPERATORS, BlockPlan, Plan, PlanError, Source

KNOWN = ("PyramidVisionTransformerV2", "PyramidVisionTransformerStage", "OverlapPatchEmbed", "Block", "Attention", "MlpWithDepthwiseConv",
         "AdaptiveAvgPool2d")
POOLED = 7  # the map that linear attention attends to


class Attention(nn.Module):
    """Attention to a smaller map of keys and values: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, *, options: Mapping[str, Any], heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.fused, self.scale = heads, head_dim, True, options["head_dim"] ** -0.5
        self.linear = options["linear"]
        inner, bias, reduction = heads * head_dim, options["qkv_bias"], options["reduction"]
        self.q = nn.Linear(dim, inner, bias=bias)
        self.kv = nn.Linear(dim, 2 * inner, bias=bias)
        self.proj = nn.Linear(inner, dim)
        self.reduces = reduction > 1 or self.linear
        if self.reduces:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = make_norm(options["sr_norm"], dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, h, N, d), keys and values (B, h, n, d)."""
        q = self.q(x).flatten(1, 2).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        if self.reduces:
            x = x.permute(0, 3, 1, 2)
            x = self.sr(F.adaptive_avg_pool2d(x, POOLED) if self.linear else x)
            x = self.norm(x.flatten(2).transpose(1, 2))
            x = F.gelu(x) if self.linear else x
        else:
            x = x.flatten(1, 2)
        k, v = self.kv(x).view(x.shape[0], x.shape[1], 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        out = attend(*self.project(x), bias=None, scale=self.scale, fused=self.fused)
        return self.proj(out.transpose(1, 2).flatten(2)).view(x.shape)

    def confidence(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (h,), the mean of each query's largest attention."""
        q, k, _ = self.project(x)
        return confidence_of(q, k, bias=None, scale=self.scale)


class ConvMlp(nn.Module):
    """Linear, depthwise 3 x 3, activation, linear: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, *, options: Mapping[str, Any], mlp_dim: int) -> None:
        super().__init__()
        self.first_relu, self.act = options["linear"], ACTIVATIONS[options["act"]]
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.dwconv = nn.Conv2d(mlp_dim, mlp_dim, 3, padding=1, groups=mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = F.relu(x) if self.first_relu else x
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))


class Block(nn.Module):
    """(B, H, W, C) -> (B, H, W, C)"""

    def __init__(self, dim: int, *, options: Mapping[str, Any], left: BlockPlan) -> None:
        super().__init__()
        self.attn: Attention | None = None
        self.mlp: ConvMlp | None = None
        if left.heads:
            self.norm1 = make_norm(options["norm"], dim)
            self.attn = Attention(dim, options=options, heads=left.heads, head_dim=left.head_dim)
        if left.mlp_dim:
            self.norm2 = make_norm(options["norm"], dim)
            self.mlp = ConvMlp(dim, options=options, mlp_dim=left.mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.attn is not None:
            x = x + self.attn(self.norm1(x))
        return x if self.mlp is None else x + self.mlp(self.norm2(x))


class OverlapEmbed(nn.Module):
    """(B, C, H, W) -> (B, H', W', C'), an overlapping convolution and a norm."""

    def __init__(self, in_dim: int, dim: int, *, kernel: list[int], stride: int, norm: list[Any]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, (kernel[0], kernel[1]), stride=stride, padding=(kernel[0] // 2, kernel[1] // 2))
        self.norm = make_norm(norm, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Pvt(nn.Module):
    """A PVTv2 from a Plan: (B, in, H, W) -> (B, classes)."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        options, dims = plan.source.options, plan.embed_dims
        self.plan, self.num_classes = plan, options["num_classes"]
        self.num_features = self.head_hidden_size = dims[-1]
        self.image_shape = (options["in_channels"], *options["image_size"])
        self.stages = nn.ModuleList()
        left = iter(plan.blocks)
        for s, stage in enumerate(options["stages"]):
            parts = nn.ModuleDict()
            parts["embed"] = OverlapEmbed(dims[s - 1] if s else options["in_channels"], dims[s], kernel=stage["kernel"],
                                          stride=stage["stride"], norm=stage["embed_norm"])
            parts["blocks"] = nn.ModuleList(Block(dims[s], options=form, left=next(left)) for form in stage["blocks"])
            parts["norm"] = make_norm(stage["norm"], dims[s])
            self.stages.append(parts)
        self.head = nn.Linear(dims[-1], self.num_classes, bias=options["head_bias"]) if self.num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, H', W', C), normed."""
        if x.shape[1:] != self.image_shape:
            raise PlanError(f"this network takes images of shape {self.image_shape}, not {tuple(x.shape[1:])}")
        for s, stage in enumerate(cast(Iterable[nn.ModuleDict], self.stages)):
            x = stage["embed"](x.permute(0, 3, 1, 2) if s else x)
            for block in cast(Iterable[nn.Module], stage["blocks"]):
                x = block(x)
            x = stage["norm"](x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean(dim=(1, 2)))


def read(model: Any) -> Read:
    """Raises UnsupportedModelError by name; the model is never changed. The image size is that of timm's configuration."""
    survey(model, known=KNOWN)
    refuse(model, [] if model.global_pool == "avg" else [f"global_pool {model.global_pool!r} (accepted: avg)"])
    tensors = Tensors(model)
    tensors.move_all("head", "head")
    stages = []
    for s, stage in enumerate(model.stages):
        embed = stage.downsample if s else model.patch_embed
        tensors.move_all(f"stages.{s}.downsample" if s else "patch_embed", f"stages.{s}.embed")
        tensors.move_all(f"stages.{s}.norm", f"stages.{s}.norm")
        blocks = []
        for b, block in enumerate(stage.blocks):
            attn, path = block.attn, f"stages.{s}.blocks.{b}"
            tensors.move_all(path, path)
            blocks.append({"heads": attn.num_heads, "head_dim": attn.head_dim, "mlp_dim": block.mlp.fc1.out_features,
                           "norm": norm_form(block.norm1), "sr_norm": None if attn.norm is None else norm_form(attn.norm),
                           "qkv_bias": has_bias(attn.q), "linear": attn.pool is not None, "act": activation_form(block.mlp.act),
                           "reduction": 1 if attn.sr is None else int(attn.sr.kernel_size[0])})
        stages.append({"dim": embed.proj.out_channels, "kernel": [int(v) for v in embed.proj.kernel_size],
                       "stride": int(embed.proj.stride[0]), "embed_norm": norm_form(embed.norm), "norm": norm_form(stage.norm),
                       "blocks": blocks})
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    description = {"image_size": [int(size[1]), int(size[2])], "in_channels": model.patch_embed.proj.in_channels,
                   "num_classes": model.num_classes, "head_bias": has_bias(model.head), "stages": stages}
    return Read(description=description, state=tensors.done())


def layout(source: Source) -> Layout:
    """Convolutions need whole maps, so there are no token operators."""
    stages = source.options["stages"]
    blocks = tuple(BlockLayout(stage=s, heads=b["heads"], head_dim=b["head_dim"], mlp_dim=b["mlp_dim"])
                   for s, stage in enumerate(stages) for b in stage["blocks"])
    height, width = (-(-v // stages[0]["stride"]) for v in source.options["image_size"])
    reason = "its convolutions need every token of the map"
    return Layout(blocks=blocks, embed_dims=tuple(stage["dim"] for stage in stages), tokens=height * width,
                  refused=dict.fromkeys(OPERATORS[1:], reason))


def extra(plan: Plan) -> dict[str, Units]:
    """The reduced channels of each block follow its stage's width."""
    dense = layout(plan.source)
    return {f"sr.{i}": Units(count=dense.embed_dims[block.stage], keep=plan.embed_dims[block.stage])
            for i, block in enumerate(dense.blocks)}


def axes(source: Source, name: str) -> tuple[Axis, ...]:
    """The axes of a tensor of the owned PVT."""
    parts, stages = name.split("."), source.options["stages"]
    if parts[0] == "head":
        return (None, (f"embed.{len(stages) - 1}",)) if parts[1] == "weight" else (None,)
    s = int(parts[1])
    embed: Axis = (f"embed.{s}",)
    if parts[2] != "blocks":
        before: Axis = (f"embed.{s - 1}",) if s else None
        return (embed, before, None, None) if name.endswith("embed.proj.weight") else (embed,)
    i = sum(len(stage["blocks"]) for stage in stages[:s]) + int(parts[3])
    qk, v, mlp, inner = f"qk.{i}", f"v.{i}", f"mlp.{i}", ".".join(parts[4:])
    reduces = stages[s]["blocks"][int(parts[3])]["reduction"] > 1 or stages[s]["blocks"][int(parts[3])]["linear"]
    sr: Axis = (f"sr.{i}",)
    table: dict[str, tuple[Axis, ...]] = {
        "attn.q.weight": ((qk,), embed), "attn.q.bias": ((qk,),), "attn.kv.weight": ((qk, v), sr if reduces else embed),
        "attn.kv.bias": ((qk, v),), "attn.proj.weight": (embed, (v,)), "attn.sr.weight": (sr, embed, None, None), "attn.sr.bias": (sr,),
        "attn.norm.weight": (sr,), "attn.norm.bias": (sr,), "mlp.fc1.weight": ((mlp,), embed), "mlp.fc1.bias": ((mlp,),),
        "mlp.dwconv.weight": ((mlp,), None, None, None), "mlp.dwconv.bias": ((mlp,),), "mlp.fc2.weight": (embed, (mlp,))}
    return table.get(inner, (embed,))


FAMILIES.register("pvt")(Family(name="pvt", recognises=lambda model: of_timm(model, "PyramidVisionTransformerV2"), read=read,
                                layout=layout, build=Pvt, axes=axes, extra=extra, any_size=True))
