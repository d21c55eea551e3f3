"""What every proxy must do: score an Arch within a budget, the same for the same seed."""

from __future__ import annotations

import math

import pytest

from nasvit.data import load
from nasvit.proxies import PROXIES


@pytest.mark.parametrize("name", PROXIES.names())
def test_a_score_is_finite_and_follows_from_its_arguments(name, tiny_arch) -> None:
    data = load("digits", seed=0, image_size=tiny_arch.image_size)
    first, again = (PROXIES[name](tiny_arch, budget=3, seed=0, data=data, device="cpu") for _ in range(2))
    assert math.isfinite(first.value) and first.seconds > 0
    assert (first.value, first.details) == (again.value, again.details)
