"""Networks in another precision than they were trained in: what a run says of it in `precision.json`, and how its columns are called.

A search trains and ranks in float32. A device such as cpu/onnxruntime?precision=int8 times another function, with an accuracy of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FILE = "precision.json"
FLOAT32 = "fp32"


def precisions(env: Mapping[str, Any]) -> dict[str, str]:
    """From a latency's name (latency_ms, latency_ms@NAME) to the precision of its device, where that is not float32; env: of env.json."""
    others = env.get("devices")
    about = {"latency_ms": env.get("device"),
             **{f"latency_ms@{name}": one for name, one in (others.items() if isinstance(others, Mapping) else ())}}
    found = {}
    for name, one in about.items():
        settings = one.get("settings") if isinstance(one, Mapping) else None
        precision = settings.get("precision") if isinstance(settings, Mapping) else None
        if isinstance(precision, str) and precision != FLOAT32 and re.fullmatch(r"[a-z0-9]{1,16}", precision):
            found[name] = precision
    return found


def column(latency: str, precision: str) -> str:
    """`accuracy_int8`; `accuracy_int8@NAME` of a further device."""
    return latency.replace("latency_ms", f"accuracy_{precision}", 1)
