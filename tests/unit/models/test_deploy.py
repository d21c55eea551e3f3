"""The inference form: the same function, for every registered mixer, every model of the zoo, and searched networks."""

from __future__ import annotations

import inspect
import io
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nasvit.zoo
from nasvit.arch import Arch, Block, Head, MixerSpec, Stage, Stem
from nasvit.cost import count
from nasvit.models import build
from nasvit.models.deploy import ONEDNN, InferenceLinear, deploy
from nasvit.models.layers import ChannelBatchNorm
from nasvit.models.mixers import MIXERS, make_mixer
from nasvit.models.network import Network
from nasvit.torchvision_ops import ensure
from nasvit.zoo import family
from tests.conformance.test_mixers import DIM, WIDE, specs

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)


def awake(module: nn.Module) -> nn.Module:
    """Every parameter and statistic away from what a fold would not notice: no bias 0, no scale 1, no mean 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for part in module.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.running_mean.normal_(std=0.2)
                part.running_var.uniform_(0.5, 2)
    return module.eval()


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


class _Seen(Exception):
    """Carries an Arch out of a registered model's function before any weight is made."""


def arch_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Arch:
    def stop(arch: Arch, **_: Any) -> None:
        raise _Seen(arch)

    with monkeypatch.context() as patched:
        patched.setattr(family, "Network", stop)
        with pytest.raises(_Seen) as seen:
            timm.create_model(name, num_classes=7)
    found = seen.value.args[0]
    return replace(found, stages=tuple(replace(s, blocks=s.blocks[:1] + s.blocks[1:][-1:]) for s in found.stages))


def registered() -> dict[str, list[str]]:
    """Module of the zoo -> the models it registers, the smallest first."""
    found = {}
    for module in pkgutil.iter_modules(nasvit.zoo.__path__):
        names = timm.list_models(module=module.name)
        smallest = next((n for size in ("xs", "tiny", "128s", "b1") for n in names if n.endswith(size)), names[0] if names else None)
        found[module.name] = sorted(names, key=lambda n, first=smallest: n != first)
    return {module: names for module, names in found.items() if names}


def smallest_models() -> list[str]:
    return [names[0] for names in registered().values()]


def zoo_models() -> list[Any]:
    """Every registered model; all but the smallest of each module are slow, for they only differ in size."""
    return [pytest.param(n, marks=[pytest.mark.slow] if i else []) for names in registered().values() for i, n in enumerate(names)]


def searched(*names: str, **head: Any) -> Arch:
    specs = {"window": MixerSpec.of("window", window_size=3, shift=True, num_heads=2),
             "slide": MixerSpec.of("slide", kernel_size=3, num_heads=2),
             "fsla": MixerSpec.of("fsla", cluster_depth=2, overlap=2, num_heads=2), "global": MixerSpec.of("global", num_heads=2),
             "catm": MixerSpec.of("catm"), "integration": MixerSpec.of("integration")}
    block = Block(mixers=tuple(specs[n] for n in names), mlp_dim=24)
    return Arch(image_size=(16, 24), in_channels=3, num_classes=5, stem=Stem(kind="conv", stride=2),
                stages=(Stage(embed_dim=8, blocks=(block,)), Stage(embed_dim=12, blocks=(block, replace(block, keep_ratio=0.5)))),
                head=Head(**head))


@pytest.mark.parametrize("spec", specs(WIDE))
def test_a_mixer_is_the_same_function(spec: MixerSpec) -> None:
    mixer = awake(make_mixer(spec, dim=DIM, resolution=WIDE))
    x = torch.randn(2, *WIDE, DIM)
    assert difference(deploy(mixer)(x), mixer(x)) <= 1e-5


