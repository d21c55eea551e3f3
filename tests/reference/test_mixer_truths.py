"""What token mixers must equal, written plainly: neighbourhoods by unfold, published convolutions, masks by loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nasvit.models.mixers.catm import CATMMixer
from nasvit.models.mixers.global_ import GlobalMixer
from nasvit.models.mixers.slide import SlideMixer
from nasvit.models.mixers.window import WindowMixer

SHAPES = [(3, (8, 8), 2), (3, (5, 7), 1), (5, (6, 9), 4), (5, (3, 2), 2), (7, (4, 11), 2), (3, (1, 1), 2)]
DIM = 8


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def slide(kernel_size: int, grid: tuple[int, int], num_heads: int, head_dim: int | None = None) -> SlideMixer:
    mixer = SlideMixer(DIM, resolution=grid, num_heads=num_heads, kernel_size=kernel_size, head_dim=head_dim).double()
    torch.nn.init.normal_(mixer.relative_position_bias_table)
    return mixer


def heads(mixer: SlideMixer | WindowMixer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three of (B, h, d, H, W)."""
    q, k, v = mixer.qkv(x).unflatten(-1, (3, mixer.num_heads, -1)).permute(3, 0, 4, 5, 1, 2).unbind()
    return q * q.shape[2] ** -0.5, k, v


def over_taps(mixer: SlideMixer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, h, d, H, W), k and v (B, h, d, T, H, W): softmax over T, then the mixer's projection."""
    keys = k + mixer.relative_position_bias_table[None, :, None, :, None, None]
    attention = (q.unsqueeze(3) * keys).sum(2, keepdim=True).softmax(3)
    return mixer.proj((attention * v).sum(3).permute(0, 3, 4, 1, 2).flatten(3))


