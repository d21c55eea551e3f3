"""Every block of every shipped space in a runtime: each mixer, each value of its parameters, each mixer at each keep ratio.

    python experiments/runtime_blocks.py --runtimes onnxruntime openvino

One network a space holds them all, at its least width and, with --small, at the smallest image it allows.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch

from nasvit.devices.form import inference_form
from nasvit.errors import NasvitError
from nasvit.models.build import build
from nasvit.runtimes import make_runtime
from nasvit.runtimes.parity import BOUND, compare
from nasvit.runtimes.support import covering
from nasvit.space import SearchSpace, shipped

INPUTS = 4


def row(name: str, runtime: str, *, whole: bool, small: bool) -> str:
    """One line of the table."""
    space = SearchSpace.load(name)
    if small:
        least = space.file.sizes[0]
        space = SearchSpace.load(name, image_size=(least, least))
    arch, begun = covering(space, whole=whole), time.perf_counter()
    blocks, size = sum(len(stage.blocks) for stage in arch.stages), "x".join(map(str, arch.image_size))
    try:
        found = compare(inference_form(build(arch, seed=0)), runtime=make_runtime(runtime), shape=(1, arch.in_channels, *arch.image_size),
                        inputs=INPUTS, seed=0)
    except NasvitError as error:
        return f"| {name} | {runtime} | {size} | {blocks} | cannot: {error} | | | |"
    flips = "none to flip" if found.flipped is None else f"{found.flipped:.3%}"
    return (f"| {name} | {runtime} | {size} | {blocks} | {'yes' if found.agrees else 'no'} | {found.error:.1e} | {flips} | "
            f"{time.perf_counter() - begun:.0f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="*", default=sorted(shipped()))
    parser.add_argument("--runtimes", nargs="*", default=["onnxruntime", "openvino"])
    parser.add_argument("--few", action="store_true", help="what one stage shows is not shown again by the next; keep ratios take turns")
    parser.add_argument("--small", action="store_true", help="at the smallest image of each space")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"Bound {BOUND:g}, {INPUTS} random inputs.\n")
    print("| space | runtime | image | blocks | agrees | difference | tokens flipped | seconds |\n|---|---|---|---|---|---|---|---|")
    for name in given.spaces:
        for runtime in given.runtimes:
            print(row(name, runtime, whole=not given.few, small=given.small), flush=True)


if __name__ == "__main__":
    main()