@pytest.mark.parametrize("name", zoo_models())
def test_a_zoo_model_is_the_same_function_and_what_only_training_needs_is_gone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: no token selection can flip by rounding there, and a wrong fold has nowhere to hide."""
    arch = arch_of(name, monkeypatch)
    model = awake(Network(arch, drop_path=0.1)).double()
    x = torch.randn(1, 3, *arch.image_size, dtype=torch.float64)
    ready = deploy(model)
    with torch.no_grad():
        assert difference(ready(x), model(x)) <= 1e-9
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in ready.modules())
    assert not [n for n, _ in ready.named_modules() if "aux" in n or "dist" in n]
    assert sum(p.numel() for p in ready.parameters()) <= sum(p.numel() for p in model.parameters()) + 4 * sum(
        3 * s.embed_dim * len(s.blocks) for s in arch.stages)


@pytest.mark.parametrize("names", [("window",), ("window", "fsla"), ("integration", "catm"), ("slide",), ("global",), ("catm", "window")])
@pytest.mark.parametrize("head", [{}, {"norm": "batch"}, {"distillation": True}, {"norm": "batch", "distillation": True},
                                  {"kind": "norm_mean", "norm": "batch", "distillation": True}, {"kind": "class_token"}], ids=str)
def test_a_searched_network_is_the_same_function(names: tuple[str, ...], head: dict[str, Any]) -> None:
    model = awake(build(searched(*names, **head), seed=1))
    x = torch.randn(2, 3, 16, 24)
    ready = deploy(model)
    assert difference(ready(x), model(x)) <= 1e-5
    assert difference(ready.forward_head(ready.forward_features(x)), model(x)) <= 1e-5


def test_the_model_itself_stays_as_it_is() -> None:
    model = awake(build(searched("integration", "catm", norm="batch"), seed=1)).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    deploy(model)
    assert model.training and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("names", [("integration", "catm"), ("slide",), ("window", "fsla")])
def test_deploying_twice_is_deploying_once(names: tuple[str, ...]) -> None:
    once = deploy(awake(build(searched(*names, norm="batch", distillation=True), seed=1)))
    twice = deploy(once)
    assert list(once.state_dict()) == list(twice.state_dict())
    x = torch.randn(1, 3, 16, 24)
    assert torch.equal(once(x), twice(x))


@pytest.mark.parametrize("names", [("integration", "catm"), ("slide",), ("window", "fsla")])
def test_a_deployed_state_dict_loads_into_another_of_the_same_arch(names: tuple[str, ...]) -> None:
    arch = searched(*names, norm="batch", distillation=True)
    a, b = (deploy(awake(build(arch, seed=seed))) for seed in (1, 2))
    x = torch.randn(1, 3, 16, 24)
    assert not torch.equal(a(x), b(x))
    b.load_state_dict(a.state_dict(), strict=True)
    assert torch.equal(a(x), b(x))


def test_costs_less_and_is_counted() -> None:
    model = build(searched("integration", "catm", norm="batch", distillation=True), seed=1)
    before, after = (count(m, input_shape=(1, 3, 16, 24)) for m in (model, deploy(model)))
    assert after.macs < before.macs
    assert "batch_norm" in before.by_operator and "batch_norm" not in after.by_operator


def test_timm_interface_stays() -> None:
    model = awake(build(searched("integration", "catm", norm="batch", distillation=True), seed=1))
    ready = deploy(model)
    x = torch.randn(1, 3, 16, 24)
    for a, b in zip(*(m.forward_intermediates(x, intermediates_only=True) for m in (ready, model)), strict=True):
        assert difference(a, b) <= 1e-5
    logits, aux = ready.forward_aux(x)
    assert aux is None and logits.shape == (1, 5)
    assert isinstance(ready.get_classifier(), nn.Linear)
    ready.reset_classifier(3)
    assert ready(x).shape == (1, 3)
    ready.reset_classifier(0)
    assert ready(x).shape == (1, 12)


def test_features_of_a_model_without_classifier_stay() -> None:
    model = awake(build(searched("integration", "catm", norm="batch", distillation=True, feature_norms=True), seed=1))
    model.reset_classifier(0)
    x = torch.randn(1, 3, 16, 24)
    ready = deploy(model)
    assert difference(ready(x), model(x)) <= 1e-5
    for a, b in zip(*(m.forward_intermediates(x, intermediates_only=True) for m in (ready, model)), strict=True):
        assert difference(a, b) <= 1e-5


def test_a_module_of_another_kind_is_left_as_it_is() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = ChannelBatchNorm(6), nn.Softplus()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.norm(x))

    own, free = awake(Own()), nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False)).eval()
    ready = deploy(own)
    assert isinstance(ready.norm, ChannelBatchNorm)
    x = torch.randn(3, 6)
    assert torch.equal(ready(x), own(x))
    assert torch.equal(deploy(free)(x[:, :4]), free(x[:, :4]))  # statistics of the batch: not affine, so not folded


def test_batch_norms_of_a_sequence_go_into_the_layer_before_them() -> None:
    sequence = awake(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6)))
    ready = deploy(sequence)
    assert [type(m) for m in ready] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.BatchNorm2d]
    x = torch.randn(2, 4, 5, 7)
    assert difference(ready(x), sequence(x)) <= 1e-5


class Summed(nn.Module):
    """A convolution with a norm behind it and, once more, without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.normed = nn.Sequential(self.conv, nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.normed(x)


class Reversed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](self[1](x))


