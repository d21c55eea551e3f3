"""Networks of the search: `build(arch, seed=...)`, and the registry of token mixers."""

from nasvit.models.build import build
from nasvit.models.mixers import MIXERS
from nasvit.models.network import Network

__all__ = ["MIXERS", "Network", "build"]
