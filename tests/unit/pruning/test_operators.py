"""Token operators against truths by hand."""

from __future__ import annotations

import pytest
import torch

from nasvit.pruning.operators import fuse, merge


def test_the_two_equal_tokens_are_merged_and_their_size_is_two() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.3], [1.0, 0.0]]])  # token 0 equals token 3
    out, size, places = merge(x, None, x, keep=3, traced=True)
    assert places is not None and out.shape == (1, 3, 2)
    assert places[0, 0] == places[0, 3]
    assert len(places[0].unique()) == 3
    torch.testing.assert_close(out[0, places[0, 0]], torch.tensor([1.0, 0.0]))
    assert sorted(size.flatten().tolist()) == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("tokens", [8, 9])
@pytest.mark.parametrize("keep", [5, 6, 7])
def test_merging_keeps_the_sum_of_all_tokens_weighted_by_size(tokens: int, keep: int) -> None:
    x, size = torch.randn(3, tokens, 4), torch.rand(3, tokens, 1) + 0.5
    out, sizes, places = merge(x, size, torch.randn(3, tokens, 5), keep=keep, traced=True)
    assert places is not None
    assert out.shape == (3, keep, 4)
    torch.testing.assert_close((out * sizes).sum(1), (x * size).sum(1))
    torch.testing.assert_close(sizes.sum(1), size.sum(1))
    for image in range(3):  # every token's new place holds the weighted mean of those that moved there
        for place in range(keep):
            mine = places[image] == place
            mean = (x[image, mine] * size[image, mine]).sum(0) / size[image, mine].sum()
            torch.testing.assert_close(out[image, place], mean)


def test_merging_follows_the_pairs_of_the_published_algorithm() -> None:
    x = torch.randn(1, 10, 6)
    metric = torch.nn.functional.normalize(x, dim=-1)
    nearest, partner = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(-1)
    leaving = nearest[0].topk(3).indices.tolist()
    _, _, places = merge(x, None, x, keep=7, traced=True)
    assert places is not None
    for token in leaving:
        assert places[0, 2 * token] == places[0, 2 * int(partner[0, token]) + 1]


def test_fusing_keeps_the_highest_scores_and_the_weighted_mean_of_the_rest() -> None:
    x = torch.arange(8.0).view(1, 4, 2)
    score = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    out, kept = fuse(x, score, keep=2)
    assert kept.tolist() == [[1, 2]]
    torch.testing.assert_close(out[0, :2], x[0, [1, 2]])
    torch.testing.assert_close(out[0, 2], (0.2 * x[0, 3] + 0.1 * x[0, 0]) / 0.3)


def test_the_operators_let_gradients_through_to_every_token() -> None:
    for run in (lambda x: merge(x, None, x, keep=5)[0], lambda x: fuse(x, x.detach().sum(-1).sigmoid(), keep=4)[0]):
        x = torch.randn(2, 8, 3, requires_grad=True)
        run(x).square().sum().backward()
        assert x.grad is not None and (x.grad.abs().sum(-1) > 0).all()
