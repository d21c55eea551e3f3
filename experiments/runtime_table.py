"""Every runtime against eager: milliseconds, parity and file size, for one model of each family and three of timm.

    python experiments/runtime_table.py --markdown reports/published/runtimes.md --cells runtimes.json

    python experiments/runtime_table.py --cells runtimes.json --exports FOLDER            (all but the times needs no quiet machine)
    python experiments/runtime_table.py --cells runtimes.json --exports FOLDER --times     (the times of those cells anew)

ExecuTorch and LiteRT are in the table where NASVIT_EXECUTORCH_PYTHON and NASVIT_LITERT_PYTHON name their environments. Cells that
the JSON file of --cells holds are not measured again: a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__" and sys.argv[1:2] == ["child"]:  # in the runtime's own environment, which may have no nasvit
    import importlib.util

    import numpy as np

    place = importlib.util.spec_from_file_location("sessions", sys.argv[2])
    sessions = importlib.util.module_from_spec(place)
    place.loader.exec_module(sessions)
    request, replies = json.loads(sys.argv[3]), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints goes elsewhere
    opened = sessions.open_session(request["runtime"], request["path"], threads=1, settings=request["settings"])
    image = np.load(request["image"])
    opened.run([image])
    print(json.dumps({"version": opened.version}), file=replies, flush=True)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        opened.run([image])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps({"cpu_ms": 1e3 * cpu, "wall_ms": 1e3 * wall}), file=replies, flush=True)
    sys.exit(0)

import numpy as np
import torch
from torch import Tensor, nn

from nasvit.devices.form import inference_form
from nasvit.errors import MeasurementError, NasvitError
from nasvit.named import make_named
from nasvit.runtimes import FileRuntime, Runtime, make_runtime
from nasvit.runtimes import sessions as sessions_module
from nasvit.runtimes.parity import BOUND, compare

MODELS = ("slide_swin_tiny", "boat_swin_tiny", "casvit_xs", "evo_deit_tiny", "deit_tiny_patch16_224", "levit_128s",
          "swin_tiny_patch4_window7_224")
RUNTIMES = ("onnxruntime", "openvino", "litert", "executorch", "aotinductor", "compile", "onnxruntime?precision=int8",
            "openvino?precision=int8")
PAIRS, LEAST_PAIRS, SECONDS, WARM_UP = 40, 10, 15.0, 3
IMAGES = 3

Cell = dict[str, Any]


def parsed(text: str) -> Runtime:
    """"onnxruntime?precision=int8"."""
    name, _, query = text.partition("?")
    return make_runtime(name, **dict(pair.split("=") for pair in query.split("&") if pair))


def measured(name: str, text: str, *, exports: Path | None, known: Cell | None, seconds: float) -> Cell:
    """One cell: parity on random inputs, size of the file, and the ratio of CPU time to eager's, call by call in turns.

    exports: keeps exported files. known: a cell whose times alone are made anew.
    """
    runtime = parsed(text)
    reason = runtime.missing()
    if reason is not None:
        return {"failed": reason}
    form = inference_form(make_named(name, image_size=(224, 224), in_channels=3, num_classes=1000, seed=0))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    begun = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) if exports is None else exports / f"{name} {text}".translate(str.maketrans(" ?=", "---"))
            cell, ready = _timed(form, image, runtime=runtime, folder=place, seconds=seconds)
            if known is not None:
                return {**known, **cell}
            found = compare(form, runtime=runtime, shape=(1, 3, 224, 224), inputs=IMAGES, seed=0, ready=ready)
    except NasvitError as error:
        return {"failed": str(error)}
    return {**cell, "error": found.error, "worst": found.worst, "unstable": found.unstable, "flipped": found.flipped,
            "version": runtime.version(), "seconds": time.perf_counter() - begun}


def _timed(form: nn.Module, image: Tensor, *, runtime: Runtime, folder: Path,
           seconds: float) -> tuple[Cell, Callable[[Sequence[Tensor]], Any]]:
    """The cell's times and size, and how to get outputs of what was prepared."""
    eager = _clock(lambda: form(image))
    if not isinstance(runtime, FileRuntime):
        call = runtime.prepare(form, image)

        def here(images: Sequence[Tensor]) -> list[list[np.ndarray]]:
            with torch.inference_mode():
                return [[torch.as_tensor(call(one)).numpy().copy()] for one in images]

        return _interleaved(eager, _clock(lambda: call(image)), seconds=seconds), here
    path = folder / f"model{runtime.suffix}"
    if not (folder / "done").exists():
        runtime.export(form, image, path)
        (folder / "done").touch()
    size = sum(p.stat().st_size for p in folder.iterdir() if p.stem == "model")
    np.save(folder / "image.npy", image.numpy())
    request = {"runtime": runtime.name, "path": str(path), "settings": runtime.settings, "image": str(folder / "image.npy")}
    command = [runtime.interpreter, "-I", __file__, "child", sessions_module.__file__, json.dumps(request)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env=environment) as child:
        assert child.stdin is not None and child.stdout is not None

        def other() -> tuple[float, float]:
            child.stdin.write("\n")
            child.stdin.flush()
            reply = json.loads(child.stdout.readline())
            return reply["cpu_ms"], reply["wall_ms"]

        if not child.stdout.readline():
            raise MeasurementError(f"{runtime.name} took the network, and its process ended with {child.wait()} when it was run")
        cell = _interleaved(eager, other, seconds=seconds)
        child.stdin.close()
    return {**cell, "file_mb": size / 1e6}, lambda images: runtime.run_file(path, [one.numpy() for one in images], threads=1)


