"""Slow-fast token evolution: what each function promises."""

from __future__ import annotations

import pytest
import torch

from nasvit.arch import Block, MixerSpec, keep_count
from nasvit.models import tokens


def scores(batch: int = 2, n: int = 10) -> torch.Tensor:
    return torch.rand(batch, n, dtype=torch.float64) + 0.1


@pytest.mark.parametrize(("n", "ratio", "k"), [(49, 0.5, 24), (16, 0.5, 8), (196, 0.7, 137), (4, 0.1, 1)])
def test_the_count_of_kept_tokens_is_truncated_and_at_least_one(n: int, ratio: float, k: int) -> None:
    assert keep_count(n, ratio) == k


def test_the_highest_scores_are_kept() -> None:
    score = scores()
    selection = tokens.select(score, keep=4)
    assert selection.kept.sort(dim=1).values.equal(score.topk(4, dim=1).indices.sort(dim=1).values)


def test_the_representative_is_the_mean_of_the_placeholders_weighted_by_score() -> None:
    score, x = scores(), torch.randn(2, 10, 3, dtype=torch.float64)
    selection = tokens.select(score, keep=4)
    for image in range(2):
        rest = [i for i in range(10) if i not in selection.kept[image].tolist()]
        weights = score[image, rest] / score[image, rest].sum()
        assert torch.allclose(tokens.slow_path(x, selection)[image, -1], (weights[:, None] * x[image, rest]).sum(0))


def test_kept_tokens_get_their_change_and_placeholders_the_representatives() -> None:
    score, x, change = scores(), torch.randn(2, 10, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    selection = tokens.select(score, keep=4)
    out = tokens.restore(x, change, selection)
    for image in range(2):
        kept = selection.kept[image].tolist()
        for i in range(10):
            row = kept.index(i) if i in kept else 4
            assert torch.equal(out[image, i], x[image, i] + change[image, row])


def test_carrying_the_representative_is_taking_it_afresh() -> None:
    score, x, change = scores(), torch.randn(2, 10, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    selection = tokens.select(score, keep=4)
    moved = tokens.slow_path(tokens.restore(x, change, selection), selection)
    assert torch.allclose(moved, tokens.slow_path(x, selection) + change)


def test_placeholders_keep_their_score() -> None:
    score, row = scores(), scores(n=4)
    selection = tokens.select(score, keep=4)
    updated = tokens.update_score(score, row, tradeoff=0.5, selection=selection)
    for image in range(2):
        kept = selection.kept[image].tolist()
        for i in range(10):
            expected = 0.5 * score[image, i] + 0.5 * row[image, kept.index(i)] if i in kept else score[image, i]
            assert torch.isclose(updated[image, i], expected)


def test_the_score_gets_its_gradient_through_the_representative() -> None:
    score = scores().requires_grad_()
    tokens.slow_path(torch.randn(2, 10, 3, dtype=torch.float64), tokens.select(score, keep=4)).sum().backward()
    assert score.grad is not None and score.grad.abs().sum() > 0


def test_a_segment_is_a_run_of_one_ratio() -> None:
    ratios = [1.0, 1.0, 0.5, 0.5, 0.7, 1.0, 0.5]
    blocks = tuple(Block(mixers=(MixerSpec.of("catm"),), mlp_dim=4, keep_ratio=r) for r in ratios)
    assert tokens.segments(blocks) == ((0, 2, 1.0), (2, 4, 0.5), (4, 5, 0.7), (5, 6, 1.0), (6, 7, 0.5))


def test_without_a_representative_placeholders_pass_by_unchanged() -> None:
    score, x, change = scores(), torch.randn(2, 10, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    selection = tokens.select(score, keep=4, representative=False)
    assert tokens.slow_path(x, selection).shape == (2, 4, 3)
    still = (tokens.restore(x, change, selection) == x).all(dim=-1)
    assert still.sum(dim=1).tolist() == [6, 6]
    assert not still.gather(1, selection.kept).any()


def test_a_learned_share_of_the_class_row_gets_its_gradient_from_the_next_representative() -> None:
    score, row, x = scores(), scores(n=4), torch.randn(2, 10, 3, dtype=torch.float64)
    share = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    updated = tokens.update_score(score, row, tradeoff=share, selection=tokens.select(score, keep=4))
    assert torch.equal(updated.detach(), tokens.update_score(score, row, tradeoff=0.5, selection=tokens.select(score, keep=4)))
    tokens.slow_path(x, tokens.select(updated, keep=2))[:, -1].sum().backward()
    assert share.grad is not None and share.grad.any()


def test_tokens_whose_scores_vanish_in_half_precision_give_a_representative_of_nothing_and_no_nan() -> None:
    score = torch.zeros(1, 4, dtype=torch.float16)
    score[0, 0] = 1
    weights = tokens.select(score, keep=1).weights
    assert weights is not None and torch.equal(weights, torch.zeros(1, 1, 4, dtype=torch.float16))
