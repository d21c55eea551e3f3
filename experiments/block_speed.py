"""How fast are our forms of the published systems against straightforward implementations of the published forms?

    python experiments/block_speed.py --quick --only slide
    python experiments/block_speed.py --markdown reports/published/block_speed.md
    python experiments/block_speed.py --device cuda --dtype fp16 --mode graph --markdown reports/published/block_speed_cuda.md

Both forms of a row are run in turns in this process, on one thread, and timed by the CPU time of the process (on a GPU by
events). The reference forms stand below, written from the papers and their public code; Evo-ViT and the whole Swin rows
have timm's own models for reference, which compute another function. Everywhere else both forms have the same weights and
must give the same output first. Ours is what a user runs: the form of `nasvit.models.deploy` (--plain: the form that trains).
A goal that is missed gets a line that says what the device could do at most.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from interleaved import MODES, Limits, Switched, forward
from speed_table import HEADER, ROUNDS, Row, line, measure, memory_of_process, write
from torch import Tensor, nn
from torch.nn import functional as F

import nasvit.zoo
from nasvit.models.deploy import deploy
from nasvit.models.mixers.fsla import FSLAMixer, cluster_order
from nasvit.models.mixers.slide import SlideMixer

import timm  # isort: skip (behind ours, which make torchvision importable)

# ---- the published forms --------------------------------------------------------------------------------------------

class PublishedSlide(nn.Module):
    """Slide attention as released: two depthwise convolutions of keys, and of values, to k*k*C maps (arXiv 2304.04237)."""

    stochastic_depth = True  # asked by the block it may stand in

    def __init__(self, mixer: SlideMixer) -> None:
        super().__init__()
        self.heads, self.taps, self.scale = mixer.num_heads, mixer.kernel_size**2, mixer.scale
        self.qkv, self.proj = copy.deepcopy(mixer.qkv), copy.deepcopy(mixer.proj)
        dim, k = mixer.dim // mixer.num_heads, mixer.kernel_size
        self.fixed, self.learned = (nn.Conv2d(dim, dim * self.taps, k, padding=k // 2, groups=dim) for _ in range(2))
        with torch.no_grad():
            self.fixed.weight.copy_(mixer.fixed.repeat(dim, 1, 1).unsqueeze(1))
            self.fixed.bias.copy_(mixer.fixed_bias.flatten())
            self.learned.weight.copy_(mixer.kernel.reshape(-1, 1, k, k))
            self.learned.bias.copy_(mixer.kernel_bias.flatten())
        self.fixed.weight.requires_grad_(False)
        self.position = nn.Parameter(mixer.relative_position_bias_table.detach().clone())

    def neighbours(self, x: Tensor) -> Tensor:
        """(B*h, d, H, W) -> (B, h, d, T, H, W)"""
        near = self.fixed(x) + self.learned(x)
        return near.view(-1, self.heads, x.shape[1], self.taps, *x.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        split = self.qkv(x).view(batch, height, width, 3, self.heads, -1).permute(3, 0, 4, 5, 1, 2)
        q, k, v = split.reshape(3, -1, dim // self.heads, height, width)
        q = (q * self.scale).view(batch, self.heads, -1, 1, height, width)
        keys = self.neighbours(k) + self.position.view(1, self.heads, 1, self.taps, 1, 1)
        attention = (q * keys).sum(dim=2, keepdim=True).softmax(dim=3)
        out = (attention * self.neighbours(v)).sum(dim=3)  # (B, h, d, H, W)
        return self.proj(out.permute(0, 3, 4, 1, 2).reshape(x.shape))


class UnfoldedSlide(PublishedSlide):
    """The same by im2col, which has the pure shifts alone: for a mixer whose learned path and biases are zero."""

    def neighbours(self, x: Tensor) -> Tensor:
        k = self.fixed.kernel_size[0]
        return F.unfold(x, k, padding=k // 2).view(-1, self.heads, x.shape[1], self.taps, *x.shape[-2:])


class PublishedFSLA(nn.Module):
    """FSLA as released: queries, keys and values gathered at every level, queries normalised three times at each (arXiv 2201.13027)."""

    stochastic_depth = True  # asked by the block it may stand in

    def __init__(self, mixer: FSLAMixer) -> None:
        super().__init__()
        self.heads, self.depth, self.overlap = mixer.num_heads, mixer.cluster_depth, mixer.overlap
        self.scale = mixer.qk_scale or (mixer.dim // mixer.num_heads) ** -0.5
        self.qkv, self.lepe, self.proj = (copy.deepcopy(m) for m in (mixer.qkv, mixer.lepe, mixer.proj))

    @torch.no_grad()
    def order(self, q: Tensor) -> Tensor:
        """(G, s, d) -> (G, s), positions sorted by the ratio of similarities to two centroids."""
        centroids = F.normalize(q.unflatten(1, (2, -1)).mean(dim=2), dim=-1)
        for _ in range(2):
            cosines = F.normalize(q, dim=-1) @ centroids.transpose(1, 2)
            centroids = F.normalize((100 * cosines).softmax(dim=-1).transpose(1, 2) @ q, dim=-1)
        cosines = F.normalize(q, dim=-1) @ centroids.transpose(1, 2)
        return ((cosines[..., 0] + 1) / (cosines[..., 1] + 1)).argsort(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        tokens, d = height * width, dim // self.heads
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, d).permute(2, 0, 3, 1, 4).reshape(3, -1, tokens, d)
        lepe = self.lepe(v.view(batch, self.heads, tokens, d).transpose(2, 3).reshape(batch, dim, height, width))
        index = torch.arange(tokens, device=x.device).expand(len(q), tokens)
        for _ in range(self.depth):
            order = self.order(q)
            gathered = order.unsqueeze(-1).expand(-1, -1, d)
            q, k, v = (t.gather(1, gathered).reshape(2 * len(t), -1, d) for t in (q, k, v))
            index = index.gather(1, order).reshape(2 * len(index), -1)
        k, v = (self.with_siblings(t) for t in (k, v))
        out = ((q * self.scale) @ k.transpose(1, 2)).softmax(dim=-1) @ v
        back = index.view(batch, self.heads, tokens).argsort(dim=-1).unsqueeze(-1).expand(-1, -1, -1, d)
        out = out.view(batch, self.heads, tokens, d).gather(2, back).transpose(1, 2).reshape(x.shape)
        return self.proj(out + lepe.permute(0, 2, 3, 1))

    def with_siblings(self, t: Tensor) -> Tensor:
        """(G, m, d) -> (G, m + n, d): each of two siblings sees the n tokens of the other that are nearest to their border."""
        if not (self.depth and self.overlap):
            return t
        first, second = t.unflatten(0, (-1, 2)).unbind(1)
        first, second = torch.cat((first, second[:, :self.overlap]), 1), torch.cat((first[:, -self.overlap:], second), 1)
        return torch.stack((first, second), 1).flatten(0, 1)


class Gate(nn.Module):
    """x times the sigmoid of a small network of x."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x)


