"""Stages of blocks: which class rows are computed, and where a score comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem
from nasvit.errors import ArchError
from nasvit.models import build
from nasvit.models.mixers import make_mixer
from nasvit.models.mixers.global_ import GlobalMixer

GLOBAL = MixerSpec.of("global", num_heads=2)
PLAIN, SLOW = (Block(mixers=(GLOBAL,), mlp_dim=16, keep_ratio=ratio) for ratio in (1.0, 0.5))


def arch(*stages: tuple[Block, ...], class_token: bool = True) -> Arch:
    return Arch(image_size=(16, 16), in_channels=3, num_classes=4, stem=Stem(kind="patch", stride=4, class_token=class_token),
                stages=tuple(Stage(embed_dim=8, blocks=blocks, downsample="none" if s else "conv") for s, blocks in enumerate(stages)))


def rows_asked_for(network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    asked: list[bool] = []
    forward = GlobalMixer.forward_tokens

    def watched(self: GlobalMixer, x: torch.Tensor, *, class_row: bool = False) -> Any:
        asked.append(class_row)
        return forward(self, x, class_row=class_row)

    monkeypatch.setattr(GlobalMixer, "forward_tokens", watched)
    network(torch.randn(2, 3, 16, 16))
    return asked


@pytest.mark.parametrize(("stages", "expected"), [
    (((PLAIN, PLAIN, SLOW, SLOW),), [False, True, False, False]),  # the last plain row replaces the one before
    (((PLAIN, PLAIN), (SLOW, SLOW), (SLOW,)), [False, True, True, True, False]),  # rows inside a segment are averaged in
    (((PLAIN,), (SLOW,), (PLAIN,), (SLOW,)), [True, False, True, False]),  # what a plain block replaces need not be computed
    (((PLAIN, PLAIN),), [False, False])])
def test_class_rows_are_computed_where_a_later_selection_uses_them(stages: Any, expected: list[bool],
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_asked_for(build(arch(*stages), seed=0).eval(), monkeypatch) == expected


def test_a_share_below_one_makes_earlier_rows_count(monkeypatch: pytest.MonkeyPatch) -> None:
    averaged = replace(PLAIN, mixers=(MixerSpec.of("global", num_heads=2, score_share=0.5),))
    assert rows_asked_for(build(arch((averaged, averaged, SLOW)), seed=0).eval(), monkeypatch) == [True, True, False]


def test_the_first_score_is_the_row_itself_and_later_ones_are_averaged_in() -> None:
    averaged = replace(PLAIN, mixers=(MixerSpec.of("global", num_heads=2, score_share=0.25),))
    block: Any = build(arch((averaged, SLOW)), seed=0).stages[0].blocks[0]
    score, row = torch.rand(2, 16), torch.rand(2, 16)
    assert block.scored_by(None, row) is row
    assert block.scored_by(score, None) is score
    torch.testing.assert_close(block.scored_by(score, row), 0.75 * score + 0.25 * row)
    plain: Any = build(arch((PLAIN, SLOW)), seed=0).stages[0].blocks[0]
    torch.testing.assert_close(plain.scored_by(score, row), row)


def test_a_stage_without_a_class_token_leaves_no_score() -> None:
    network = build(arch((PLAIN,), (SLOW,), class_token=False), seed=0)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    assert [len(stage.class_attention) for stage in network.stages] == [0, 1]  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("share", [1.5, True, "half"])
def test_an_impossible_share_is_refused(share: Any) -> None:
    with pytest.raises(Exception, match="score_share"):
        build(arch((replace(PLAIN, mixers=(MixerSpec.of("global", num_heads=2, score_share=share),)),)), seed=0)


@pytest.mark.parametrize("share", [-1.0, 1.5, 1, True, "half"])
def test_a_score_share_that_is_no_share_is_refused(share: object) -> None:
    with pytest.raises(ArchError, match=r"accepted: a float from 0\.0 to 1\.0"):
        make_mixer(MixerSpec.of("global", num_heads=2, score_share=share), dim=8, resolution=(4, 4))  # type: ignore[arg-type]
