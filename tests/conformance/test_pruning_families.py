"""Every pruning family: the owned copy is the model, and every plan of it builds, learns, is saved and stays exact."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nasvit.cost import count
from nasvit.models.deploy import deploy
from nasvit.pruning import (
    FAMILIES,
    Dense,
    Plan,
    check,
    dense_plan,
    form_of,
    importance,
    input_shape,
    load,
    prepare,
    save,
    set_fused,
    slice_weights,
    uniform,
)
from nasvit.pruning.slicing import group_sizes
from nasvit.runtimes.onnx_file import write_onnx
from tests.pruning_models import IMAGE_SIZE, MAKERS, SPACES, TIMM, make

CASES = sorted(MAKERS)


@cache
def dense_of(case: str) -> Dense:
    return prepare(make(case), name=case, image_size=IMAGE_SIZE.get(case))


def images_of(dense: Dense, count: int = 2) -> Tensor:
    return torch.randn(count, *input_shape(dense.plan), generator=torch.Generator().manual_seed(3))


def halved(dense: Dense, operator: str = "none") -> Plan:
    return uniform(dense.plan.source, keep=0.5, granule=4, parts=("heads", "head_dim", "mlp", "embed"), operator=operator,
                   keep_ratio=1.0 if operator == "none" else 0.5)


def assert_close(one: Tensor, two: Tensor, tolerance: float = 2e-6) -> None:
    assert float((one - two).abs().max()) <= tolerance * max(1.0, float(one.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_the_owned_copy_is_the_model_and_keeping_everything_is_the_copy(case: str) -> None:
    model, dense = make(case), dense_of(case)
    images = images_of(dense)
    with torch.no_grad():
        whole = slice_weights(dense, dense_plan(dense.plan.source), {})
        assert float(model(images).std()) > 1e-4  # an untrained classifier at zero would agree with anything
        assert_close(model(images), dense.module(images))
        assert torch.equal(dense.module(images), whole(images))
    assert case in TIMM or form_of(whole) == model.arch


@pytest.mark.parametrize("case", CASES)
def test_every_axis_of_every_tensor_is_described_to_its_full_length(case: str) -> None:
    dense = dense_of(case)
    family, sizes = FAMILIES[dense.plan.source.family], group_sizes(dense.plan)
    for name, value in dense.state.items():
        axes = family.axes(dense.plan.source, name)
        assert len(axes) == value.dim(), name
        for size, axis in zip(value.shape, axes, strict=True):
            assert axis is None or sum(sizes[group] for group in axis) == size, name


@pytest.mark.parametrize("case", CASES)
def test_half_of_every_part_is_smaller_has_all_gradients_and_comes_back_from_disk(case: str, tmp_path: Path) -> None:
    dense = dense_of(case)
    images = images_of(dense)
    scores = importance(dense, images, torch.tensor([0, 1]), criterion="magnitude").scores
    pruned = slice_weights(dense, halved(dense), scores)
    shape = (1, *input_shape(dense.plan))
    assert all(b.heads < form.heads or b.heads == form.head_step for b, form in zip(halved(dense).blocks, dense.layout.blocks, strict=True)
               if form.cut_heads)
    assert count(pruned, input_shape=shape).macs < 0.7 * count(dense.module, input_shape=shape).macs
    back = load(*save(pruned, tmp_path))
    assert form_of(back) == form_of(pruned)
    with torch.no_grad():
        assert torch.equal(pruned(images), back(images))
    pruned(images).square().mean().backward()
    silent = [n for n, p in pruned.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    assert silent == [] or case not in TIMM  # networks of an Arch may have an auxiliary classifier, which has its own loss


@pytest.mark.parametrize("case", CASES)
def test_images_of_a_batch_do_not_influence_each_other(case: str) -> None:
    dense = dense_of(case)
    images = images_of(dense, 3)
    for operator in dense.layout.operators:
        pruned = slice_weights(dense, halved(dense, operator), {})
        with torch.no_grad():
            assert_close(pruned(images)[1:2], pruned(images[1:2]), 1e-5)


@pytest.mark.parametrize("case", sorted(TIMM))
def test_fused_and_written_out_attention_agree(case: str) -> None:
    dense = dense_of(case)
    images = images_of(dense)
    for operator in dense.layout.operators:
        pruned = slice_weights(dense, halved(dense, operator), {})
        outputs = []
        for fused in (True, False):
            set_fused(pruned, fused)
            with torch.no_grad():
                outputs.append(pruned(images))
        assert_close(*outputs)


@pytest.mark.parametrize("case", sorted(TIMM))
def test_dropped_attention_mlp_and_blocks_pass_the_residual_stream_by(case: str) -> None:
    dense = dense_of(case)
    blocks = list(dense.plan.blocks)
    droppable = [i for i, b in enumerate(dense.layout.blocks) if b.drop_attention and b.drop_mlp]
    blocks[droppable[0]] = replace(blocks[droppable[0]], mlp_dim=0)
    blocks[droppable[1]] = replace(blocks[droppable[1]], heads=0, head_dim=0)
    blocks[droppable[-1]] = replace(blocks[droppable[-1]], heads=0, head_dim=0, mlp_dim=0)
    pruned = slice_weights(dense, replace(dense.plan, blocks=tuple(blocks)), {})
    with torch.no_grad():
        assert pruned(images_of(dense)).isfinite().all()
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in dense.module.parameters())


@pytest.mark.parametrize("case", sorted(TIMM))
def test_the_inference_form_computes_the_same(case: str) -> None:
    dense = dense_of(case)
    images = images_of(dense)
    for operator in dense.layout.operators:
        pruned = slice_weights(dense, halved(dense, operator), {})
        with torch.no_grad():
            assert_close(pruned(images), deploy(pruned)(images), 2e-5)


@pytest.mark.parametrize("case", ["vit", "deit_distilled", "dinov2_registers", "clip"])
@pytest.mark.parametrize("last", [{}, {"heads": 0, "head_dim": 0}, {"mlp_dim": 0}, {"keep_ratio": 0.3}])
def test_the_inference_form_computes_of_the_last_block_what_the_head_reads(case: str, last: dict[str, float]) -> None:
    dense = dense_of(case)
    for operator in dense.layout.operators:
        plan = halved(dense, operator) if operator != "none" else dense.plan
        if operator == "none" and "keep_ratio" in last:
            continue
        pruned = slice_weights(dense, replace(plan, blocks=(*plan.blocks[:-1], replace(plan.blocks[-1], **last))), {})  # type: ignore[arg-type]
        form, images = deploy(pruned), images_of(dense)
        tokens: list[int] = []
        for name, part in form.blocks[-1].named_modules():  # type: ignore[union-attr, index]
            if name in ("attn.q", "mlp.fc1"):
                part.register_forward_hook(lambda _, given, out, seen=tokens: seen.append(out.shape[1]))
        with torch.no_grad():
            assert_close(pruned(images), form(images), 2e-5)
            assert tokens == [2 if case == "deit_distilled" else 1] * (("heads" not in last) + ("mlp_dim" not in last))
            assert_close(pruned.forward_features(images), form.forward_features(images), 2e-5)  # type: ignore[operator]


@pytest.mark.parametrize("case", CASES)
def test_what_a_family_cannot_do_is_refused_by_its_layout_and_its_check_alike(case: str) -> None:
    dense = dense_of(case)
    for operator, reason in dense.layout.refused.items():
        ratios = [1.0] + [0.5] * (len(dense.plan.blocks) - 1)
        blocks = tuple(replace(b, keep_ratio=r) for b, r in zip(dense.plan.blocks, ratios, strict=True))
        if len(ratios) > 1:
            with pytest.raises(Exception, match=operator):
                check(replace(dense.plan, blocks=blocks, operator=operator))
        assert reason


def test_there_is_a_case_of_every_family() -> None:
    assert {dense_of(case).plan.source.family for case in CASES} == set(FAMILIES)
    assert set(SPACES) <= set(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vit", "deit_distilled", "eva02", "beit", "cait", "swin", "swinv2", "pvt", "levit",
                                  "boat_swin", "boat_cswin", "slide_pvtv2", "evo_deit"])
def test_pruned_networks_export_to_onnx_and_agree(case: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    dense = dense_of(case)
    image = images_of(dense, 1)
    for operator in dense.layout.operators:
        pruned = slice_weights(dense, halved(dense, operator), {})
        assert_close(pruned(image).detach(), _onnx(deploy(pruned), image, tmp_path / f"{operator}.onnx", runtime), 1e-5)


def _onnx(module: nn.Module, image: Tensor, path: Path, runtime: object) -> Tensor:
    write_onnx(module, image, path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])