def depthwise(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class PublishedCATM(nn.Module):
    """The additive token mixer of CAS-ViT (arXiv 2408.03703), in NCHW."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.oper_q, self.oper_k = (nn.Sequential(
            Gate(depthwise(dim), nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, 1, 1, bias=False)),
            Gate(nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, dim, 1, bias=False))) for _ in range(2))
        self.dwc, self.proj = depthwise(dim), depthwise(dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        return self.proj(self.dwc(self.oper_q(q) + self.oper_k(k)) * v)


class PublishedCASBlock(nn.Module):
    """Local perception, CATM and MLP, each residual."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.local_perception = nn.ModuleDict({"network": nn.Sequential(
            nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim), depthwise(dim), nn.GELU(), nn.Conv2d(dim, dim, 1))})
        self.norm1, self.attn, self.norm2 = nn.BatchNorm2d(dim), PublishedCATM(dim), nn.BatchNorm2d(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Conv2d(dim, mlp_dim, 1), "fc2": nn.Conv2d(mlp_dim, dim, 1)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local_perception["network"](x)
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class PublishedCASViT(nn.Module):
    """CAS-ViT as released, under the authors' names: NCHW, every batch norm an operation of its own."""

    def __init__(self, *, dims: list[int], depths: list[int], num_classes: int = 1000) -> None:
        super().__init__()
        half = dims[0] // 2
        self.patch_embed = nn.Sequential(nn.Conv2d(3, half, 3, 2, 1), nn.BatchNorm2d(half), nn.ReLU(),
                                         nn.Conv2d(half, dims[0], 3, 2, 1), nn.BatchNorm2d(dims[0]), nn.ReLU())
        self.network = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            if i:
                self.network.append(nn.Sequential())
                self.network[-1].add_module("proj", nn.Conv2d(dims[i - 1], dim, 3, 2, 1))
                self.network[-1].add_module("norm", nn.BatchNorm2d(dim))
            self.network.append(nn.Sequential(*(PublishedCASBlock(dim, 4 * dim) for _ in range(depth))))
        self.norm, self.head = nn.BatchNorm2d(dims[-1]), nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for part in self.network:
            x = part(x)
        return self.head(self.norm(x).flatten(2).mean(dim=-1))


def swapped(model: nn.Module, ours: type[nn.Module], published: Callable[[Any], nn.Module]) -> nn.Module:
    """A copy of our network with the published form in the place of one of its mixers."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ours):
                setattr(parent, name, published(child))
    return model.eval()


def awake(model: nn.Module) -> nn.Module:
    """Batch norms as training leaves them: fresh ones hide branches (a weight of 0)."""
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for positive in (norm.weight, norm.running_var):
                nn.init.uniform_(positive, 0.5, 1.5)
            for any_sign in (norm.bias, norm.running_mean):
                nn.init.normal_(any_sign, std=0.1)
    return model.eval()


def fused(model: nn.Module) -> nn.Module:
    """timm's LeViT with its batch norms folded, by its own means."""
    for name, child in list(model.named_children()):
        setattr(model, name, child.fuse() if hasattr(child, "fuse") else fused(child))
    return model


# ---- the rows -------------------------------------------------------------------------------------------------------

class ClusteringOf(nn.Module):
    """The clustering of FSLA alone, on the queries of its input."""

    def __init__(self, mixer: FSLAMixer) -> None:
        super().__init__()
        self.mixer = mixer
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or len(self.kept) != len(x):  # the projection is no part of the clustering
            queries = self.mixer.qkv(x)[..., : self.mixer.dim].unflatten(-1, (self.mixer.num_heads, -1))
            self.kept = queries.flatten(1, 2).transpose(1, 2)
        return cluster_order(self.kept, depth=self.mixer.cluster_depth)


def slide_pair(side: int, dim: int, kernel_size: int, *, shift_only: bool = False) -> tuple[nn.Module, nn.Module]:
    mixer = SlideMixer(dim, resolution=(side, side), num_heads=dim // 32, kernel_size=kernel_size).eval()
    if shift_only:
        for parameter in (mixer.kernel, mixer.kernel_bias, mixer.fixed_bias):
            nn.init.zeros_(parameter)
    return mixer, (UnfoldedSlide if shift_only else PublishedSlide)(mixer).eval()


def fsla_mixer(side: int, dim: int, depth: int) -> FSLAMixer:
    mixer = FSLAMixer(dim, resolution=(side, side), num_heads=dim // 32, cluster_depth=depth, overlap=20).eval()
    nn.init.normal_(mixer.qkv.weight, std=0.1)
    return mixer


def fsla_pair(side: int, dim: int, depth: int) -> tuple[nn.Module, nn.Module]:
    mixer = fsla_mixer(side, dim, depth)
    return mixer, PublishedFSLA(mixer).eval()


def clustering_pair(side: int, dim: int, depth: int) -> tuple[nn.Module, nn.Module]:
    mixer = fsla_mixer(side, dim, depth)
    return ClusteringOf(mixer).eval(), mixer


def model_pair(ours: str, reference: str | Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module]:
    model = awake(timm.create_model(ours))
    return model, fused(awake(timm.create_model(reference))) if isinstance(reference, str) else reference(model)


def casvit_pair(size: str) -> tuple[nn.Module, nn.Module]:
    model = timm.create_model(f"casvit_{size}").eval()
    stages = model.arch.stages
    published = awake(PublishedCASViT(dims=[s.embed_dim for s in stages], depths=[len(s.blocks) for s in stages]))
    nasvit.zoo.load_official(model, published.state_dict())
    return model, published


def slide_rows() -> Iterator[Row]:
    for side, dim, k, goals in ((56, 96, 3, {1: 0.15, 8: 0.15}), (28, 192, 3, {}), (56, 96, 5, {}), (28, 192, 5, {1: 0.25, 8: 0.25}),
                                (56, 96, 7, {}), (28, 192, 7, {})):
        for batch in (1, 8) if k > 3 else (1, 8, 32):
            yield Row(group="slide", what=f"slide attention k={k}, {side}x{side}x{dim}", against="two depthwise convolutions", batch=batch,
                      make=lambda side=side, dim=dim, k=k: slide_pair(side, dim, k), shape=(side, side, dim), goal=goals.get(batch))
    for k in (3, 5):
        yield Row(group="slide", what=f"slide attention k={k}, 56x56x96, shift only", against="im2col", batch=1, shape=(56, 56, 96),
                  make=lambda k=k: slide_pair(56, 96, k, shift_only=True))
    for batch in (1, 8):
        yield Row(group="slide", what="slide attention k=3, 56x56x96, forward and backward", against="two depthwise convolutions",
                  batch=batch, make=lambda: slide_pair(56, 96, 3), shape=(56, 56, 96), goal=1.2, kind="backward")


def memory_rows() -> Iterator[Row]:
    for kind, said in (("live", "peak memory of live tensors"), ("resident", "peak resident memory of a fresh process")):
        yield Row(group="memory", what=f"{said}, slide attention k=7, 56x56x96", against="two depthwise convolutions", batch=8, kind=kind,
                  make=lambda: slide_pair(56, 96, 7), shape=(56, 56, 96), goal=0.2)


def fsla_rows() -> Iterator[Row]:
    for side, dim, depth in ((56, 96, 6), (28, 192, 4), (14, 384, 2)):
        first, shape, name = depth == 6, (side, side, dim), f"FSLA, {side}x{side}x{dim}, {depth} levels"
        for batch in (1, 8, 32):
            yield Row(group="fsla", what=name, against="gather per level, three normalisations", batch=batch, shape=shape, exact=True,
                      make=lambda a=side, b=dim, c=depth: fsla_pair(a, b, c), goal=0.45 if first else None)
        for batch in (1, 8):
            yield Row(group="fsla", what=f"clustering of {name}", against="our whole FSLA", batch=batch, shape=shape, same=False,
                      deployed=False, make=lambda a=side, b=dim, c=depth: clustering_pair(a, b, c), goal=0.4 if first else None)
    for batch in (1, 8):
        yield Row(group="fsla", what="FSLA, 56x56x96, 6 levels, forward and backward", against="gather per level, three normalisations",
                  batch=batch, make=lambda: fsla_pair(56, 96, 6), shape=(56, 56, 96), goal=1.2, exact=True, kind="backward")


def model_rows() -> Iterator[Row]:
    swin, slide, boat = "swin_tiny_patch4_window7_224", "slide_swin_tiny", "boat_swin_tiny"
    for batch in (1, 8, 32):
        one = batch == 1
        yield Row(group="slide_swin", what="whole Slide-Swin-T", against="published form", batch=batch, goal=0.5 if one else None,
                  make=lambda: model_pair(slide, lambda model: swapped(model, SlideMixer, PublishedSlide)))
        yield Row(group="slide_swin", what="whole Slide-Swin-T", against="timm swin_tiny", batch=batch, goal=1.1 if one else None,
                  make=lambda: model_pair(slide, swin), same=False)
        yield Row(group="boat", what="whole BOAT-Swin-T", against="timm swin_tiny", batch=batch, goal=1.4 if one else None,
                  make=lambda: model_pair(boat, swin), same=False)
        yield Row(group="boat", what="whole BOAT-Swin-T", against="published form", batch=batch, exact=True,
                  make=lambda: model_pair(boat, lambda model: swapped(model, FSLAMixer, PublishedFSLA)))
        for size in ("xs", "s", "m", "t"):
            yield Row(group="casvit", what=f"CAS-ViT-{size.upper()}", against="published form", batch=batch, goal=0.85,
                      make=lambda size=size: casvit_pair(size))
        yield Row(group="evo_deit", what="Evo-DeiT-S", against="timm deit_small, fused attention", batch=batch, same=False,
                  make=lambda: model_pair("evo_deit_small", "deit_small_patch16_224"), goal={1: 1 / 1.45, 8: 1 / 1.6}.get(batch))
        for size, goal in (("128s", 1 / 1.0), ("256", 1 / 1.2)):
            yield Row(group="evo_levit", what=f"Evo-LeViT-{size.upper()}", against="timm levit, BN folded", batch=batch, same=False,
                      make=lambda size=size: model_pair(f"evo_levit_{size}", f"levit_{size}"), goal=goal if one else None)


def all_rows() -> list[Row]:
    return [*slide_rows(), *memory_rows(), *fsla_rows(), *model_rows()]


# ---- the command -----------------------------------------------------------------------------------------------------

def print_resident(options: argparse.Namespace) -> None:
    """The child process: prints by how many MB one forward raises the peak over what the process held before."""
    index, which = (int(part) for part in options.resident.split(":"))
    row = all_rows()[index]
    ours, reference = row.make()
    module = reference if which else ours if options.plain else deploy(ours)
    forward(module, torch.randn(1, *row.shape))()  # what libraries allocate once
    x = torch.randn(row.batch, *row.shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_of_process("VmRSS")
    forward(module, x)()
    print(memory_of_process("VmHWM") - before)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    groups = sorted({row.group for row in all_rows()})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--rounds", type=int, help="rounds of every row (default: 30, 8, 4 for batch 1, 8, 32)")
    parser.add_argument("--only", nargs="*", choices=groups, default=groups)
    parser.add_argument("--batch", nargs="*", type=int, choices=sorted(ROUNDS), default=sorted(ROUNDS))
    parser.add_argument("--goals", action="store_true", help="only the rows that have a goal")
    parser.add_argument("--plain", action="store_true", help="ours as it trains, without deploy()")
    parser.add_argument("--same-products", action="store_true", help="the references' linear layers multiply by the library of deploy()")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--mode", choices=sorted(MODES), default="eager", help="how forwards are run; compile and graph are for a GPU")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resident", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.device == "cpu" and (options.mode == "graph" or options.dtype != "fp32"):
        parser.error("CUDA graphs, fp16 and bf16 are measured on a GPU: add --device cuda")
    return options


def main() -> None:
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        return print("No GPU here: nothing was measured.")
    with Switched(seed=options.seed):
        if options.resident:
            return print_resident(options)
        limits = Limits.measure(device=options.device)
        print(HEADER)
        results = []
        for index, row in enumerate(all_rows()):
            if row.group not in options.only or row.batch not in options.batch or (options.goals and row.goal is None):
                continue
            if options.device == "cuda" and (row.kind == "resident" or (options.mode != "eager" and row.kind == "backward")):
                continue  # a process's resident memory says nothing of a GPU's; backwards are run eagerly
            results.append(measure(row, options, limits, index=index))
            print(line(results[-1]), *([f"  bound: {results[-1].limits}"] if results[-1].limits else []), sep="\n", flush=True)
            if options.markdown:  # after every row: a run that is cut short has its rows
                write(options.markdown, results, limits, options)


if __name__ == "__main__":
    main()
