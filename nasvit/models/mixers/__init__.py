"""Token mixers, one file each. A new one is one file and one line here."""

from nasvit.models.mixers import catm, cross, fsla, global_, integration, levit, slide, sra, window  # noqa: F401 (importing registers)
from nasvit.models.mixers.base import MIXERS, Mixer, make_mixer, parameters_of

__all__ = ["MIXERS", "Mixer", "make_mixer", "parameters_of"]