def shared() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), conv, nn.BatchNorm2d(4))


def doubling() -> nn.Module:
    made = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Linear(5, 5))
    for layer in made:
        layer.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return made


def normalised() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4))


@pytest.mark.parametrize("make", [Summed, shared, doubling, normalised, lambda: Reversed(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
                                  lambda: nn.Sequential(nn.Flatten(2), nn.Linear(25, 4), nn.BatchNorm1d(4))])
def test_a_layer_that_is_more_than_its_place_in_a_sequence_keeps_its_norm_beside_it(make: Callable[[], nn.Module]) -> None:
    module, x = awake(make()), torch.randn(2, 4, 5, 5)
    assert difference(deploy(module)(x), module(x)) <= 1e-5


@pytest.mark.parametrize("shape", [(2500, 64), (5, 500, 64), (50, 5, 10, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_is_the_same_by_either_library(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(64, 48, bias=bias)
    fast, x = InferenceLinear.of(layer), torch.randn(shape)
    assert fast._pays(x) == ONEDNN
    strided = torch.randn(*shape[:-1], 128)[..., ::2]
    with torch.no_grad():
        for each in (x, strided):
            assert difference(fast(each), layer(each)) <= 1e-5
    x.requires_grad_()
    fast(x).sum().backward()
    assert x.grad is not None and fast.weight.grad is not None


def exported(model: nn.Module, x: Tensor) -> bytes:
    buffer = io.BytesIO()
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(buffer)
    return buffer.getvalue()


def session_of(model: nn.Module, x: Tensor) -> Any:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(exported(model, x), providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("names", [("integration", "catm"), ("slide",), ("window", "fsla")])
def test_exports_to_onnx_and_agrees(names: tuple[str, ...]) -> None:
    model = awake(build(searched(*names, norm="batch", distillation=True), seed=1))
    x = torch.randn(2, 3, 16, 24)
    session = session_of(deploy(model), x)
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert difference(torch.from_numpy(output), model(x)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", smallest_models())
def test_a_deployed_zoo_model_exports_to_onnx_and_agrees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = arch_of(name, monkeypatch)
    model = awake(Network(arch))
    x = torch.randn(1, 3, *arch.image_size)
    session = session_of(deploy(model), x)
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert difference(torch.from_numpy(output), model(x)) <= 1e-4


def test_every_absorbing_mixer_is_normalised_by_a_batch_norm() -> None:
    for name in MIXERS:
        if hasattr(MIXERS[name], "absorb_norm_"):
            assert MIXERS[name].norm == "batch"
            assert list(inspect.signature(MIXERS[name].absorb_norm_).parameters) == ["self", "scale", "shift"]


def test_traces_see_an_ordinary_linear_layer() -> None:
    fast, x = InferenceLinear.of(nn.Linear(64, 48)).requires_grad_(False), torch.randn(2500, 64)
    graph = torch.export.export(fast, (x,)).graph
    assert not [n for n in graph.nodes if "mkldnn" in str(n.target)]
    assert torch.allclose(torch.jit.trace(fast, x)(x), F.linear(x, fast.weight, fast.bias), atol=1e-5)
