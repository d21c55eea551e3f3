"""What another precision costs in accuracy: measured on images, in the runtime itself, one image at a time as it is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasvit.errors import ConfigError
from nasvit.runtimes.base import Runtime
from nasvit.runtimes.parity import Array, outputs_of

MOST = 1000
"""Images at most, evenly drawn: each is run alone, as it is timed, and both sides see the same ones."""


def spread(count: int) -> Tensor:
    """(n,) int64: at most MOST of `count` indices, evenly over all of them."""
    return torch.arange(count) if count <= MOST else torch.linspace(0, count - 1, MOST).long()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeAccuracy:
    """Top-1 accuracy (0..1) of one network on the same images: by eager in float32, and in the runtime.

    same: the share of images that both put into the same class.
    """

    eager: float
    runtime: float
    same: float
    images: int


def quantised_accuracy(module: nn.Module, *, runtime: Runtime, images: Tensor, labels: Tensor, threads: int = 1,
                       ready: Callable[[Sequence[Tensor]], list[list[Array]]] | None = None) -> RuntimeAccuracy:
    """Hold a trained module's classes in a runtime, such as onnxruntime with precision=int8, against eager's.

    images: (N, C, H, W), normalised. labels: (N,). Images are run one by one: a dynamic scale is that of what is run together.
    ready: the outputs of what has been exported of the module already.
    Raises ConfigError for no images, and what `prepare` and `export` raise.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ConfigError(f"accuracy needs images with a label each, not {len(images)} images and {len(labels)} labels")
    ours, theirs = both_classes(module, runtime=runtime, images=images, threads=threads, ready=ready)
    truth = labels.cpu()

    def share(hits: Tensor) -> float:
        return float(hits.double().mean())

    return RuntimeAccuracy(eager=share(ours == truth), runtime=share(theirs == truth), same=share(ours == theirs), images=len(images))


def both_classes(module: nn.Module, *, runtime: Runtime, images: Tensor, threads: int = 1,
                 ready: Callable[[Sequence[Tensor]], list[list[Array]]] | None = None) -> tuple[Tensor, Tensor]:
    """(N,) classes of the images by eager and by the runtime, one image at a time; arguments as of `quantised_accuracy`."""
    singles = list(images.split(1))
    with torch.inference_mode():
        ours = torch.cat([module(image) for image in singles]).argmax(dim=1).cpu()
    found = ready(singles) if ready is not None else outputs_of(module, runtime=runtime, images=singles, threads=threads)
    return ours, torch.tensor([int(outputs[0].argmax()) for outputs in found])
