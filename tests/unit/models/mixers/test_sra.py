"""Spatial-reduction attention against its definition, written out token by token; its limits; what stays outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nasvit.arch import MixerSpec
from nasvit.errors import ArchError
from nasvit.models.mixers import make_mixer
from nasvit.models.mixers.sra import SRAMixer

DIM, HEADS = 8, 2


def made(grid: tuple[int, int], reduction: int, head_dim: int | None = None) -> SRAMixer:
    mixer = SRAMixer(DIM, resolution=grid, num_heads=HEADS, reduction=reduction, head_dim=head_dim).double().eval()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer


def defined(mixer: SRAMixer, x: Tensor) -> Tensor:
    """One image (H, W, C), token by token."""
    r, d = mixer.reduction, mixer.head_dim
    coarse = []
    for y in range(x.shape[0] // r):
        for column in range(x.shape[1] // r):
            patch = x[y * r:y * r + r, column * r:column * r + r]  # (r, r, C)
            value = torch.einsum("ochw,hwc->o", mixer.reduce.weight, patch) + mixer.reduce.bias
            normed = (value - value.mean()) / (value.var(unbiased=False) + 1e-5).sqrt()
            coarse.append(normed * mixer.reduced_norm.weight + mixer.reduced_norm.bias)
    keys, values = mixer.kv(torch.stack(coarse)).split(HEADS * d, dim=-1)
    queries = mixer.q(x)
    out = torch.zeros_like(queries)
    for head in range(HEADS):
        mine = slice(head * d, head * d + d)
        for y in range(x.shape[0]):
            for column in range(x.shape[1]):
                share = (keys[:, mine] @ queries[y, column, mine] / d**0.5).softmax(dim=0)
                out[y, column, mine] = share @ values[:, mine]
    return mixer.proj(out)


@pytest.mark.parametrize(("grid", "reduction"), [((4, 6), 2), ((6, 6), 3), ((5, 7), 2), ((4, 4), 4), ((7, 4), 3)])
@pytest.mark.parametrize("head_dim", [None, 3])
def test_is_attention_to_the_reduced_tokens(grid: tuple[int, int], reduction: int, head_dim: int | None) -> None:
    mixer, x = made(grid, reduction, head_dim), torch.randn(2, *grid, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), torch.stack([defined(mixer, image) for image in x]), rtol=1e-9, atol=1e-9)


def test_what_the_reduction_does_not_cover_asks_and_is_not_asked() -> None:
    mixer, x = made((5, 5), 2), torch.randn(1, 5, 5, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4] += 1
    before, after = mixer(x), mixer(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


@pytest.mark.parametrize("reduction", [0, 1, 5, 2.0, True])
def test_an_impossible_reduction_is_refused_by_name(reduction: object) -> None:
    with pytest.raises(ArchError, match=r"sra: reduction .* accepted: 2 to 4"):
        make_mixer(MixerSpec.of("sra", num_heads=HEADS, reduction=reduction), dim=DIM, resolution=(4, 6))


def test_no_reduction_is_possible_on_a_map_one_token_wide() -> None:
    with pytest.raises(ArchError, match="one token wide"):
        SRAMixer(DIM, resolution=(1, 4), num_heads=HEADS, reduction=2)
