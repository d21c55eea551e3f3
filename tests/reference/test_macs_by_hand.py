"""Multiply-adds against closed forms and published figures."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from nasvit.cost import count
from nasvit.torchvision_ops import ensure


class Block(nn.Module):
    """A plain transformer block written out, on (B, N, C)."""

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.mlp(self.norm2(x))


def test_a_two_block_transformer_is_its_closed_form_exactly() -> None:
    tokens, dim, heads, mlp_dim = 10, 12, 3, 30
    attention = tokens * dim * 4 * dim + 2 * tokens * tokens * dim
    block = attention + 2 * tokens * dim * mlp_dim + 2 * 5 * tokens * dim
    cost = count(nn.Sequential(Block(dim, heads, mlp_dim), Block(dim, heads, mlp_dim)), input_shape=(3, tokens, dim))
    assert cost.macs == 2 * block
    assert cost.by_module["0"] == cost.by_module["1"] == block
    assert cost.params == 2 * (4 * dim * dim + 4 * dim + 2 * dim * mlp_dim + mlp_dim + dim + 4 * dim)


def test_convolution_and_batch_norm_are_their_closed_form_exactly() -> None:
    module = nn.Sequential(nn.Conv2d(6, 9, 3, stride=2, padding=1, groups=3), nn.BatchNorm2d(9))
    assert count(module, input_shape=(1, 6, 8, 10)).by_operator == {"conv": 4 * 5 * 9 * 2 * 9, "batch_norm": 2 * 9 * 4 * 5}


@pytest.mark.parametrize(("name", "giga", "params_m"), [
    ("vit_tiny_patch16_224", 1.258, 5.717), ("deit_tiny_patch16_224", 1.258, 5.717), ("deit_small_patch16_224", 4.608, 22.051),
    ("swin_tiny_patch4_window7_224", 4.509, 28.288), ("levit_128s", 0.307, 7.777),
])
def test_published_networks_are_within_half_a_percent(name: str, giga: float, params_m: float) -> None:
    ensure()
    import timm

    cost = count(timm.create_model(name, pretrained=False), input_shape=(1, 3, 224, 224))
    assert cost.macs / 1e9 == pytest.approx(giga, rel=5e-3)
    assert cost.params / 1e6 == pytest.approx(params_m, rel=5e-3)
