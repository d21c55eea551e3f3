"""Networks of the search: `build(arch, seed=...)`, `Features(network)` as a backbone, and the registry of token mixers."""

from nasvit.models.build import build
from nasvit.models.features import Features
from nasvit.models.mixers import MIXERS
from nasvit.models.network import Network

__all__ = ["MIXERS", "Features", "Network", "build"]
