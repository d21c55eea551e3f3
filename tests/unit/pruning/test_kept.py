"""Which tokens stay: by hand where it can be said, and consistent with the plan elsewhere."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from nasvit.errors import ConfigError
from nasvit.pruning import Dense, kept_tokens, prepare, slice_weights, uniform
from tests.pruning_models import make


def _finer() -> Dense:
    from tests.pruning_models import timm, wake

    return prepare(wake(timm.create_model("vit_tiny_patch16_224", img_size=96, depth=4, embed_dim=48, num_heads=3, num_classes=7)))


@pytest.mark.parametrize("operator", ["merge", "topk_fuse", "slow_fast"])
def test_every_block_shows_as_many_tokens_as_its_plan_keeps(operator: str) -> None:
    mine = _finer()
    plan = uniform(mine.plan.source, keep=1.0, operator=operator, keep_ratio=0.4)
    maps = kept_tokens(slice_weights(mine, plan, {}), torch.randn(3, 96, 96))
    assert [m.places.shape for m in maps] == [(6, 6)] * 4
    for shown, keep in zip(maps, plan.kept(36), strict=True):
        places = shown.places
        found = len(places.unique()) if operator == "merge" else int((places >= 0).sum())
        if operator == "topk_fuse":  # a token fused earlier may be fused again, and the fused one takes a place
            assert keep - 3 <= found <= keep
        else:
            assert found == keep


def test_tokens_that_went_stay_away() -> None:
    mine = _finer()
    maps = kept_tokens(slice_weights(mine, uniform(mine.plan.source, keep=1.0, operator="topk_fuse", keep_ratio=0.3), {}),
                       torch.randn(3, 96, 96))
    for one, two in pairwise(maps):
        assert ((two.places >= 0) <= (one.places >= 0)).all()
    assert maps[-1].share < maps[0].share


def test_a_marked_patch_is_kept_where_the_class_token_looks_at_it() -> None:
    mine = _finer()
    module = slice_weights(mine, replace(mine.plan, operator="topk_fuse", blocks=tuple(
        replace(b, keep_ratio=0.1) for b in mine.plan.blocks)), {})
    image = torch.randn(1, 3, 96, 96)
    block = module.blocks[0]
    with torch.no_grad():
        _, score = block.attn.forward_scored(block.start_attention(module.embed(image)))
    shown = kept_tokens(module, image)[0].places.flatten()
    assert set(score[0].topk(3).indices.tolist()) == set((shown >= 0).nonzero().flatten().tolist())


def test_evo_vit_shows_its_segments_and_fsla_its_clusters() -> None:
    evo = make("evo_deit")
    maps = kept_tokens(evo, torch.randn(3, 64, 64))
    assert maps and all(m.kind == "kept" and int((m.places >= 0).sum()) == 8 for m in maps)
    fsla = make("fsla_only")
    image = torch.randn(fsla.arch.in_channels, *fsla.arch.image_size)
    clusters = [m for m in kept_tokens(fsla, image) if m.kind == "clusters"]
    for shown in clusters:
        counts = shown.places.flatten().bincount()
        assert (counts == counts[0]).all()
    assert clusters
    dense = prepare(fsla)
    blocks = tuple(replace(b, heads=1) if i == 1 else b for i, b in enumerate(dense.plan.blocks))  # the first that clusters: its first head
    left = [m for m in kept_tokens(slice_weights(dense, replace(dense.plan, blocks=blocks), {}), image) if m.kind == "clusters"]
    assert [m.where for m in clusters[:2]] == ["stage 1, block 2, head 1", "stage 1, block 2, head 2"]
    assert [m.where for m in left] == [m.where for m in clusters[:1] + clusters[2:]] and torch.equal(left[0].places, clusters[0].places)


def test_the_module_is_left_as_it_was_and_networks_that_see_all_tokens_show_nothing() -> None:
    fsla = make("fsla_only").train()
    kept_tokens(fsla, torch.randn(fsla.arch.in_channels, *fsla.arch.image_size))
    assert fsla.training and not any(m._forward_pre_hooks for m in fsla.modules())
    swin = prepare(make("swin"))
    assert kept_tokens(swin.module, torch.randn(3, 64, 64)) == []
    with pytest.raises(ConfigError, match="VisionTransformer"):
        kept_tokens(make("vit"), torch.randn(3, 32, 32))
