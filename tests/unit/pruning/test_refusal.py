"""What pruning does not know is refused by name, and the model stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

from nasvit.arch import MixerSpec
from nasvit.models import build
from nasvit.models.mixers import MIXERS
from nasvit.models.mixers.global_ import GlobalMixer
from nasvit.pruning import UnsupportedModelError, prepare, slice_weights
from tests.pruning_models import TIMM, ensure, make, timm

ensure()


class Strange(nn.Linear):
    """A layer nobody knows."""


def _strange_layer(model: Any) -> None:
    model.blocks[1].mlp.fc1 = Strange(48, 192)


def _replaced_forward(model: Any) -> None:
    model.blocks[1].attn.forward = MethodType(lambda self, x, **_: x, model.blocks[1].attn)


def _hook(model: Any) -> None:
    model.blocks[1].register_forward_hook(lambda module, inputs, out: out * 2)


def _added_parameter(model: Any) -> None:
    model.blocks[1].extra = nn.Parameter(torch.zeros(3))


def _scale(model: Any) -> None:
    model.blocks[1].attn.scale = 0.01


def _subclass(model: Any) -> None:
    model.blocks[1].__class__ = type("MyBlock", (type(model.blocks[1]),), {})


def _normed_weight(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.blocks[1].mlp.fc1)


@pytest.mark.parametrize("change", [_strange_layer, _replaced_forward, _hook, _added_parameter, _subclass, _normed_weight, _scale])
def test_a_changed_model_is_refused_naming_the_module_and_stays_as_it_was(change: Callable[[Any], None]) -> None:
    model = make("vit")
    change(model)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1"):
        prepare(model)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert list(model.state_dict()) == list(before)


def test_what_no_module_shows_is_found_by_comparing_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("vit")
    inner = type(model)._pos_embed
    monkeypatch.setattr(type(model), "_pos_embed", lambda self, x: inner(self, x) * 1.01)
    with pytest.raises(UnsupportedModelError, match="differs"):
        prepare(model)


def test_a_mixer_of_another_package_is_refused_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIXERS._items, "ripple", GlobalMixer)
    arch = make("isotropic").arch
    block = replace(arch.stages[0].blocks[1], mixers=(MixerSpec.of("ripple", num_heads=5),))
    blocks = (arch.stages[0].blocks[0], block, *arch.stages[0].blocks[2:])
    with pytest.raises(UnsupportedModelError, match=r"stages\.0\.blocks\.1\.mixers\.0 \(ripple"):
        prepare(build(replace(arch, stages=(replace(arch.stages[0], blocks=blocks),)), seed=0))


@pytest.mark.parametrize("name", ["resnet18", "vit_relpos_small_patch16_224", "convit_tiny"])
def test_other_families_are_refused_by_their_class(name: str) -> None:
    model = timm.create_model(name)
    with pytest.raises(UnsupportedModelError, match=type(model).__name__):
        prepare(model)


def test_parallel_blocks_are_refused_by_name() -> None:
    model = timm.create_model("vit_pwee_patch16_reg1_gap_256", img_size=32, depth=2, embed_dim=48, num_heads=3)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0 \(ParallelScalingBlock\)"):
        prepare(model)


@pytest.mark.parametrize("case", sorted(TIMM))
def test_preparing_changes_no_mode_no_tensor_and_no_gradient(case: str) -> None:
    model = make(case).train()
    model.blocks[0].eval() if hasattr(model, "blocks") else None
    modes = [m.training for m in model.modules()]
    before = {n: v.clone() for n, v in model.state_dict().items()}
    prepare(model, image_size=(64, 64) if case == "pvt" else None)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_copy_shares_no_memory_with_the_model() -> None:
    model = make("vit")
    dense = prepare(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert dense.module.blocks[0].mlp.fc1.weight.abs().sum() > 0


def test_two_prepared_models_do_not_know_of_each_other() -> None:
    one, two = prepare(make("vit")), prepare(make("deit3"))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = one.module(image)
        two.module(torch.randn(3, 3, 32, 32))
        assert torch.equal(one.module(image), before)


def test_an_owned_dense_network_is_prepared_again_and_a_pruned_one_is_refused() -> None:
    dense = prepare(make("vit"))
    again = prepare(dense.module)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert again.plan == dense.plan and torch.equal(again.module(image), dense.module(image))
        next(again.module.parameters()).zero_()
    assert dense.module is not again.module and next(dense.module.parameters()).abs().sum() > 0
    pruned = slice_weights(dense, dense.plan.with_blocks(mlp_dim=40), {})
    with pytest.raises(UnsupportedModelError, match="was pruned before"):
        prepare(pruned)


@pytest.mark.parametrize("dynamic", [False, True])
def test_images_that_a_model_pads_are_refused_by_name(dynamic: bool) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **{**TIMM["vit"][1], "img_size": 36}, dynamic_img_pad=True, dynamic_img_size=dynamic)
    with pytest.raises(UnsupportedModelError, match=r"patch_embed \(images of 36x36 px padded to whole patches\)"):
        prepare(model)
