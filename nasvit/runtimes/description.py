"""What the user of an exported file must know, inside the file: labels, preprocessing, origin. `predict.py` reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nasvit
from nasvit.runtimes.base import FileRuntime
from nasvit.whole_file import whole


def description(runtime: FileRuntime, *, shape: tuple[int, int, int], labels: Sequence[str], mean: Sequence[float], std: Sequence[float],
                network: str, dynamic_batch: bool = False, **origin: Any) -> dict[str, Any]:
    """JSON-able. shape: (C, H, W) of an image; mean, std: of each channel, of pixels from 0 to 1; origin: whatever else is known."""
    channels, *size = shape
    return {"labels": list(labels), "image_size": size, "channels": channels, "mean": list(mean), "std": list(std),
            "scale": "pixels / 255, then (x - mean) / std", "interpolation": "bicubic", "crop": "resized to cover, centre",
            "input": "float32 (batch, channels, height, width)", "output": "logits (batch, labels)",
            "batch": "any" if dynamic_batch else 1, "network": network, **origin, "runtime": runtime.name,
            "runtime_version": runtime.version(), "settings": dict(runtime.settings), "nasvit": nasvit.__version__}


def attach(file: Path, about: dict[str, Any]) -> None:
    """The description inside an ONNX file; beside any other, as FILE.json. Raises OSError where it cannot be written."""
    if file.suffix != ".onnx":
        with whole(file.with_name(file.name + ".json")) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        return
    import onnx

    model = onnx.load(str(file))
    props = {"nasvit": json.dumps(about), **{key: json.dumps(about[key]) for key in ("labels", "mean", "std", "image_size")}}
    onnx.helper.set_model_props(model, props)
    with whole(file) as temporary:
        onnx.save(model, str(temporary))
