"""The inference form of a pruned plain transformer, whatever is left of its blocks: the same logits, and less to compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nasvit.cost import count
from nasvit.models.deploy import deploy
from nasvit.pruning.dense import Dense, build, check, input_shape, prepare, slice_weights
from nasvit.pruning.plan import Plan
from tests.pruning_models import timm, wake

MIXED, SILENT = ({"heads": 0, "head_dim": 0}, {"heads": 0, "head_dim": 0, "mlp_dim": 0})
"""A block without its attention, and one of which nothing is left."""


@pytest.fixture(scope="module")
def dense() -> Dense:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, depth=6, embed_dim=48, num_heads=3, num_classes=7)
    return prepare(model, check=False)


def planned(dense: Dense, operator: str, keeps: list[float], gone: dict[int, dict[str, int]]) -> Plan:
    ratios = zip(dense.plan.blocks, keeps, strict=True)
    blocks = tuple(replace(block, keep_ratio=keep, **gone.get(i, {})) for i, (block, keep) in enumerate(ratios))
    plan = replace(dense.plan, operator=operator, blocks=blocks)
    check(plan)
    return plan


@pytest.mark.parametrize("gone", [{5: SILENT}, {5: MIXED}, {4: MIXED, 5: SILENT}, {3: MIXED, 4: MIXED, 5: MIXED}, {2: MIXED}, {}],
                         ids=lambda gone: "-".join(map(str, gone)) or "none")
@pytest.mark.parametrize(("operator", "keeps"), [
    ("none", [1.0] * 6), ("merge", [0.9, 0.6, 0.6, 0.6, 0.6, 0.6]), ("topk_fuse", [0.9, 0.6, 0.6, 0.6, 0.6, 0.6]),
    ("slow_fast", [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]), ("slow_fast", [1.0, 1.0, 0.75, 0.75, 0.5, 0.5]),
    ("slow_fast", [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]), ("slow_fast", [1.0, 0.5, 0.5, 1.0, 1.0, 1.0]),
    ("slow_fast", [1.0, 0.5, 0.5, 0.5, 1.0, 0.5])])
def test_what_the_head_does_not_read_is_not_computed_and_the_logits_stay(
        dense: Dense, operator: str, keeps: list[float], gone: dict[int, dict[str, int]]) -> None:
    plan = planned(dense, operator, keeps, gone)
    model = wake(build(plan)).eval()
    ready = deploy(model)
    images = torch.randn(3, *input_shape(plan), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = model(images), ready(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("gone", [{5: SILENT}, {4: MIXED, 5: MIXED}])
def test_behind_the_last_attention_only_what_is_read_is_computed(dense: Dense, gone: dict[int, dict[str, int]]) -> None:
    plan = planned(dense, "none", [1.0] * 6, gone)
    shape, last = (1, *input_shape(plan)), max(i for i, block in enumerate(plan.blocks) if block.heads)
    saved = count(build(plan), input_shape=shape).macs - count(deploy(build(plan)), input_shape=shape).macs
    form, width, rows = plan.blocks[last], plan.embed_dims[0], dense.layout.tokens - dense.layout.read
    inner = form.heads * form.head_dim
    mlps = sum(2 * width * block.mlp_dim for block in plan.blocks[last:])
    assert saved >= 0.95 * rows * (2 * width * inner + 2 * (rows + 2) * inner + mlps)


@pytest.mark.parametrize("operator", ["none", "merge"])
def test_a_distilled_transformer_without_classes_gives_the_mean_of_both_tokens(operator: str) -> None:
    model = wake(timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, depth=2, embed_dim=48, num_heads=3, num_classes=0))
    dense = prepare(model)
    plan = dense.plan if operator == "none" else dense.plan.with_blocks(keep_ratio=0.5, operator=operator)
    images = torch.randn(2, *input_shape(plan), generator=torch.Generator().manual_seed(0))
    small = slice_weights(dense, plan, {})
    with torch.inference_mode():
        if operator == "none":
            assert (small(images) - model(images)).abs().max() <= 1e-6 * model(images).abs().max()
        torch.testing.assert_close(deploy(small)(images), small(images), atol=1e-5, rtol=1e-4)
        assert small(images).shape == (2, 48)
