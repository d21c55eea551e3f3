"""The contract of a token mixer. A mixer is one file in this folder plus one import line in `__init__`.

Legend: B images, H x W the grid, N = H*W tokens, n any number of tokens, C channels, h heads, d channels of a head, I = h*d inner
channels: C of them unless the heads have a width of their own (head_dim).
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from nasvit.arch import Grid, MixerSpec, Scalar, check_mixer
from nasvit.errors import ArchError
from nasvit.registry import Registry, subclass_of, unknown


class Mixer(nn.Module):
    """Maps (B, H, W, C) to the same shape, mixing tokens. Abstract; every mixer is final.

    A mixer's constructor is `SomeMixer(dim, *, resolution, **params)`: dim is C, resolution the grid (H, W), and the
    remaining keyword parameters are its schema (names of DESIGN section 8). It raises ArchError where it cannot work.
    """

    norm: ClassVar[str] = "layer"
    """What normalises the input of its residual branch: "layer", "batch" or "none"."""

    default_initialisation: ClassVar[bool] = False
    """Whether its linear layers keep PyTorch's initialisation, as a paper that writes them as 1x1 convolutions has it."""

    stochastic_depth: ClassVar[bool] = True
    """Whether its residual branch is dropped at random where training asks for that."""

    token_sets: ClassVar[bool] = False
    """Whether it can run on any set of tokens: then it has `forward_tokens`."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""

    def forward_tokens(self, x: Tensor, *, class_row: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, n, C) -> (B, n, C) and, if `class_row`, token 0's attention to tokens 1.., (B, n - 1), mean of the heads.

        Only for mixers with `token_sets`.
        """
        raise NotImplementedError(f"{type(self).__name__} works on the whole grid only")

    def tradeoff(self) -> Tensor | float | None:
        """The share of this layer's class attention in the running score, of every layer after the first; None: the network's rule."""
        return None

    @abstractmethod
    def macs(self) -> int:
        """Closed form of the multiply-adds of one image, used to check the tracer."""

    def product_macs(self) -> int:
        """Multiply-adds of one image done as elementwise products and sums, which no tracer can tell from gating."""
        return 0


MIXERS: Registry[type[Mixer]] = Registry("mixer", group="nasvit.mixers", check=subclass_of(Mixer))


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """The parameter schema of a mixer: its constructor's keywords after `dim` and `resolution`."""
    signature = inspect.signature(MIXERS[name].__init__)
    return {k: p for k, p in signature.parameters.items() if k not in ("self", "dim", "resolution")}


def make_mixer(spec: MixerSpec, *, dim: int, resolution: Grid, where: str = "mixer") -> Mixer:
    """The module of a MixerSpec. Raises ArchError for a parameter that is unknown, missing or impossible here."""
    schema = parameters_of(spec.name)
    given: dict[str, Scalar] = spec.kwargs
    for key in given:
        if key not in schema:
            raise ArchError(f"{where}: mixer {spec.name}: " + unknown("parameter", key, sorted(schema)))
    missing = [k for k, p in schema.items() if p.default is inspect.Parameter.empty and k not in given]
    if missing:
        raise ArchError(f"{where}: mixer {spec.name} needs {', '.join(missing)}")
    check_mixer(spec, embed_dim=dim, grid=resolution, where=where)
    return MIXERS[spec.name](dim, resolution=resolution, **given)  # type: ignore[call-arg]


def head_width(name: str, dim: int, *, resolution: Grid, num_heads: int, head_dim: int | None, **params: Scalar) -> int:
    """d of a mixer's heads: head_dim where it is given, else C / num_heads. Raises ArchError for parameters that are impossible here."""
    own: dict[str, Scalar] = {} if head_dim is None else {"head_dim": head_dim}
    check_mixer(MixerSpec.of(name, num_heads=num_heads, **own, **params), embed_dim=dim, grid=resolution, where="mixer")
    return dim // num_heads if head_dim is None else head_dim


def to_channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view: in memory it is channels_last, which convolutions like."""
    return x.permute(0, 3, 1, 2)


def to_channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def scaled_attention(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v over (.., h, n, d), by torch's fused kernel; scale defaults to d ** -0.5."""
    usual = q.shape[-1] ** -0.5
    if scale is not None and scale != usual and torch.compiler.is_exporting():  # beside a scale OpenVINO's fusion with masks goes wrong
        q, scale = q * (scale / usual), usual
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=None if scale == usual else scale)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `x`, its leading axes flattened, by index: (.., d) and (..) -> (*index.shape, d).

    index_select, because it takes 0.1 to 0.25 of the time of gather on a CPU, and 0.8 with its backward.
    """
    return x.reshape(-1, x.shape[-1]).index_select(0, index.flatten()).view(*index.shape, x.shape[-1])
