"""scikit-learn's handwritten digits: 1,797 real 8 x 8 grey images, embedded, no download. The default data set."""

from __future__ import annotations

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

    def read(self, spec: str, *, image_size: tuple[int, int], test: bool) -> Source:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = (bunch.images * (255 / 16)).round().astype(np.uint8)[..., None]  # stored as 0..16
        pool = Labelled(images=images, labels=bunch.target.astype(np.int64))
        return Source(parts={"all": pool}, class_names=tuple("0123456789"), flip=False, share=1 / 6)
