"""Makes torchvision (and timm, which imports it) importable beside a CPU build of torch.

torchvision's wheel from the package index is a CUDA build. Beside a CPU torch its C++ operators do not load, and
`import torchvision` dies with "operator torchvision::nms does not exist" while registering a fake kernel for it.
Declaring the two missing schemas first cures it; nasvit calls neither operator. Every file of nasvit that imports
torchvision or timm calls `ensure()` first.
"""

from __future__ import annotations

from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: Any = None  # torch drops the schemas when the library object dies


def ensure() -> None:
    """Import torchvision, declaring the missing operator schemas only where the plain import fails."""
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _library is not None:
            raise
        import sys

        import torch

        for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
            del sys.modules[name]  # half-imported
        _library = torch.library.Library("torchvision", "DEF")
        for name, schema in _SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                _library.define(schema)
        import torchvision  # noqa: F401
