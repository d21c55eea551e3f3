"""Whether a runtime computes what eager computes. Where a network selects or clusters tokens, the selections are compared first.

A token whose score lies within rounding of the cut may fall on either side, and everything behind it then differs by as much as the
two tokens do. So the selections of both sides are made outputs of the network and counted; the values are held to the bound on
the inputs whose selections are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nasvit.models import tokens
from nasvit.models.mixers import fsla
from nasvit.runtimes.base import FileRuntime, Runtime

BOUND = 1e-4
"""The largest relative difference of two float32 runtimes: of an output's largest deviation to its largest value."""

AT_ONCE = 200
"""Images that one process of a file runtime runs: many slow ones would outlast its time limit, many large ones fill the disk."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A runtime against eager on `inputs` random inputs.

    error: the largest relative difference among the inputs whose selections agree; NaN where there is none such.
    unstable: the share of inputs with any token selected or clustered otherwise. flipped: the share of such tokens, of all selected
    and clustered ones; None where the network selects nothing. worst: the largest relative difference of all inputs.
    """

    error: float
    inputs: int
    unstable: float
    flipped: float | None
    worst: float

    @property
    def agrees(self) -> bool:
        """Whether the error is within BOUND on at least one input, and no other input passes it for any reason but its selection."""
        return self.error <= BOUND


def compare(module: nn.Module, *, runtime: Runtime, shape: tuple[int, ...], inputs: int, seed: int, threads: int = 1,
            ready: Callable[[Sequence[Tensor]], list[list[Array]]] | None = None) -> Agreement:
    """Run a module in eval mode and its prepared or exported form on normal inputs of this shape (B, C, H, W).

    ready: the outputs of what has been prepared of the module already, asked where it selects nothing. File runtimes run in a process
    of their own. Raises what `prepare` and `export` raise.
    """
    generator = torch.Generator().manual_seed(seed)
    place = next((p.device for p in module.parameters()), torch.device("cpu"))
    images = [torch.randn(shape, generator=generator).to(place) for _ in range(inputs)]
    telling = Telling(module).eval()
    with torch.inference_mode():
        truth = [[t.cpu().numpy() for t in telling(image)] for image in images]
    cuts = telling.cuts
    if ready is not None and not cuts:
        found = ready(images)
    else:
        found = outputs_of(telling if cuts else module, runtime=runtime, images=images, threads=threads)
    values = len(truth[0]) - len(cuts)
    errors, flips, selected = [], [], 0
    for ours, theirs in zip(truth, found, strict=True):
        errors.append(max(difference(a, b) for a, b in zip(theirs[:values], ours[:values], strict=True)))
        marks = [(_sides(a, cut), _sides(b, cut)) for a, b, cut in zip(ours[values:], theirs[values:], cuts, strict=True)]
        flips.append(sum(int((a != b).sum()) for a, b in marks))
        selected += sum(a.size for a, _ in marks)
    stable = [error for error, flipped in zip(errors, flips, strict=True) if not flipped]
    return Agreement(error=max(stable, default=math.nan), inputs=inputs, unstable=1 - len(stable) / inputs,
                     flipped=sum(flips) / selected if selected else None, worst=max(errors))


def outputs_of(module: nn.Module, *, runtime: Runtime, images: Sequence[Tensor], threads: int) -> list[list[Array]]:
    """The outputs of a module in a runtime for each image, all of one shape."""
    if isinstance(runtime, FileRuntime):
        with TemporaryDirectory(prefix="nasvit-parity-") as folder:
            path = runtime.export(module, images[0], Path(folder) / "model")
            arrays = [image.cpu().numpy() for image in images]
            return [outputs for first in range(0, len(arrays), AT_ONCE)
                    for outputs in runtime.run_file(path, arrays[first:first + AT_ONCE], threads=threads)]
    call = runtime.prepare(module, images[0])
    with torch.inference_mode():
        return [[t.cpu().numpy().copy() for t in _tensors(call(image))] for image in images]


def difference(found: Array, truth: Array) -> float:
    """The largest deviation over the largest true value; infinite where shapes differ or a value is not finite."""
    if found.shape != truth.shape or not np.isfinite(found).all():
        return math.inf
    scale = float(np.abs(truth).max())
    return float(np.abs(found.astype(np.float64) - truth).max()) / (scale or 1.0)


@dataclass(frozen=True, slots=True)
class Cut:
    """What a recorded selection is. pieces 0: the raster positions that were kept, of `tokens`; else an order, cut into equal pieces."""

    tokens: int
    pieces: int


class Telling(nn.Module):
    """A network whose selections are outputs, too, after its own. `cuts` says what they are once it has run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.cuts: list[Cut] = []

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        made: list[Tensor] = []
        cuts: list[Cut] = []

        def tell(selection: Tensor, cut: Cut) -> None:
            made.append(selection)
            cuts.append(cut)

        with _told(tell):
            out = self.module(image)
        self.cuts[:] = cuts
        return (*_tensors(out), *made)


@contextmanager
def _told(tell: Callable[[Tensor, Cut], None]) -> Iterator[None]:
    """While inside, every token selection and every clustering is told, in this order."""
    select, order = tokens.select, fsla.cluster_order

    def telling_select(score: Tensor, *, keep: int, representative: bool = True) -> tokens.Selection:
        selection = select(score, keep=keep, representative=representative)
        tell(selection.kept.clone(), Cut(score.shape[1], 0))
        return selection

    def telling_order(q: Tensor, *, depth: int, **how: Any) -> Tensor:
        found = order(q, depth=depth, **how)
        if depth:
            tell(found.clone(), Cut(q.shape[-2], 2**depth))
        return found

    tokens.select, fsla.cluster_order = telling_select, telling_order
    try:
        yield
    finally:
        tokens.select, fsla.cluster_order = select, order


def _sides(selection: Array, cut: Cut) -> Array:
    """For each token which side of the cut it is on: (.., N) of 0 and 1 for a selection, of the cluster's number for a clustering."""
    chosen = selection.astype(np.int64)
    sides = np.zeros((*chosen.shape[:-1], cut.tokens), dtype=np.int64)
    value: Any = 1 if cut.pieces == 0 else np.broadcast_to(np.arange(cut.tokens) * cut.pieces // cut.tokens, chosen.shape)
    np.put_along_axis(sides, chosen, value, axis=-1)
    return sides


def _tensors(out: object) -> tuple[Tensor, ...]:
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)  # type: ignore[return-value]
