"""scikit-learn's handwritten digits: 1,797 real 8 x 8 grey images, embedded, no download. The default data set."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from nasvit.data.base import KINDS, DataInfo, DataKind, Labelled, Source

NATURAL_SIZE = (16, 16)  # upsampled twofold: an 8 x 8 map leaves a hybrid network nothing to downsample


@KINDS.register("digits")
class Digits(DataKind):
    """The one specification is `digits`; a sixth of each class is validation, a sixth is test (1,199 / 299 / 299)."""

    accepts = "digits"

    def claims(self, spec: str) -> bool:
        return spec == "digits"

    def describe(self, spec: str) -> DataInfo:
        return DataInfo(kind="digits", natural_size=NATURAL_SIZE, in_channels=1, num_classes=10)

    def rooted(self, spec: str) -> str:
        return spec  # a folder of that name is another thing

    def read(self, spec: str, *, image_size: tuple[int, int], test: bool) -> Source:
        table = _table()
        images = (table[:, :64].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)[..., None]  # stored as 0..16
        pool = Labelled(images=images, labels=table[:, 64].astype(np.int64))
        return Source(parts={"all": pool}, class_names=tuple("0123456789"), flip=False, share=1 / 6)


def _table() -> np.ndarray:
    """(1797, 65): 64 values from 0 to 16 and the class, from the file that scikit-learn brings. Importing scikit-learn for it takes 0.7 s
    of every worker's start, so it is asked only where its file lies elsewhere."""
    package = find_spec("sklearn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz" if package and package.origin else None
    if file is not None and file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))
