"""The small files of a run directory (experiment.yaml, env.json, summary.json), held against what each name can mean.

A run directory may come from somebody else: what the report computes with is a number, what it joins is a text, or the file is damaged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasvit.errors import ConfigError, RunError
from nasvit.yaml_file import parse_yaml

MAX_BYTES = 1 << 20
"""They are small; anything larger is not one of ours."""
NUMBERS = frozenset((
    "train", "val", "classes", "cores", "memory_gb", "threads", "reference_ms", "budget", "evaluated", "rejected", "failed", "wall_seconds",
    "train_seconds", "measure_seconds", "wait_seconds", "overhead_share", "workers", "sessions", "seconds", "networks", "steps", "share",
    "scored", "degenerate", "seed", "minutes"))
TEXTS = frozenset(("name", "cpu", "gpu", "runtime", "system", "fingerprint", "stopped_because", "sampler", "engine", "kind", "reason"))
LISTS = {"rungs": "numbers", "image_size": "numbers", "objectives": "texts", "drift": "texts"}
FREE = frozenset(("recipe", "siblings"))
"""Mappings whose keys are a user's own."""


def read_mapping(path: Path) -> Mapping[str, Any]:
    """A small YAML or JSON file as a mapping; an absent one (a run that has not come so far) is empty.

    Raises RunError naming file and key.
    """
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RunError(f"{path} is larger than {MAX_BYTES} bytes: not a file of a run directory")
        text = path.read_text(encoding="utf-8")
        data = parse_yaml(text, name=str(path))[0] if path.suffix == ".yaml" else json.loads(text)
        if data is None:
            return {}
        if not isinstance(data, dict):
            raise RunError(f"{path} is damaged: it must hold a mapping, not {type(data).__name__}")
        json.dumps(data, ensure_ascii=False, default=str).encode()  # half a sign cannot be written into a page
        wrong = fault(data)
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if wrong is not None:
        raise RunError(f"{path} is damaged: {wrong}")
    return data


def fault(data: Mapping[str, Any], *, where: str = "") -> str | None:
    """The first value that its name cannot have, in words; None where there is none."""
    for key, value in data.items():
        if value is None or key in FREE:
            continue
        if key == "devices" and isinstance(value, Mapping):  # names of the user's own, of texts or of what is known of each
            inner = (fault(facts, where=f"{where}devices.{name}.") for name, facts in value.items() if isinstance(facts, Mapping))
            found = next((wrong for wrong in inner if wrong is not None), None)
            if found is not None:
                return found
            continue
        wanted = "a number" if key in NUMBERS else "a text" if key in TEXTS else f"a list of {LISTS[key]}" if key in LISTS else ""
        if isinstance(value, Mapping):
            found = f"{where}{key} must be {wanted}, not a mapping" if wanted else fault(value, where=f"{where}{key}.")
            if found is not None:
                return found
        elif not _is(value, wanted):
            return f"{where}{key} must be {wanted}, not {str(value)[:80]!r}"
    return None


def _is(value: Any, wanted: str) -> bool:
    if wanted == "a number":
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is below nothing
    if wanted == "a text":
        return isinstance(value, str)
    if wanted:
        kind = (int, float) if wanted.endswith("numbers") else (str,)
        return isinstance(value, list) and all(isinstance(v, kind) and (isinstance(v, str) or math.isfinite(v)) for v in value)
    return True
