"""Cross-shaped windows by hand: which tokens see each other, for maps that stripes divide and maps that they do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nasvit.errors import ArchError
from nasvit.models.mixers.cross import CrossWindowMixer


def mixer(dim: int = 16, *, grid: tuple[int, int] = (6, 6), heads: int = 4, split: int = 2,
          head_dim: int | None = None) -> CrossWindowMixer:
    return CrossWindowMixer(dim, resolution=grid, num_heads=heads, split_size=split, head_dim=head_dim).double().eval()


def reached(module: CrossWindowMixer, y: int, x: int) -> list[Tensor]:
    """For each branch, the (H, W) map of input tokens that its output at (y, x) depends on."""
    image = torch.randn(1, *module.resolution, module.dim, dtype=torch.float64, requires_grad=True)
    qkv = module.qkv(image).unflatten(-1, (3, module.dim))
    maps = []
    for branch, part in zip(module.branches, qkv.chunk(len(module.branches), dim=-1), strict=True):
        (gradient,) = torch.autograd.grad(branch(part)[0, y, x].sum(), image, retain_graph=True)
        maps.append(gradient[0].abs().sum(dim=-1) > 0)
    return maps


def by_hand(module: CrossWindowMixer, image: Tensor) -> Tensor:
    """(H, W, C) -> (H, W, C), stripe by stripe and head by head."""
    height, width = module.resolution
    head_dim = module.inner // module.heads
    out = image.new_zeros(height, width, module.inner)
    parts = module.qkv(image).unflatten(-1, (3, module.inner)).chunk(len(module.branches), dim=-1)
    for i, (branch, part) in enumerate(zip(module.branches, parts, strict=True)):
        first = i * branch.dim
        for top in range(0, height, branch.stripe[0]):
            for left in range(0, width, branch.stripe[1]):
                place = (slice(top, top + branch.stripe[0]), slice(left, left + branch.stripe[1]))
                q, k, v = part[place].unbind(dim=2)  # (r, c, C)
                image_v = v.permute(2, 0, 1)[None]
                lepe = F.conv2d(image_v, branch.lepe.weight, branch.lepe.bias, padding=1, groups=branch.dim)[0].permute(1, 2, 0)
                for h in range(0, branch.dim, head_dim):
                    a, b, c = (t[..., h : h + head_dim].reshape(-1, head_dim) for t in (q, k, v))
                    mixed = torch.softmax(a @ b.T / head_dim**0.5, dim=1) @ c
                    out[(*place, slice(first + h, first + h + head_dim))] = mixed.view(*q.shape[:2], -1) + lepe[..., h : h + head_dim]
    return module.proj(out)


@pytest.mark.parametrize(("grid", "split", "heads"), [((6, 6), 1, 4), ((6, 6), 3, 2), ((4, 6), 2, 4), ((5, 7), 2, 4), ((4, 6), 5, 2),
                                                      ((6, 6), 6, 1), ((5, 7), 7, 2)])
@pytest.mark.parametrize("head_dim", [None, 3])
def test_equals_a_loop_over_stripes_and_heads(grid: tuple[int, int], split: int, heads: int, head_dim: int | None) -> None:
    module, images = mixer(grid=grid, split=split, heads=heads, head_dim=head_dim), torch.randn(2, *grid, 16, dtype=torch.float64)
    module.heads = heads
    with torch.no_grad():
        torch.testing.assert_close(module(images), torch.stack([by_hand(module, image) for image in images]))


def test_the_first_half_of_the_heads_sees_columns_and_the_second_rows() -> None:
    vertical, horizontal = reached(mixer(split=2), 3, 4)
    assert vertical[:, 4:6].all() and vertical.sum() == 12
    assert horizontal[2:4].all() and horizontal.sum() == 12


def test_a_stripe_that_covers_the_map_is_one_branch_over_it() -> None:
    module = mixer(grid=(4, 6), split=6, heads=1)
    assert len(module.branches) == 1
    assert reached(module, 0, 5)[0].all()


def test_gradients_are_finite_where_stripes_are_padded() -> None:
    module = mixer(grid=(5, 7), split=3)
    image = torch.randn(1, 5, 7, 16, dtype=torch.float64, requires_grad=True)
    module(image).square().sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(("heads", "split", "message"), [(1, 2, "an even divisor"), (3, 2, "num_heads 3"), (4, 0, "split_size 0"),
                                                         (4, 7, "1 to 6, the longer side"), (4, True, "split_size True")])
def test_impossible_parameters_are_refused_by_name(heads: int, split: int, message: str) -> None:
    with pytest.raises(ArchError, match=message):
        mixer(heads=heads, split=split)
