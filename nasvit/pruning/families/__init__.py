"""The families of models that can be pruned; importing the package registers them."""

from nasvit.pruning.families import archs, beit, cait, eva, levit, pvt, swin, vit  # noqa: F401 (importing registers)
from nasvit.pruning.families.base import FAMILIES, BlockLayout, Family, Layout, UnsupportedModelError

__all__ = ["FAMILIES", "BlockLayout", "Family", "Layout", "UnsupportedModelError"]