def _clock(call: Callable[[], object]) -> Callable[[], tuple[float, float]]:
    def timed() -> tuple[float, float]:
        with torch.inference_mode():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)

    return timed


def _interleaved(eager: Callable[[], tuple[float, float]], other: Callable[[], tuple[float, float]], *, seconds: float) -> Cell:
    for _ in range(WARM_UP):
        eager(), other()
    pairs, begun = [], time.perf_counter()
    while len(pairs) < LEAST_PAIRS or (len(pairs) < PAIRS and time.perf_counter() - begun < seconds):
        pairs.append((eager(), other()))
    ratios = sorted(theirs[0] / ours[0] for ours, theirs in pairs)
    eager_ms, other_ms = (median(pair[side][0] for pair in pairs) for side in (0, 1))
    cores = median(theirs[0] / theirs[1] for _, theirs in pairs)  # above 1: more threads than were asked for
    return {"eager_ms": eager_ms, "ms": other_ms, "ratio": other_ms / eager_ms, "low": ratios[len(ratios) // 4],
            "high": ratios[-1 - len(ratios) // 4], "cores": cores, "pairs": len(pairs)}


def table(cells: dict[str, Cell], *, note: str) -> str:
    """Markdown: one table of ratios, one of parity and size."""
    names = [m for m in MODELS if any(key.startswith(f"{m} ") for key in cells)]
    short = [name.replace("_patch16_224", "").replace("_patch4_window7_224", "") for name in names]
    head = f"| runtime | {' | '.join(short)} |\n|---|{'---|' * len(names)}\n"

    def rows(make: Callable[[Cell], str]) -> str:
        return head + "".join(f"| {text.replace('?precision=', ', ')} | "
                              + " | ".join(make(cells[f"{m} {text}"]) if f"{m} {text}" in cells else "not measured" for m in names)
                              + " |\n" for text in RUNTIMES)

    def ratio(cell: Cell) -> str:
        if "failed" in cell:
            return "cannot"
        more = f", {cell['cores']:.1f} cores" if cell["cores"] > 1.1 else ""
        return f"{cell['ratio']:.2f} ({cell['low']:.2f} to {cell['high']:.2f}){more}"

    def parity(cell: Cell) -> str:
        if "failed" in cell:
            return "cannot"
        flips = f", {cell['flipped']:.2%} of tokens flipped" if cell["flipped"] else ""
        shown = cell["error"] if np.isfinite(cell["error"]) else cell["worst"]
        return f"{shown:.0e}{flips}"

    def size(cell: Cell) -> str:
        return "cannot" if "failed" in cell else f"{cell['file_mb']:.1f}" if "file_mb" in cell else "no file"

    eager = "| eager, ms | " + " | ".join(
        f"{median(c['eager_ms'] for k, c in cells.items() if k.startswith(f'{m} ') and 'eager_ms' in c):.1f}" for m in names) + " |\n"
    reasons = "".join(f"* {key}: {cell['failed']}\n" for key, cell in cells.items() if "failed" in cell)
    versions = sorted({cell["version"] for cell in cells.values() if "version" in cell})
    return (f"{', '.join(versions)}. Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.\n\n"
            + (f"**{note}**\n\n" if note else "")
            + "## CPU milliseconds, as a ratio to eager\n\nMedian, and the quartiles of the pairs. Below 1 is faster than eager.\n\n"
            + rows(ratio) + eager
            + f"\n## Parity with eager\n\nLargest relative difference on {IMAGES} random inputs whose token selections agree (float32: at "
            f"most {BOUND:g}); where none agrees, of all. int8 is another function: experiments/int8_accuracy.py "
            "measures its accuracy on trained networks.\n\n"
            + rows(parity) + "\n## File, MB\n\n" + rows(size) + ("\n## What a runtime cannot take\n\n" + reasons if reasons else ""))


def main() -> None:
    """Measure what is not yet measured, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--runtimes", nargs="*", default=RUNTIMES)
    parser.add_argument("--cells", type=Path, help="a JSON file that keeps what was measured")
    parser.add_argument("--exports", type=Path, help="a folder that keeps the exported files")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timing for a cell, at most")
    parser.add_argument("--times", action="store_true", help="only times, of the cells that there are")
    parser.add_argument("--note", default="", help="a sentence on the machine's state, shown above the table")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cells: dict[str, Cell] = json.loads(given.cells.read_text()) if given.cells and given.cells.exists() else {}
    for text in given.runtimes:
        for name in given.models:
            known = cells.get(f"{name} {text}")
            if (known is None or "failed" in known) if given.times else known is not None:
                continue
            cells[f"{name} {text}"] = measured(name, text, exports=given.exports, known=known, seconds=given.seconds)
            print(name, text, cells[f"{name} {text}"], flush=True)
            if given.cells:
                given.cells.write_text(json.dumps(cells, indent=1))
    body = ("# Runtimes\n\n`python experiments/runtime_table.py --markdown reports/published/runtimes.md`\n\nOne thread, batch 1, 224 px, "
            "untrained weights with nothing at zero, every network in its inference form. Calls take turns with eager's on the same "
            "machine; figures are the process's CPU time, and differences under 10 % mean nothing. " + table(cells, note=given.note))
    if given.markdown:
        given.markdown.write_text(body, encoding="utf-8")
    else:
        print(body)


if __name__ == "__main__":
    main()
