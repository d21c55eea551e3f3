"""Slicing: what is kept is the most important, wherever its group stands, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem
from nasvit.errors import ConfigError
from nasvit.models import build
from nasvit.pruning import Dense, PlanError, form_of, importance, prepare, slice_weights, uniform
from nasvit.pruning.slicing import best, choose
from tests.pruning_models import make, wake


@pytest.fixture(scope="module")
def dense() -> Dense:
    return prepare(make("vit"))


def test_best_are_the_highest_in_ascending_order_and_equal_scores_keep_the_first() -> None:
    assert best(torch.tensor([1.0, 5.0, 2.0, 5.0]), keep=2, of=4).tolist() == [1, 3]
    assert best(torch.zeros(4), keep=2, of=4).tolist() == [0, 1]
    assert best(None, keep=3, of=4).tolist() == [0, 1, 2]


def test_mlp_neurons_that_do_nothing_go_without_a_trace(dense: Dense) -> None:
    model = make("vit")
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[:, ::2] = 0  # every second neuron is silent
    mine = prepare(model)
    image = torch.randn(1, 3, 32, 32)
    scores = importance(mine, image, torch.tensor([1])).scores
    width = mine.plan.blocks[1].mlp_dim // 2
    plan = replace(mine.plan, blocks=(mine.plan.blocks[0], replace(mine.plan.blocks[1], mlp_dim=width), mine.plan.blocks[2]))
    with torch.no_grad():
        torch.testing.assert_close(slice_weights(mine, plan, scores)(image), model(image), atol=1e-5, rtol=1e-5)


def test_heads_that_do_nothing_go_without_a_trace_by_every_criterion() -> None:
    for criterion in ("taylor", "magnitude"):
        model = make("deit3")
        with torch.no_grad():
            for block in model.blocks:
                block.attn.proj.weight[:, 16:32] = 0  # the second of three heads
                block.attn.qkv.weight.view(3, 3, 16, 48)[:, 1] *= 0.01
        mine = prepare(model)
        image = torch.randn(1, 3, 32, 32)
        scores = importance(mine, image, criterion=criterion).scores
        plan = mine.plan.with_blocks(heads=2)
        assert choose(plan, scores)["heads.1"].tolist() == [0, 2]
        with torch.no_grad():
            torch.testing.assert_close(slice_weights(mine, plan, scores)(image), model(image), atol=1e-5, rtol=1e-5)


def test_a_narrower_head_keeps_the_dense_scale(dense: Dense) -> None:
    pruned = slice_weights(dense, dense.plan.with_blocks(head_dim=8), {})
    assert pruned.blocks[0].attn.scale == 16**-0.5


def test_rotary_channels_stay_in_pairs_and_alike_in_all_heads() -> None:
    mine = prepare(make("eva02"))
    scores = {f"qk.{i}": torch.rand(48) for i in range(3)}
    plan = mine.plan.with_blocks(head_dim=8)
    kept = choose(plan, scores)["qk.0"].view(3, 8) - torch.arange(0, 48, 16)[:, None]
    assert (kept == kept[0]).all()
    assert (kept[0].view(-1, 2)[:, 0] % 2 == 0).all() and (kept[0].view(-1, 2)[:, 1] == kept[0].view(-1, 2)[:, 0] + 1).all()
    with pytest.raises(PlanError, match="odd"):
        slice_weights(mine, mine.plan.with_blocks(head_dim=7), {})


def test_the_residual_stream_is_cut_alike_in_every_tensor(dense: Dense) -> None:
    plan = replace(dense.plan, embed_dims=(32,))
    chosen = choose(plan, {"embed.0": torch.arange(48.0)})["embed.0"]
    assert chosen.tolist() == list(range(16, 48))
    pruned = slice_weights(dense, plan, {"embed.0": torch.arange(48.0)})
    state = dense.state
    torch.testing.assert_close(pruned.blocks[2].norm1.weight, state["blocks.2.norm1.weight"][16:])
    torch.testing.assert_close(pruned.head.weight, state["head.weight"][:, 16:])
    torch.testing.assert_close(pruned.pos_embed, state["pos_embed"][..., 16:])


def test_slicing_leaves_the_dense_network_as_it_was(dense: Dense) -> None:
    before = {n: v.clone() for n, v in dense.state.items()}
    pruned = slice_weights(dense, uniform(dense.plan.source, keep=0.5), {})
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    whole = slice_weights(dense, dense.plan, {})
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[n]) for n, v in dense.state.items())


def test_a_plan_of_another_model_is_refused(dense: Dense) -> None:
    other = prepare(make("deit3"))
    with pytest.raises(PlanError, match="is of"):
        slice_weights(dense, other.plan, {})


@pytest.mark.parametrize(("values", "said"), [({"heads": 4}, "block 0: heads 4"), ({"mlp_dim": 1000}, "block 0: mlp_dim 1000"),
                                              ({"head_dim": 17}, "block 0: head_dim 17")])
def test_more_than_the_dense_model_has_is_refused_by_block(dense: Dense, values: dict[str, int], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        slice_weights(dense, dense.plan.with_blocks(**values), {})


def test_operators_that_cannot_work_in_a_block_are_refused(dense: Dense) -> None:
    with pytest.raises(PlanError, match="block 0: slow_fast"):
        slice_weights(dense, dense.plan.with_blocks(keep_ratio=0.5, operator="slow_fast"), {})
    first, *rest = dense.plan.with_blocks(keep_ratio=0.5, operator="topk_fuse").blocks
    none = replace(dense.plan, operator="topk_fuse", blocks=(replace(first, heads=0, head_dim=0), *rest))
    with pytest.raises(PlanError, match="block 0: topk_fuse"):
        slice_weights(dense, none, {})
    with pytest.raises(PlanError, match="at least half"):
        slice_weights(dense, dense.plan.with_blocks(keep_ratio=0.25, operator="merge"), {})


OF_HEADS = {"window": {"window_size": 3, "shift": True}, "fsla": {"cluster_depth": 2, "overlap": 2}, "slide": {"kernel_size": 3},
            "sra": {"reduction": 2}, "global": {}, "cross_window": {"split_size": 2}}


def with_heads(*blocks: dict[str, int]) -> Dense:
    """One stage of 16 channels, a block for each mapping from mixers to their heads; every parameter has a value."""
    made = tuple(Block(mixers=tuple(MixerSpec.of(n, num_heads=h, **OF_HEADS[n]) for n, h in heads.items()), mlp_dim=24) for heads in blocks)
    model = build(Arch(image_size=(16, 16), in_channels=3, num_classes=5, stem=Stem(kind="conv", stride=2),
                       stages=(Stage(embed_dim=16, blocks=made),)), seed=0)
    return prepare(wake(model))


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
@pytest.mark.parametrize("mixers", [("window", "fsla"), ("slide",), ("sra",), ("global",), ("cross_window", "fsla"), ("window", "slide")])
def test_heads_of_an_arch_that_do_nothing_go_without_a_trace_and_alone(mixers: tuple[str, ...], criterion: str) -> None:
    dense = with_heads(dict.fromkeys(mixers, 4))
    silent = torch.tensor([1, 3])  # of either half, as stripes both ways need it
    with torch.no_grad():
        for name, value in dense.module.named_parameters():
            if name.endswith("proj.weight") and "mixers" in name:
                value.view(16, 4, 4)[:, silent] = 0
            elif name.endswith((".q.weight", "kv.weight")):
                value *= 20  # attention that is far from even, so that its scale matters
                value.view(-1, 4, 4, 16)[:, silent] *= 0.01
    image = torch.randn(2, 3, 16, 16)
    pruned = slice_weights(dense, dense.plan.with_blocks(heads=2), importance(dense, image, criterion=criterion).scores)
    (block,) = form_of(pruned).stages[0].blocks
    assert all(m.kwargs["num_heads"] == 2 and m.kwargs["head_dim"] == 4 for m in block.mixers)
    with torch.no_grad():
        torch.testing.assert_close(pruned(image), dense.module(image), atol=1e-5, rtol=1e-5)
    pruned(image).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pruned.parameters())


def test_a_narrower_stage_of_an_arch_keeps_its_heads_and_says_no_head_dim_where_they_fill_it() -> None:
    dense = with_heads({"window": 4})
    narrow = replace(dense.plan, embed_dims=(8,))
    for plan, said in ((narrow, {"num_heads": 4, "head_dim": 4}), (narrow.with_blocks(heads=2), {"num_heads": 2}),
                       (dense.plan.with_blocks(heads=1), {"num_heads": 1, "head_dim": 4}), (dense.plan, {"num_heads": 4})):
        (block,) = form_of(slice_weights(dense, plan, {})).stages[0].blocks
        assert block.mixers[0].kwargs == {**OF_HEADS["window"], **said}


def test_heads_that_two_mixers_of_a_block_cannot_both_lose_stay() -> None:
    dense = with_heads({"global": 4}, {"window": 4, "fsla": 2}, {"cross_window": 4})
    assert [b.cut_heads for b in dense.layout.blocks] == [True, False, True]
    one, two, three = dense.plan.blocks
    with pytest.raises(PlanError, match=r"block 1: heads 2 is not possible; accepted: 4$"):
        slice_weights(dense, replace(dense.plan, blocks=(one, replace(two, heads=2), three)), {})
    with pytest.raises(PlanError, match="block 2: heads 3 is not possible; accepted: 4, a smaller multiple of 2"):
        slice_weights(dense, replace(dense.plan, blocks=(one, two, replace(three, heads=3))), {})
    both = form_of(slice_weights(dense, replace(dense.plan, embed_dims=(12,)), {})).stages[0].blocks[1].mixers
    assert [(m.kwargs["num_heads"], m.kwargs["head_dim"]) for m in both] == [(4, 4), (2, 8)]


def test_a_stage_of_an_arch_keeps_a_block() -> None:
    mine = prepare(make("slide_pvtv2"))
    gone = tuple(replace(b, heads=0, head_dim=0, mlp_dim=0) if form.stage == 3 else b
                 for b, form in zip(mine.plan.blocks, mine.layout.blocks, strict=True))
    with pytest.raises(PlanError, match="block 3: heads 0"):
        slice_weights(mine, replace(mine.plan, blocks=gone), {})


def test_uniform_refuses_unknown_parts(dense: Dense) -> None:
    with pytest.raises(ConfigError, match="accepted: heads"):
        uniform(dense.plan.source, keep=0.5, parts=("legs",))


@pytest.mark.parametrize(("scores", "said"), [
    ({"embed": torch.rand(48)}, "scores of embed, which is no group"), ({"embed.0": torch.rand(3)}, r"must be 48 finite numbers.*\(3,\)"),
    ({"mlp.1": torch.full((192,), float("nan"))}, "with what is no number")])
def test_scores_of_other_groups_or_of_no_numbers_are_refused(dense: Dense, scores: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        slice_weights(dense, uniform(dense.plan.source, keep=0.5), scores)


@pytest.mark.parametrize("values", [{"keep_ratio": 0.5}, {"keep_ratio": 0.0, "operator": "merge"}, {"keep_ratio": 2.0, "operator": "merge"},
                                    {"granule": 0}])
def test_what_a_uniform_plan_would_not_do_is_refused(dense: Dense, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        uniform(dense.plan.source, keep=0.5, **values)
