"""Images in memory, one file per data set kind. A new one is one file and one line here."""

from nasvit.data import digits, imagefolder, npz, torchvision_sets  # noqa: F401 (importing registers)
from nasvit.data.base import KINDS, DataInfo, DataKind, DataSet, Images
from nasvit.data.loading import describe, load, load_test, rooted
from nasvit.data.packing import packed, unpacked

__all__ = ["KINDS", "DataInfo", "DataKind", "DataSet", "Images", "describe", "load", "load_test", "packed", "rooted", "unpacked"]
