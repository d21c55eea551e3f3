"""CAS-ViT: parts, whole blocks and whole models against reference outputs, any configuration.

Parts are filled by a table of names; blocks and models go through the conversion of official checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nasvit.zoo
from nasvit.arch import Block, MixerSpec
from nasvit.models.blocks import MixerBlock
from nasvit.models.mixers.catm import CATMMixer, ChannelOperation, SpatialOperation
from nasvit.models.mixers.integration import IntegrationMixer
from nasvit.models.patch_embed import ConvDownsample, ConvStem
from nasvit.torchvision_ops import ensure
from nasvit.zoo.casvit import take_block
from nasvit.zoo.checkpoint import Checkpoint
from tests.golden.cases import Case, assert_matches, cases

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

Weights = dict[str, Tensor]
Build = Callable[[Case, Weights], Callable[[Tensor], Tensor]]


@pytest.mark.parametrize("case", cases("casvit"))
def test_reproduces(case: Case) -> None:
    kind, cls = case.data["kind"], case.config.get("cls")
    with torch.no_grad():
        if case.data["level"] == "model":
            outputs = model(case)
        else:
            assert (kind, cls) in ADAPTERS, f"{case.name}: no adapter for kind {kind!r}, class {cls!r}"
            run = ADAPTERS[kind, cls](case, case.weights())
            x = case.input()
            outputs = [run(x if kind == "stem" else x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)]  # (B, C, H, W) -> (B, H, W, C)
    for output, expected in zip(outputs, case.data.get("eval_outputs", [case.data["eval_output"]]), strict=True):
        assert_matches(output, expected, tolerance=1e-5, scale="max")


def model(case: Case) -> list[Tensor]:
    """Any variant: the smallest one's function, with every size of the configuration given anew."""
    config, pyramid = case.config, case.config["fork_feat"]
    assert config["act"] == "GELU" and config["norm"] == "BatchNorm2d" and all(config["downsamples"])
    made = timm.create_model("casvit_xs", embed_dims=config["embed_dims"], depths=config["layers"], mlp_ratios=config["mlp_ratios"],
                             qkv_bias=config["attn_bias"], distillation=config["distillation"], num_classes=config["num_classes"],
                             in_chans=case.data["input"]["shape"][1], img_size=tuple(case.data["input"]["shape"][2:]),
                             feature_norms=pyramid, features_only=pyramid)
    nasvit.zoo.load_official(made.model if pyramid else made, case.weights())
    assert sum(p.numel() for p in made.parameters()) == case.data["params_count"]
    output = made.eval()(case.input())
    return output if pyramid else [output]


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
    """The network's block, by the conversion of official checkpoints."""
    config, dim = case.config, case.config["dim"]
    mixers = (MixerSpec.of("integration"), MixerSpec.of("catm", qkv_bias=config["attn_bias"]))
    spec = Block(mixers=mixers, mlp_dim=int(dim * config["mlp_ratio"]))
    own = MixerBlock(spec, dim=dim, resolution=grid_of(case), drop_path=0.0, where="block", norm_eps=1e-5)
    checkpoint = Checkpoint.of({f"block.{name}": value for name, value in weights.items()})
    missing, unexpected = own.load_state_dict({n.removeprefix("ours."): v for n, v in take_block(checkpoint, "block", "ours").items()},
                                              strict=False)
    checkpoint.must_be_used_up()
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    own.eval()
    return lambda x: own(x, None, scored=False)[0]


def stem(case: Case, weights: Weights) -> nn.Module:
    names = {f"{3 * i + j}.": f"layers.{i}.{j}." for i in range(2) for j in range(2)}
    return filled(ConvStem(case.config["in_chs"], case.config["out_chs"], stride=4, bias=True), weights, names)


def downsample(case: Case, weights: Weights) -> nn.Module:
    config = case.config
    assert (config["patch_size"], config["stride"], config["padding"]) == (3, 2, 1)
    return filled(ConvDownsample(config["in_chans"], config["embed_dim"], bias=True), weights, {})


ADAPTERS: dict[tuple[str, str], Build] = {
    ("attention", "AdditiveTokenMixer"): catm,
    ("submodule", "SpatialOperation"): spatial,
    ("submodule", "ChannelOperation"): channel,
    ("submodule", "LocalIntegration"): integration,
    ("submodule", "Mlp"): mlp,
    ("block", "AdditiveBlock"): block,
    ("stem", "stem"): stem,
    ("downsample", "Embedding"): downsample,
}
