"""Linear layers beside convolutions in an ONNX file: the same answers, and maps that are turned only where they must be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasvit.arch import MixerSpec
from nasvit.models.deploy import deploy
from nasvit.models.layers import ConvMlp, Mlp
from nasvit.models.mixers import make_mixer
from nasvit.models.mixers.base import to_channels_first, to_channels_last

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from nasvit.runtimes.onnx_file import write_onnx  # noqa: E402 (needs the packages above)

DIM, SIDE = 16, 8


class Blocks(nn.Module):
    """(B, DIM, SIDE, SIDE) -> (B, 3): residual branches on (B, H, W, C), a convolution behind them, the mean, a classifier."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.last = nn.Conv2d(DIM, DIM, 3, stride=2, padding=1)
        self.head = nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = to_channels_last(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(to_channels_last(self.last(to_channels_first(x))).mean(dim=(1, 2)))


def mixer(name: str, **parameters: int) -> nn.Module:
    return make_mixer(MixerSpec.of(name, **parameters), dim=DIM, resolution=(SIDE, SIDE), where="here")


def attention() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(DIM), mixer("window", window_size=4, num_heads=2, shift=False))


def written(module: nn.Module, path: Path, *, dynamic: bool = False) -> Counter[str]:
    """The operators of its file, once the file has given torch's answers."""
    torch.manual_seed(0)
    module = deploy(module)
    images = torch.randn(3 if dynamic else 1, DIM, SIDE, SIDE)
    write_onnx(module, images[: 1 + dynamic], path, dynamic_batch=dynamic)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        np.testing.assert_allclose(session.run(None, {"image": images.numpy()})[0], module(images).numpy(), atol=1e-5)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("dynamic", [False, True])
def test_between_convolutions_no_map_is_turned_or_flattened(tmp_path: Path, dynamic: bool) -> None:
    blocks = Blocks(mixer("integration"), mixer("catm"), Mlp(DIM, hidden_features=32), ConvMlp(DIM, hidden_features=32))
    operators = written(blocks, tmp_path / "m.onnx", dynamic=dynamic)
    assert not operators["Transpose"] and not operators["MatMul"] and operators["Conv"] > 10


def test_attention_has_its_channels_last_and_is_flattened_as_before(tmp_path: Path) -> None:
    operators = written(Blocks(attention(), Mlp(DIM, hidden_features=32)), tmp_path / "m.onnx")
    alone = written(Blocks(attention()), tmp_path / "n.onnx")
    assert operators["Conv"] == alone["Conv"] == 1  # linear layers behind attention stay linear layers
    assert operators["Transpose"] == alone["Transpose"]


@pytest.mark.parametrize("last", [True, False])
def test_a_map_is_turned_once_on_its_way_between_attention_and_convolutions(last: bool, tmp_path: Path) -> None:
    convolved = [mixer("catm"), Mlp(DIM, hidden_features=32)]
    both = written(Blocks(attention(), *convolved) if last else Blocks(*convolved, attention()), tmp_path / "m.onnx")
    assert both["Transpose"] == written(Blocks(attention()), tmp_path / "n.onnx")["Transpose"]


def test_a_linear_layer_before_a_convolution_is_one_wherever_its_map_comes_from(tmp_path: Path) -> None:
    operators = written(Blocks(attention(), nn.Sequential(nn.LayerNorm(DIM), ConvMlp(DIM, hidden_features=64))), tmp_path / "m.onnx")
    assert operators["Conv"] == 4  # two 1x1, the depthwise one, the last


def test_maps_of_unequal_layout_are_added_as_they_were(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, SIDE, SIDE, DIM))
            self.scale = nn.Parameter(torch.randn(DIM))
            self.linear = nn.Linear(DIM, DIM)
            self.conv = nn.Conv2d(DIM, DIM, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = to_channels_last(x)
            near = to_channels_last(self.conv(to_channels_first(2.0 * self.linear(x) + self.table)))
            far = near.flatten(1, 2).flip(1).view(near.shape)
            return (far * near + self.scale * near).mean(dim=(1, 2), keepdim=True)[:, 0, 0]

    assert written(Mixed(), tmp_path / "m.onnx")["Conv"] == 2
