"""count(): what is counted, refused, and left alone."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from nasvit.arch import Arch
from nasvit.cost import FREE, HANDLES, count, einsum_macs
from nasvit.errors import MeasurementError, UnsupportedOpError
from nasvit.models.build import build
from nasvit.torchvision_ops import ensure


class Op(nn.Module):
    """Any function of a tensor as a module."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Product(nn.Module):
    """Reports 7 multiply-adds that a trace cannot see."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2

    def product_macs(self) -> int:
        return 7


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 5))


def test_an_unknown_operator_is_refused_with_its_module_and_what_to_do() -> None:
    module = nn.Sequential(nn.Identity(), nn.Sequential(Op(lambda x: torch.cdist(x, x))))
    with pytest.raises(UnsupportedOpError, match=r"aten::cdist in 1\.0\. Register a handle"):
        count(module, input_shape=(1, 3, 8, 8))


def test_rms_norms_and_maxima_are_counted_as_the_conventions_say() -> None:
    for norm, each in ((nn.RMSNorm(8), 3), (nn.RMSNorm(8, elementwise_affine=False), 2), (Op(lambda x: x.amax(dim=1)), 0),
                       (Op(lambda x: x.amin(dim=1)), 0)):
        assert count(norm, input_shape=(1, 5, 8)).macs == each * 5 * 8


def test_no_operator_is_both_counted_and_free() -> None:
    assert not FREE & set(HANDLES.names())


def test_the_batch_of_the_shape_does_not_change_the_count() -> None:
    assert count(net(), input_shape=(1, 3, 8, 8)) == count(net(), input_shape=(32, 3, 8, 8))


def test_counting_leaves_modes_statistics_hooks_and_random_state_alone() -> None:
    module = net().train()
    module[1].eval()
    torch.manual_seed(3)
    state, random_state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    count(module, input_shape=(2, 3, 8, 8))
    assert [m.training for m in module] == [True, False, True, True, True, True] and module.training
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_module_that_fails_is_named_with_the_shape_and_left_without_hooks() -> None:
    module = net()
    with pytest.raises(MeasurementError, match=r"Sequential .*\(1, 5, 8, 8\)"):
        count(module, input_shape=(4, 5, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert module.training


def test_a_network_cannot_be_counted_on_other_images_than_its_own(tiny_arch: Arch) -> None:
    with pytest.raises(MeasurementError, match=r"cannot be counted .*\(1, 7, 16, 16\): this network takes .*, not \(7, 16, 16\)"):
        count(build(tiny_arch, seed=0), input_shape=(1, 7, 16, 16))


def test_nothing_is_printed_or_logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
                                      recwarn: pytest.WarningsRecorder) -> None:
    module = nn.Sequential(net())
    module.unused = nn.Linear(2, 2)  # type: ignore[assignment]
    module.forward = lambda x: module[0](x)  # type: ignore[method-assign]
    with caplog.at_level(logging.DEBUG):
        count(module, input_shape=(1, 3, 8, 8))
    assert capfd.readouterr() == ("", "") and not caplog.records and not recwarn.list


def test_products_that_a_module_reports_are_added_to_it_and_its_parents() -> None:
    cost = count(nn.Sequential(nn.Sequential(Product(), Product()), nn.Identity()), input_shape=(2, 3, 4, 4))
    assert (cost.macs, cost.by_operator) == (14, {"product": 14})
    assert (cost.by_module["0"], cost.by_module["0.1"], cost.by_module["1"]) == (14, 7, 0)


def test_a_shared_parameter_counts_once_and_a_frozen_one_too() -> None:
    first = nn.Linear(4, 4, bias=False)
    second = nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    first.weight.requires_grad_(False)
    cost = count(nn.Sequential(first, second), input_shape=(1, 2, 4))
    assert (cost.params, cost.macs) == (16, 2 * 2 * 16)


def test_by_module_and_by_operator_both_sum_to_the_total() -> None:
    cost = count(net(), input_shape=(1, 3, 8, 8))
    assert sum(cost.by_operator.values()) == cost.macs == cost.by_module[""]
    assert sum(cost.by_module[str(i)] for i in range(6)) == cost.macs


@pytest.mark.parametrize(("function", "macs"), [
    (lambda x: x @ x.transpose(-1, -2), 2 * 3 * 3 * 4),
    (lambda x: x[0] @ x.transpose(-1, -2), 2 * 3 * 3 * 4),  # the first operand is broadcast
    (lambda x: torch.bmm(x[0:1], x[0:1].transpose(1, 2)), 3 * 3 * 4),
    (lambda x: torch.baddbmm(torch.zeros(1), x.flatten(0, -3), x.flatten(0, -3).transpose(1, 2)), 2 * 3 * 3 * 4),
    (lambda x: torch.einsum("bnc,bmc->bnm", x[0], x[0]), 2 * 3 * 3 * 4),
    (lambda x: x.softmax(-1).sort(-1)[0].roll(1, -1) * 2, 0),
])
def test_products_of_matrices_are_exact(function, macs: int) -> None:  # type: ignore[no-untyped-def]
    def run(x: Tensor) -> Tensor:
        return function(x if "einsum" in function.__code__.co_names else x[0])

    assert count(Op(run), input_shape=(1, 2, 3, 4)).macs == macs


@pytest.mark.parametrize(("equation", "shapes", "macs"), [
    ("bhnd,bhmd->bhnm", [[2, 3, 5, 7], [2, 3, 11, 7]], 2 * 3 * 5 * 7 * 11),
    ("...nd,...md->...nm", [[2, 3, 5, 7], [3, 11, 7]], 2 * 3 * 5 * 7 * 11),
    ("ij,kl->il", [[2, 3], [5, 7]], 2 * 7),  # j and k are summed before the product
    ("bij,ij->bij", [[1, 3, 5], [3, 5]], 15),
    ("ij->ji", [[2, 3]], 0),
])
def test_einsum_is_exact(equation: str, shapes: list[list[int]], macs: int) -> None:
    assert einsum_macs(equation, shapes) == macs


def test_an_einsum_of_three_operands_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="in pairs"):
        einsum_macs("ij,jk,kl->il", [[2, 3], [3, 4], [4, 5]])


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_fused_attention_on_or_off_costs_the_same(name: str) -> None:
    ensure()
    import timm

    module = timm.create_model(name, pretrained=False)
    counts = {}
    for fused in (True, False):
        for each in module.modules():
            if hasattr(each, "fused_attn"):
                each.fused_attn = fused
        counts[fused] = count(module, input_shape=(1, 3, 224, 224))
    assert counts[True].macs == counts[False].macs
    assert "scaled_dot_product_attention" in counts[True].by_operator
    assert "scaled_dot_product_attention" not in counts[False].by_operator
