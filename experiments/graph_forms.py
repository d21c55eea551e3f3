"""What the rewriting of graphs is worth in ONNX Runtime: the same network's files with and without it, calls by turns.

    python experiments/graph_forms.py --spaces hybrid_tiny hybrid_small catm_only slide_only --samples 4 --models casvit_xs

`convolved`: linear layers beside convolutions as 1x1 convolutions. `at once`: slide attention with its taps in one product. Processor
time, one thread.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from interleaved import race
from torch import Tensor, nn

from nasvit.devices.form import inference_form
from nasvit.models.build import build
from nasvit.models.mixers import slide
from nasvit.named import make_named
from nasvit.runtimes.onnx_file import write_onnx
from nasvit.space import SearchSpace

ROUNDS, ROUND_MS = 15, 20.0


@contextmanager
def taps(*, at_once: bool) -> Iterator[None]:
    """Slide attention of graphs as it is, or tap by tap."""
    before = slide.AT_ONCE
    slide.AT_ONCE = before if at_once else 0
    try:
        yield
    finally:
        slide.AT_ONCE = before


def session(module: nn.Module, image: Tensor, path: Path, *, convolve: bool, at_once: bool) -> Any:
    """The module's file, opened with one thread."""
    with taps(at_once=at_once):
        write_onnx(module, image, path, convolve=convolve)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def row(name: str, network: nn.Module, shape: tuple[int, ...]) -> str:
    """One line: milliseconds without both, and the ratio to it of each and of both."""
    form, image = inference_form(network.eval()), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    feed, cells = {"image": image.numpy()}, []
    with tempfile.TemporaryDirectory() as folder:
        opened = partial(session, form, image, Path(folder) / "model.onnx")
        plain = opened(convolve=False, at_once=False)
        for convolve, at_once in ((True, False), (False, True), (True, True)):
            run = partial(opened(convolve=convolve, at_once=at_once).run, None, feed)
            once = race(run, partial(plain.run, None, feed), rounds=3, device="cpu")
            calls = max(1, round(ROUND_MS / max(once.reference, 1e-3)))
            timing = race(lambda r=run, n=calls: [r() for _ in range(n)], lambda n=calls: [plain.run(None, feed) for _ in range(n)],
                          rounds=ROUNDS, device="cpu")
            cells.append(f"{timing.ratio:.2f}")
    return f"| {name} | {timing.reference / calls:.3f} | {' | '.join(cells)} |"


def networks(spaces: list[str], models: list[str], *, samples: int, seed: int) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Random networks of the spaces, and named ones at 224 px."""
    for name in spaces:
        space, rng = SearchSpace.load(name), random.Random(seed)
        for number in range(samples):
            arch = space.sample(rng)
            yield f"{name} {number}", build(arch, seed=0), (1, arch.in_channels, *arch.image_size)
    for name in models:
        yield name, make_named(name, image_size=(224, 224), in_channels=3, num_classes=1000, seed=0), (1, 3, 224, 224)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="*", default=["hybrid_tiny", "hybrid_small", "catm_only", "slide_only"])
    parser.add_argument("--models", nargs="*", default=["casvit_xs"])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"onnxruntime {onnxruntime.__version__}\n\n| network | ms | convolved | at once | both |\n|---|---|---|---|---|")
    for name, network, shape in networks(given.spaces, given.models, samples=given.samples, seed=given.seed):
        print(row(name, network, shape), flush=True)


if __name__ == "__main__":
    main()
