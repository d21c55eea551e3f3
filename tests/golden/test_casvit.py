"""CAS-ViT: additive mixer, its gates, local integration and the whole block against reference outputs, any configuration."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.models.mixers.catm import CATMMixer, ChannelOperation, SpatialOperation
from nasvit.models.mixers.integration import IntegrationMixer
from tests.golden.cases import Case, assert_matches, cases

Weights = dict[str, Tensor]
Build = Callable[[Case, Weights], Callable[[Tensor], Tensor]]
LATER = "whole published models are not here yet"


@pytest.mark.parametrize("case", cases("casvit"))
def test_reproduces(case: Case) -> None:
    kind, cls = case.data["kind"], case.config.get("cls")
    if case.data["level"] == "model" or kind in ("stem", "downsample"):
        pytest.skip(LATER)
    assert (kind, cls) in ADAPTERS, f"{case.name}: no adapter for kind {kind!r}, class {cls!r}"
    with torch.no_grad():
        x = case.input().permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        output = ADAPTERS[kind, cls](case, case.weights())(x).permute(0, 3, 1, 2)
    assert_matches(output, case.data["eval_output"], tolerance=1e-5, scale="max")


def filled(module: nn.Module, weights: Weights, names: dict[str, str]) -> nn.Module:
    """Load official tensors into a module whose parts have other names; pointwise kernels become linear weights."""
    state = {}
    for name, value in weights.items():
        mine = next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name)
        own = module.state_dict()
        assert mine in own, f"{name} -> {mine}: not in {sorted(own)}"
        state[mine] = value.flatten(1) if own[mine].ndim == 2 else value
    missing, _ = module.load_state_dict(state, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return module.eval()


def grid_of(case: Case) -> tuple[int, int]:
    return case.data["input"]["shape"][2], case.data["input"]["shape"][3]


def part(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


SPATIAL = {"block.0.": "conv.", "block.1.": "norm.", "block.3.": "gate."}
CHANNEL = {"block.1.": "gate."}
CATM = {f"oper_{which}.{i}.{old}": f"gates_{which}.{i}.{new}" for which in "qk" for i, table in enumerate((SPATIAL, CHANNEL))
        for old, new in table.items()} | {"dwc.": "mix."}
INTEGRATION = {"network.0.": "expand.", "network.1.": "norm_inner.", "network.2.": "conv.", "network.4.": "project."}


def spatial(case: Case, weights: Weights) -> nn.Module:
    return filled(SpatialOperation(case.config["dim"]), weights, SPATIAL)


def channel(case: Case, weights: Weights) -> nn.Module:
    return filled(ChannelOperation(case.config["dim"]), weights, CHANNEL)


def catm(case: Case, weights: Weights) -> nn.Module:
    return filled(CATMMixer(case.config["dim"], resolution=grid_of(case), qkv_bias=case.config["attn_bias"]), weights, CATM)


def integration(case: Case, weights: Weights) -> nn.Module:
    assert case.config.get("ratio", 1) == 1
    return filled(IntegrationMixer(case.config["dim"], resolution=grid_of(case)), weights, INTEGRATION)


def mlp(case: Case, weights: Weights) -> Callable[[Tensor], Tensor]:
    """Pointwise convolutions of the reference are linear layers on the last axis."""
    def run(x: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(x, weights["fc1.weight"].flatten(1), weights["fc1.bias"]))
        return F.linear(hidden, weights["fc2.weight"].flatten(1), weights["fc2.bias"])

    return run


def block(case: Case, weights: Weights) -> Callable[[Tensor], Tensor]:
    """x + integration(x); x + catm(norm(x)); x + mlp(norm(x))"""
    def norm(name: str) -> nn.Module:
        return filled(nn.BatchNorm2d(case.config["dim"]), part(weights, f"{name}."), {})

    def run(x: Tensor) -> Tensor:
        x = x + local(x)
        x = x + mixer(norm1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + channels(norm2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    local, mixer = integration(case, part(weights, "local_perception.")), catm(case, part(weights, "attn."))
    norm1, norm2, channels = norm("norm1"), norm("norm2"), mlp(case, part(weights, "mlp."))
    return run


ADAPTERS: dict[tuple[str, str], Build] = {
    ("attention", "AdditiveTokenMixer"): catm,
    ("submodule", "SpatialOperation"): spatial,
    ("submodule", "ChannelOperation"): channel,
    ("submodule", "LocalIntegration"): integration,
    ("submodule", "Mlp"): mlp,
    ("block", "AdditiveBlock"): block,
}
