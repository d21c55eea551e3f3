from __future__ import annotations

import random

import pytest

from nasvit.cost import count
from nasvit.models import build
from nasvit.models.estimate import estimate
from nasvit.space import SearchSpace, shipped


@pytest.mark.parametrize("name", sorted(shipped()))
def test_the_estimate_is_near_the_count(name: str) -> None:
    space = SearchSpace.load(name)
    arch = space.sample(random.Random(0))
    macs, params = estimate(arch)
    counted = count(build(arch, seed=0), input_shape=(1, 3, *arch.image_size))
    assert macs == pytest.approx(counted.macs, rel=0.15) and params == pytest.approx(counted.params, rel=0.2)
