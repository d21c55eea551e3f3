"""LeViT's MLP and the attention that halves the grid: what each promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nasvit.arch import Arch, Block, Head, MixerSpec, Stage, Stem
from nasvit.errors import ArchError
from nasvit.models import build
from nasvit.models.levit import LevitDownsample, LevitMlp, halved


def downsample(**options: Any) -> LevitDownsample:
    torch.manual_seed(0)
    made = LevitDownsample(8, 12, **{"resolution": (5, 6), "key_dim": 4, "class_token": True, "learned_tradeoff": True, **options})
    nn.init.normal_(made.pos_embed)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return made.double().eval()


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (torch.randn(batch, 5, 6, 8, dtype=torch.float64), torch.randn(batch, 1, 8, dtype=torch.float64),
            torch.rand(batch, 30, dtype=torch.float64))


def test_the_grid_is_halved_rounding_up_and_the_class_token_goes_along() -> None:
    x, class_token, score = downsample()(*inputs())
    assert x.shape == (2, 3, 3, 12)
    assert class_token is not None and class_token.shape == (2, 1, 12)
    assert score is not None and score.shape == (2, 9)


def test_every_second_row_and_column_keeps_its_score() -> None:
    assert halved(torch.arange(30.0).unsqueeze(0), (5, 6)).tolist() == [[0, 2, 4, 12, 14, 16, 24, 26, 28]]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_scores_sum_stays(scale: float) -> None:
    x, class_token, score = inputs()
    after = downsample()(x, class_token, score * scale)[2]
    assert after is not None
    torch.testing.assert_close(after.sum(1), (score * scale).sum(1))


def test_a_class_token_that_attends_to_itself_alone_leaves_scores_of_zero_and_no_nan() -> None:
    made = downsample()
    made.q.bn = made.kv.bn = nn.Identity()
    with torch.no_grad():
        made.kv.linear.weight.view(2, 20, 8)[:, :4] = made.q.linear.weight.view(2, 4, 8)  # keys are queries: the largest likes itself best
    x, class_token, score = inputs()
    after, _, left = made(x, 1e4 * class_token, torch.zeros_like(score))
    assert left is not None and not left.any() and after.isfinite().all()


def test_without_a_score_the_attention_of_the_class_token_is_the_first() -> None:
    x, class_token, _ = inputs()
    after = downsample()(x, class_token, None)[2]
    assert after is not None and after.shape == (2, 9) and (after.sum(1) < 1).all()


def test_without_a_class_token_there_is_no_score() -> None:
    x, class_token, score = downsample(class_token=False)(inputs()[0], None, None)
    assert x.shape == (2, 3, 3, 12) and class_token is None and score is None


def test_each_query_attends_to_all_tokens() -> None:
    module, (x, class_token, score) = downsample(), inputs(1)
    x.requires_grad_()
    module(x, class_token, score)[0][0, 0, 0].sum().backward()
    assert x.grad is not None and (x.grad.abs().sum(dim=-1) > 0).all()


def test_the_inference_form_is_the_same_function() -> None:
    module, given = downsample(), inputs()
    before = module(*given)
    for part in list(module.modules()):
        if hasattr(part, "deploy_"):
            part.deploy_()
    assert not [m for m in module.modules() if isinstance(m, nn.BatchNorm1d)]
    for a, b in zip(module(*given), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_mlp_takes_any_leading_axes() -> None:
    mlp, x = LevitMlp(8, hidden_features=16).eval(), torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(mlp(x), mlp(x.flatten(0, 2)).view(x.shape))


def arch(mixer: MixerSpec, *, keep_ratio: float = 1.0, class_token: bool = False) -> Arch:
    block = Block(mixers=(mixer,), mlp_dim=16, mlp="levit")
    return Arch(image_size=(32, 48), in_channels=3, num_classes=5, head=Head(norm="batch"),
                stem=Stem(kind="levit", stride=8, pos_embed=True, class_token=class_token),
                stages=(Stage(embed_dim=8, blocks=(block,)),
                        Stage(embed_dim=12, blocks=(replace(block, keep_ratio=keep_ratio),), downsample="levit")))


@pytest.mark.parametrize(("keep_ratio", "class_token"), [(1.0, False), (1.0, True), (0.5, False), (0.5, True)])
def test_a_network_may_halve_so_with_or_without_a_class_token(keep_ratio: float, class_token: bool) -> None:
    network = build(arch(MixerSpec.of("levit", num_heads=3, key_dim=4), keep_ratio=keep_ratio, class_token=class_token), seed=0)
    logits, own = network.forward_aux(torch.randn(2, 3, 32, 48))
    assert logits.shape == (2, 5)
    assert (own is None) == (not class_token and keep_ratio == 1)
    (logits.square().sum() + (0 if own is None else own.square().sum())).backward()
    assert not [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]


def test_keys_as_wide_as_no_mixer_has_them_are_refused() -> None:
    with pytest.raises(ArchError, match=r"stage 1: downsample levit.*global.*accepted: conv"):
        arch(MixerSpec.of("global", num_heads=2))


@pytest.mark.parametrize(("params", "message"), [
    ({"num_heads": 0, "key_dim": 4}, "a positive integer"), ({"num_heads": 3}, "a divisor"), ({"num_heads": 2, "key_dim": 0}, "key_dim 0"),
    ({"num_heads": 2, "attn_ratio": 1.5}, "attn_ratio"), ({"num_heads": 2, "learned_tradeoff": 1}, "learned_tradeoff")])
def test_impossible_mixer_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        build(arch(MixerSpec.of("levit", **params)), seed=0)
