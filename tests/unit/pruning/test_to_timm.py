"""A pruned ViT goes back into timm where the shapes allow, and says what stands in the way where they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nasvit.pruning import PlanError, prepare, slice_weights, to_timm
from tests.pruning_models import TIMM, make, timm


@pytest.mark.parametrize("case", ["vit", "deit_distilled", "deit3", "dinov2_registers", "swiglu", "clip", "post_norm", "mean_pooled"])
def test_timms_module_computes_the_same_with_fewer_heads_channels_neurons_and_blocks(case: str) -> None:
    dense = prepare(make(case), name=f"timm:{TIMM[case][0]}")
    plan = replace(dense.plan.with_blocks(heads=2, head_dim=12, mlp_dim=40), embed_dims=(24,))
    plan = replace(plan, blocks=(plan.blocks[0], replace(plan.blocks[1], heads=0, head_dim=0, mlp_dim=0), plan.blocks[2]))
    pruned = slice_weights(dense, plan, {})
    model = to_timm(pruned)
    assert type(model).__module__.startswith("timm.")
    image = torch.randn(1, 3, *plan.source.options["image_size"])
    with torch.no_grad():
        torch.testing.assert_close(model(image), pruned(image), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("values", "said"), [({"heads": 2}, "are not the width"),
                                              ({"keep_ratio": 0.5, "operator": "topk_fuse"}, "topk_fuse")])
def test_what_stands_in_the_way_is_said(values: dict[str, float], said: str) -> None:
    dense = prepare(make("vit"), name="timm:vit_tiny_patch16_224")
    with pytest.raises(PlanError, match=said):
        to_timm(slice_weights(dense, dense.plan.with_blocks(**values), {}))


def test_other_families_are_refused() -> None:
    with pytest.raises(PlanError, match="family swin"):
        to_timm(prepare(make("swin")).module)


@pytest.mark.parametrize(("case", "name", "said"), [("vit", None, "timm has no model of this name"),
                                                    ("vit", "timm:deit3_small_patch16_224", "does not take the weights"),
                                                    ("deit_distilled", "timm:deit_tiny_patch16_224", "does not take the weights")])
def test_a_name_that_is_not_the_models_is_said_not_raised_by_timm(case: str, name: str | None, said: str) -> None:
    dense = prepare(make(case), name=name)
    with pytest.raises(PlanError, match=said):
        to_timm(slice_weights(dense, dense.plan.with_blocks(mlp_dim=40), {}))


def test_a_model_without_positions_is_refused_where_its_name_says_that_it_has_them() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **TIMM["vit"][1], pos_embed="none")
    with pytest.raises(PlanError, match=r"does not take the weights.*pos_embed"):
        to_timm(prepare(model, name="timm:vit_tiny_patch16_224").module)
