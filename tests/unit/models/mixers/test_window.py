"""Window attention against its definition, written out token by token: padding, shift, relative positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasvit.models.mixers.window import WindowMixer

DIM, HEADS = 8, 2


def made(grid: tuple[int, int], window_size: int, shift: bool, head_dim: int | None = None) -> WindowMixer:
    mixer = WindowMixer(DIM, resolution=grid, num_heads=HEADS, window_size=window_size, shift=shift, head_dim=head_dim).double().eval()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.7)
    return mixer


def place(y: int, x: int, mixer: WindowMixer) -> tuple[tuple[int, int], tuple[int, int], tuple[bool, bool]]:
    """A token's window, its place in the window, and whether the shift wrapped it around, by axis."""
    w, moved = mixer.window_size, [(t - mixer.shift) % size for t, size in zip((y, x), mixer.padded, strict=True)]
    return (moved[0] // w, moved[1] // w), (moved[0] % w, moved[1] % w), (y < mixer.shift, x < mixer.shift)


def defined(mixer: WindowMixer, image: Tensor) -> Tensor:
    """One image (H, W, C), token by token: only tokens of the map exist."""
    (height, width), w, d = mixer.resolution, mixer.window_size, mixer.head_dim
    tokens = [(y, x) for y in range(height) for x in range(width)]
    places = [place(y, x, mixer) for y, x in tokens]
    q, k, v = mixer.qkv(image).flatten(0, 1).split(HEADS * d, dim=-1)
    out = torch.zeros_like(q)
    for i, (window, (y, x), wrapped) in enumerate(places):
        near = [j for j, other in enumerate(places) if other[0] == window]
        rows = [(y - places[j][1][0] + w - 1) * (2 * w - 1) + x - places[j][1][1] + w - 1 for j in near]
        apart = torch.tensor([-100.0 * (places[j][2] != wrapped) for j in near], dtype=q.dtype)
        for head in range(HEADS):
            mine = slice(head * d, head * d + d)
            logits = k[near][:, mine] @ q[i, mine] / d**0.5 + mixer.relative_position_bias_table[rows, head] + apart
            out[i, mine] = logits.softmax(dim=0) @ v[near][:, mine]
    return mixer.proj(out).view(height, width, DIM)


@pytest.mark.parametrize(("grid", "window_size", "shift"), [((4, 8), 4, False), ((8, 12), 4, True), ((6, 6), 3, True), ((5, 7), 3, False),
                                                            ((5, 7), 3, True), ((6, 7), 4, True), ((9, 6), 4, False), ((3, 8), 3, False)])
@pytest.mark.parametrize("head_dim", [None, 3])
def test_is_attention_inside_windows_of_the_map_alone(grid: tuple[int, int], window_size: int, shift: bool, head_dim: int | None) -> None:
    mixer = made(grid, window_size, shift, head_dim)
    x = torch.randn(2, *grid, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), torch.stack([defined(mixer, image) for image in x]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("grid", "rows"), [((8, 8), 64), ((5, 7), 35)])
def test_projects_the_tokens_of_the_map_alone(grid: tuple[int, int], rows: int) -> None:
    mixer, seen = made(grid, 4, True), []
    mixer.qkv.register_forward_hook(lambda module, given, out: seen.append(given[0].numel() // DIM))
    mixer(torch.randn(1, *grid, DIM, dtype=torch.float64))
    assert seen == [rows]


@pytest.mark.parametrize("shift", [False, True])
def test_the_inference_form_follows_a_loaded_state_dict_and_keeps_its_names(shift: bool) -> None:
    source, mixer = made((8, 12), 4, shift), made((8, 12), 4, shift)
    names = set(mixer.state_dict())
    mixer.deploy_()
    mixer.load_state_dict(source.state_dict())
    x = torch.randn(2, 8, 12, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), source(x))
    assert set(mixer.state_dict()) == names


def test_a_bias_too_large_to_keep_is_made_in_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasvit.models.mixers.window.KEPT_BIAS", 100)
    mixer = made((8, 12), 4, True)
    x = torch.randn(2, 8, 12, DIM, dtype=torch.float64)
    before = mixer(x)
    mixer.deploy_()
    assert mixer.bias is None
    torch.testing.assert_close(mixer(x), before)