@pytest.mark.parametrize(("kernel_size", "grid", "num_heads"), SHAPES)
def test_slide_without_learned_path_is_attention_over_the_unfolded_neighbourhood(
        kernel_size: int, grid: tuple[int, int], num_heads: int) -> None:
    mixer = slide(kernel_size, grid, num_heads)
    for parameter in (mixer.kernel, mixer.kernel_bias, mixer.fixed_bias):
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, *grid, DIM, dtype=torch.float64)
    q, k, v = heads(mixer, x)

    def neighbours(t: Tensor) -> Tensor:
        columns = F.unfold(t.flatten(0, 1), kernel_size, padding=kernel_size // 2)
        return columns.view(*t.shape[:3], kernel_size**2, *grid)

    close(mixer(x), over_taps(mixer, q, neighbours(k), neighbours(v)))


@pytest.mark.parametrize(("kernel_size", "grid", "num_heads"), SHAPES)
@pytest.mark.parametrize("head_dim", [None, 3])
def test_slide_equals_the_published_pair_of_depthwise_convolutions(
        kernel_size: int, grid: tuple[int, int], num_heads: int, head_dim: int | None) -> None:
    mixer = slide(kernel_size, grid, num_heads, head_dim)
    x = torch.randn(2, *grid, DIM, dtype=torch.float64)
    q, k, v = heads(mixer, x)
    width, taps = mixer.head_dim, kernel_size**2
    fixed = torch.zeros(width * taps, 1, kernel_size, kernel_size, dtype=torch.float64)
    for channel in range(width * taps):
        tap = channel % taps
        fixed[channel, 0, tap // kernel_size, tap % kernel_size] = 1

    def taps_of(t: Tensor) -> Tensor:
        flat, options = t.flatten(0, 1), {"padding": kernel_size // 2, "groups": width}
        both = (F.conv2d(flat, fixed, mixer.fixed_bias.flatten(), **options)
                + F.conv2d(flat, mixer.kernel.flatten(0, 1).unsqueeze(1), mixer.kernel_bias.flatten(), **options))
        return both.view(*t.shape[:3], taps, *grid)

    close(mixer(x), over_taps(mixer, q, taps_of(k), taps_of(v)))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("kernel_size", "grid", "num_heads"), [s for s in SHAPES if s[1] != (1, 1)])
def test_a_graph_of_slide_is_slide_with_its_taps_together_or_one_by_one(
        kernel_size: int, grid: tuple[int, int], num_heads: int, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not at_once:
        monkeypatch.setattr("nasvit.models.mixers.slide.AT_ONCE", 0)
    mixer, x = slide(kernel_size, grid, num_heads).eval(), torch.randn(2, *grid, DIM, dtype=torch.float64)
    with torch.no_grad():
        graph = torch.export.export(mixer, (x,))
        close(graph.module()(x), mixer(x))
    assert sum("baddbmm" in str(node.target) for node in graph.graph.nodes) == (0 if at_once else kernel_size**2)


def test_a_graph_of_catm_is_catm() -> None:
    mixer, x = CATMMixer(DIM, resolution=(5, 6)).double().eval(), torch.randn(2, 5, 6, DIM, dtype=torch.float64)
    with torch.no_grad():
        graph = torch.export.export(mixer, (x,))
        close(graph.module()(x), mixer(x))
    assert not any("bmm" in str(node.target) or "addcmul" in str(node.target) for node in graph.graph.nodes)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_one_window_as_large_as_the_map_without_bias_is_global_attention(num_heads: int) -> None:
    window = WindowMixer(DIM, resolution=(6, 6), num_heads=num_heads, window_size=6, shift=False).double()
    torch.nn.init.zeros_(window.relative_position_bias_table)
    plain = GlobalMixer(DIM, resolution=(6, 6), num_heads=num_heads).double()
    plain.qkv, plain.proj = window.qkv, window.proj
    x = torch.randn(2, 6, 6, DIM, dtype=torch.float64)
    close(window(x), plain(x))


def allowed(query: tuple[int, int], key: tuple[int, int], *, size: int, shift: int) -> bool:
    """Whether two tokens of the map share a window: windows of `size` cut the map at `shift`, `shift` + `size`, ..

    Cyclic displacement and its mask amount to this: what lies before the first cut has smaller windows of its own.
    """
    return all((q - shift) // size == (k - shift) // size for q, k in zip(query, key, strict=True))


@pytest.mark.parametrize(("grid", "size", "shift"), [((8, 8), 4, False), ((8, 8), 4, True), ((7, 5), 4, False), ((7, 5), 4, True),
                                                     ((5, 9), 3, True), ((6, 4), 4, False), ((9, 10), 7, True), ((5, 6), 4, True)])
def test_window_attention_equals_masked_attention_over_the_whole_map(grid: tuple[int, int], size: int, shift: bool) -> None:
    mixer = WindowMixer(DIM, resolution=grid, num_heads=2, window_size=size, shift=shift).double()
    torch.nn.init.normal_(mixer.relative_position_bias_table)
    x = torch.randn(2, *grid, DIM, dtype=torch.float64)
    q, k, v = (t.flatten(3).transpose(2, 3) for t in heads(mixer, x))
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    bias = torch.full((2, len(places), len(places)), float("-inf"), dtype=torch.float64)
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            if allowed(query, key, size=size, shift=size // 2 if shift else 0):
                dy, dx = query[0] - key[0], query[1] - key[1]
                bias[:, i, j] = mixer.relative_position_bias_table[(dy + size - 1) * (2 * size - 1) + dx + size - 1]
    out = ((q @ k.transpose(2, 3) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
    close(mixer(x), mixer.proj(out).view_as(x))


@pytest.mark.parametrize("head_dim", [None, 3])
def test_class_row_is_the_first_row_of_the_attention_matrix_without_its_own_column(head_dim: int | None) -> None:
    mixer = GlobalMixer(DIM, resolution=(3, 4), num_heads=2, head_dim=head_dim).double()
    x = torch.randn(3, 9, DIM, dtype=torch.float64)
    out, row = mixer.forward_tokens(x, class_row=True)
    q, k, v = mixer.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind()
    matrix = (q @ k.transpose(2, 3) * (head_dim or DIM // 2) ** -0.5).softmax(-1)
    assert row is not None
    close(row, matrix.mean(1)[:, 0, 1:])
    close(out, mixer.proj((matrix @ v).transpose(1, 2).flatten(2)))
    assert mixer.forward_tokens(x)[1] is None
