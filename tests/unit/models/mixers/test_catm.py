"""CATM and the local integration against their equations written plainly on (B, C, H, W)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.errors import ArchError
from nasvit.models.mixers.catm import CATMMixer, ChannelOperation, SpatialOperation
from nasvit.models.mixers.integration import IntegrationMixer


def awake(module: nn.Module) -> nn.Module:
    """Batch norms with statistics and affines that are not the identity."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight.data, part.bias.data, part.running_mean):
                tensor.uniform_(-0.5, 1.5)
            part.running_var.uniform_(0.5, 2)
    return module.double()


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def pointwise(x: Tensor, linear: nn.Linear) -> Tensor:
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=1, groups=x.shape[1])


def normed(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    shift, scale = (t[:, None, None] for t in (norm.running_mean, norm.weight / (norm.running_var + norm.eps).sqrt()))
    return (x - shift) * scale + norm.bias[:, None, None]


def gated(x: Tensor, operations: nn.Sequential) -> Tensor:
    spatial, channel = operations
    x = x * pointwise(normed(depthwise(x, spatial.conv), spatial.norm).clamp_min(0), spatial.gate).sigmoid()
    return x * pointwise(x.mean(dim=(2, 3), keepdim=True), channel.gate).sigmoid()


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("grid", [(7, 7), (5, 8), (1, 3)])
def test_catm_is_its_equation(grid: tuple[int, int], qkv_bias: bool) -> None:
    module = awake(CATMMixer(12, resolution=grid, qkv_bias=qkv_bias)).eval()
    x = torch.randn(2, *grid, 12, dtype=torch.float64)
    q, k, v = pointwise(first(x), module.qkv).split(12, dim=1)
    expected = depthwise(depthwise(gated(q, module.gates_q) + gated(k, module.gates_k), module.mix) * v, module.proj)
    torch.testing.assert_close(first(module(x)), expected)


def test_integration_is_its_equation() -> None:
    module = awake(IntegrationMixer(12, resolution=(5, 6))).eval()
    x = torch.randn(2, 5, 6, 12, dtype=torch.float64)
    inner = depthwise(normed(pointwise(first(x), module.expand), module.norm_inner), module.conv)
    torch.testing.assert_close(first(module(x)), pointwise(F.gelu(inner), module.project))


def test_queries_and_keys_have_their_own_gates() -> None:
    module = CATMMixer(8, resolution=(4, 4))
    mine, other = {id(p) for p in module.gates_q.parameters()}, {id(p) for p in module.gates_k.parameters()}
    assert mine and not mine & other


@pytest.mark.parametrize("operation", [SpatialOperation, ChannelOperation])
@pytest.mark.parametrize("training", [False, True])
def test_a_gate_leaves_its_input_alone(operation: type[nn.Module], training: bool) -> None:
    module, x = operation(8).train(training), torch.randn(2, 4, 4, 8)
    before = x.clone()
    module(x)
    assert torch.equal(x, before)


def test_a_gate_only_shrinks() -> None:
    x = torch.randn(2, 4, 5, 8)
    for operation in (SpatialOperation(8), ChannelOperation(8)):
        ratio = operation.eval()(x) / x
        assert ratio.min() > 0 and ratio.max() < 1


@pytest.mark.parametrize("dim", [8, 12])
def test_parameters_are_the_published_number(dim: int) -> None:
    module = CATMMixer(dim, resolution=(4, 4))
    assert sum(p.numel() for p in module.parameters()) == 5 * dim**2 + 46 * dim


@pytest.mark.parametrize("module", [CATMMixer(16, resolution=(6, 5)), IntegrationMixer(16, resolution=(6, 5))], ids=["catm", "integration"])
def test_macs_equal_the_tracer(module: CATMMixer | IntegrationMixer) -> None:
    nn_flops = pytest.importorskip("fvcore.nn")
    counter = nn_flops.FlopCountAnalysis(module.eval(), torch.randn(1, 6, 5, 16))
    counter.unsupported_ops_warnings(False)
    assert counter.total() == module.macs()


def test_a_bias_is_there_or_not() -> None:
    with pytest.raises(ArchError, match="qkv_bias 1 is not possible; accepted: true or false"):
        CATMMixer(8, resolution=(4, 4), qkv_bias=1)  # type: ignore[arg-type]
