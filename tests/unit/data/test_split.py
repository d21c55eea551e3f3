"""Splits and resizing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasvit.data.split import resize, stratified_split
from nasvit.errors import DataError


@given(counts=st.lists(st.integers(2, 40), min_size=1, max_size=5), seed=st.integers(0, 5), share=st.sampled_from([1 / 6, 0.2, 0.4]))
def test_parts_are_disjoint_complete_and_near_their_shares(counts: list[int], seed: int, share: float) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = stratified_split(labels, shares=(share, share), seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for label, count in enumerate(counts):
        rest, val, test = (int((labels[part] == label).sum()) for part in parts)
        assert rest >= 1 and val >= 1 and val <= max(1, round(share * count)) and test <= round(share * count)


def test_a_class_of_one_image_is_refused() -> None:
    with pytest.raises(DataError, match="class 1 has 1 image"):
        stratified_split(np.array([0, 0, 1]), shares=(0.2,), seed=0)


def test_the_seed_decides() -> None:
    labels = np.repeat([0, 1], 50)
    first, again, other = (stratified_split(labels, shares=(0.2,), seed=s)[1].tolist() for s in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (5, 9), (40, 3)])
def test_resizing_keeps_a_flat_image_and_gives_the_size(size: tuple[int, int]) -> None:
    out = resize(torch.full((3, 2, 8, 12), 77, dtype=torch.uint8), size)
    assert out.shape == (3, 2, *size) and out.dtype == torch.uint8 and bool((out == 77).all())


def test_resizing_crops_the_longer_side_at_the_centre() -> None:
    image = torch.zeros(1, 1, 8, 24, dtype=torch.uint8)
    image[..., 8:16] = 255
    assert resize(image, (8, 8)).min() > 200


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    stripes = ((torch.arange(32) % 4 == 0) * 255).to(torch.uint8).expand(1, 1, 32, 32)
    assert (resize(stripes, (8, 8))[..., 1:-1].int() - 64).abs().max() < 20


def test_edges_do_not_wrap_around_the_range_of_a_byte() -> None:
    step = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    step[..., 4:] = 255
    row = resize(step, (32, 32))[0, 0, 16].int()
    assert row[:12].max() < 40 and row[20:].min() > 215


def test_large_arrays_are_resized_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (7, 3, 9, 9), dtype=torch.uint8)
    whole = resize(images, (16, 16))
    monkeypatch.setattr("nasvit.data.split._CHUNK_BYTES", 10_000)
    assert torch.equal(resize(images, (16, 16)), whole)
