from __future__ import annotations

import random

import pytest

from nasvit.cost import count
from nasvit.errors import ArchError
from nasvit.models import build
from nasvit.models.estimate import estimate
from nasvit.models.patch_embed import make_downsample
from nasvit.space import SearchSpace, shipped


@pytest.mark.parametrize("name", sorted(shipped()))
def test_the_estimate_is_near_the_count(name: str) -> None:
    space = SearchSpace.load(name)
    arch = space.sample(random.Random(0))
    macs, params = estimate(arch)
    counted = count(build(arch, seed=0), input_shape=(1, 3, *arch.image_size))
    assert macs == pytest.approx(counted.macs, rel=0.15) and params == pytest.approx(counted.params, rel=0.2)


def test_a_downsampling_it_does_not_know_is_refused_and_not_taken_for_a_convolution() -> None:
    for kind in ("levit", "convv"):
        with pytest.raises(ArchError, match=f"{kind!r} is not made here"):
            make_downsample(kind, dim=8, out_dim=16)
