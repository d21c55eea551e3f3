"""Which tokens of an image each block keeps, merges or clusters: for pictures.

Values are asked for (a trace passed along, or an observer that goes again), never kept by a module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasvit.errors import ConfigError
from nasvit.models.mixers.fsla import FSLAMixer, cluster_order
from nasvit.models.network import Network
from nasvit.pruning.transformer import Transformer

KINDS = ("kept", "merged", "clusters")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMap:
    """One block's view of the grid. kind "kept": places (H, W) is -1 where the token is not updated (slow_fast) or went into the fused
    one (topk_fuse). "merged": equal numbers are one token. "clusters": equal numbers attend to each other, in this head. where: for a
    reader, stages, blocks and heads counted from 1, as in the drawings."""

    where: str
    kind: str
    places: Tensor
    head: int = 0

    @property
    def share(self) -> float:
        """Of "kept": the share of the tokens that stay; else the number of groups by that of tokens."""
        if self.kind == "kept":
            return float((self.places >= 0).float().mean())
        return len(self.places.unique()) / self.places.numel()


@torch.no_grad()
def kept_tokens(module: nn.Module, image: Tensor) -> list[TokenMap]:
    """What every block does with the tokens of one image, (in, H, W) or (1, in, H, W), normalised as the module takes it.

    For pruned plain transformers, and networks of an Arch with slow-fast segments (Evo-ViT) or FSLA. Empty where every block of a
    network sees every token on its own. Raises ConfigError for other modules.
    """
    batch = image.unsqueeze(0) if image.dim() == 3 else image
    if len(batch) != 1:
        raise ConfigError(f"kept_tokens shows one image, not {len(batch)}")
    modes = {m: m.training for m in module.modules()}
    try:
        module.eval()
        if isinstance(module, Transformer):
            return _of_transformer(module, batch)
        if isinstance(module, Network):
            return _slow_fast(module, batch) + _clusters(module, batch)
    finally:
        for part, mode in modes.items():
            part.training = mode
    plan = getattr(module, "plan", None)
    if plan is not None:
        return []  # the families without token operators
    raise ConfigError(f"{type(module).__name__} is neither a pruned network nor one of an Arch; load it with nasvit.pruning.load")


def _of_transformer(module: Transformer, image: Tensor) -> list[TokenMap]:
    if module.operator == "none":
        return []
    trace: list[Tensor] = []
    module.forward_features(image, trace)
    kind = "merged" if module.operator == "merge" else "kept"
    return [TokenMap(where=f"block {i + 1}", kind=kind, places=places[0].view(module.grid).cpu()) for i, places in enumerate(trace)]


def _slow_fast(module: Network, image: Tensor) -> list[TokenMap]:
    maps = []
    for s, segments in enumerate(module.selected(image)):
        grid = module.arch.grid(s)
        for start, stop, kept in segments:
            places = torch.full((grid[0] * grid[1],), -1)
            places[kept[0].cpu()] = torch.arange(kept.shape[1])
            blocks = f"blocks {start + 1} to {stop}" if stop - start > 1 else f"block {stop}"
            maps.append(TokenMap(where=f"stage {s + 1}, {blocks}", kind="kept", places=places.view(grid)))
    return maps


def _clusters(module: Network, image: Tensor) -> list[TokenMap]:
    maps: list[TokenMap] = []
    hooks = []
    for path, part in module.named_modules():
        if not isinstance(part, FSLAMixer) or part.cluster_depth == 0:
            continue

        def observe(mixer: Any, inputs: tuple[Tensor, ...], where: str = path) -> None:
            maps.extend(_clusters_of(mixer, inputs[0], where))

        hooks.append(part.register_forward_pre_hook(observe))
    try:
        if hooks:
            module(image)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def _clusters_of(mixer: FSLAMixer, x: Tensor, path: str) -> list[TokenMap]:
    """(1, H, W, C) -> one map for each head: the cluster of every token."""
    _, height, width, _ = x.shape
    q = mixer.qkv(x)[..., :mixer.inner].view(1, height * width, mixer.num_heads, -1).transpose(1, 2)
    order = cluster_order(q, depth=mixer.cluster_depth)[0].cpu()  # (h, N)
    size = order.shape[1] // 2**mixer.cluster_depth
    s, b = (int(number) + 1 for number in path.split(".")[1:4:2])
    maps = []
    for head, tokens in enumerate(order):
        places = torch.empty_like(tokens)
        places[tokens] = torch.arange(len(tokens)) // size
        maps.append(TokenMap(where=f"stage {s}, block {b}, head {head + 1}", kind="clusters", places=places.view(height, width),
                             head=head))
    return maps
