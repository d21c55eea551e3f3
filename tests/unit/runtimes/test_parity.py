from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem
from nasvit.models import tokens
from nasvit.models.build import build
from nasvit.models.mixers import fsla
from nasvit.runtimes.parity import Cut, Telling, compare
from tests.unit.runtimes.fakes import Faulty

SHAPE = (2, 1, 16, 16)


def network(*, keep_ratio: float = 1.0, cluster_depth: int = 0) -> nn.Module:
    spec = MixerSpec.of("fsla", num_heads=2, cluster_depth=cluster_depth, overlap=0) if cluster_depth else \
        MixerSpec.of("global", num_heads=2)
    stage = Stage(embed_dim=8, blocks=(Block(mixers=(spec,), mlp_dim=16), Block(mixers=(spec,), mlp_dim=16, keep_ratio=keep_ratio)))
    arch = Arch(image_size=(16, 16), in_channels=1, num_classes=5, stem=Stem(kind="conv", stride=2), stages=(stage,))
    return build(arch, seed=0).eval()


def test_a_network_without_selections_has_outputs_alone() -> None:
    found = compare(network(), runtime=Faulty(), shape=SHAPE, inputs=2, seed=0)
    assert found.agrees and found.error == 0 and found.flipped is None


@pytest.mark.parametrize(("made", "cuts"), [
    (network(keep_ratio=0.5), [Cut(64, 0)]), (network(cluster_depth=2), [Cut(64, 4), Cut(64, 4)]),
    (network(keep_ratio=0.5, cluster_depth=1), [Cut(64, 2), Cut(64, 0), Cut(64, 2)])])
def test_every_selection_and_clustering_is_told_and_changes_no_output(made: nn.Module, cuts: list[Cut]) -> None:
    before, image = (tokens.select, fsla.cluster_order), torch.randn(SHAPE)
    telling = Telling(made)
    with torch.inference_mode():
        out, *selections = telling(image)
        assert torch.equal(out, made(image))
    assert sorted(telling.cuts, key=str) == sorted(cuts, key=str) and len(selections) == len(cuts)
    assert (tokens.select, fsla.cluster_order) == before


def test_a_deviation_where_the_selection_agrees_is_no_agreement() -> None:
    wrong = Faulty(change=lambda outputs: (outputs[0] * 1.01, *outputs[1:]))
    found = compare(network(keep_ratio=0.5), runtime=wrong, shape=SHAPE, inputs=3, seed=0)
    assert not found.agrees and found.unstable == 0 and found.error == pytest.approx(0.01, rel=1e-3)


def test_flipped_tokens_are_counted_and_their_inputs_not_held_to_the_bound() -> None:
    calls = iter(range(100))

    def flip_in_the_first(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits, kept = outputs
        if next(calls) == 0:  # in one image a kept token gives way to one that was not kept
            absent = next(i for i in range(64) if i not in kept[0])
            kept[0, 0] = absent
            logits = logits * 2
        return logits, kept

    found = compare(network(keep_ratio=0.5), runtime=Faulty(change=flip_in_the_first), shape=SHAPE, inputs=4, seed=0)
    assert found.agrees and found.unstable == 0.25
    assert found.flipped == pytest.approx(2 / (4 * 2 * 64))  # one token left, one came, of 64 in each of 8 images
    assert found.worst == pytest.approx(1.0)


def test_the_order_inside_a_cluster_is_no_flip() -> None:
    def turn(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits, *orders = outputs
        return (logits, *(order.unflatten(-1, (4, 16)).flip(-1).flatten(-2) for order in orders))

    found = compare(network(cluster_depth=2), runtime=Faulty(change=turn), shape=SHAPE, inputs=2, seed=0)
    assert found.flipped == 0 and found.agrees


def test_an_output_that_is_not_finite_never_agrees() -> None:
    broken = Faulty(change=lambda outputs: (outputs[0] * float("nan"), *outputs[1:]))
    assert not compare(network(), runtime=broken, shape=SHAPE, inputs=1, seed=0).agrees


def test_without_a_stable_input_nothing_is_said_to_agree() -> None:
    def flip(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits, kept = outputs
        kept[0, 0] = next(i for i in range(64) if i not in kept[0])
        return logits, kept

    found = compare(network(keep_ratio=0.5), runtime=Faulty(change=flip), shape=SHAPE, inputs=2, seed=0)
    assert found.unstable == 1 and not found.agrees
    assert replace(found, error=0.0).agrees
