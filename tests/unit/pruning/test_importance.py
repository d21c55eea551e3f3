"""Importance: computed once, kept, and by its definition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from nasvit.errors import ConfigError
from nasvit.pruning import CRITERIA, Dense, importance, prepare
from tests.pruning_models import make


@pytest.fixture(scope="module")
def dense() -> Dense:
    return prepare(make("vit"))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32)


@pytest.mark.parametrize("case", ["vit", "swin", "pvt", "levit", "cait", "beit", "hybrid_tiny"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_group_a_plan_cuts_has_a_score_for_each_unit(case: str, criterion: str) -> None:
    mine = prepare(make(case), image_size=(64, 64) if case == "pvt" else None)
    options = mine.plan.source.options
    batch = torch.randn(2, options["in_channels"], *options["image_size"])
    scores = importance(mine, batch, torch.tensor([0, 1]), criterion=criterion).scores
    for s, dim in enumerate(mine.plan.embed_dims):
        assert scores[f"embed.{s}"].shape == (dim,)
    for i, block in enumerate(mine.plan.blocks):
        assert scores[f"mlp.{i}"].shape == (block.mlp_dim,)
        if case != "hybrid_tiny":
            assert scores[f"heads.{i}"].shape == (block.heads,)
    assert all(v.isfinite().all() and (v >= 0).all() for v in scores.values())


def test_taylor_of_a_neuron_is_the_squared_change_of_its_weights_times_gradients(dense: Dense, images: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2, 3])
    scores = importance(dense, images, labels, batch_size=4).scores["mlp.1"]
    mlp = dense.module.blocks[1].mlp
    parameters = [mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight]
    first, bias, last = torch.autograd.grad(F.cross_entropy(dense.module(images), labels), parameters)
    by_hand = (mlp.fc1.weight * first).sum(1) ** 2 + (mlp.fc1.bias * bias) ** 2 + (mlp.fc2.weight * last).sum(0) ** 2
    torch.testing.assert_close(scores.float(), by_hand.detach(), rtol=1e-3, atol=1e-12)


def test_a_second_call_reads_the_file_and_other_images_make_another(dense: Dense, images: torch.Tensor, tmp_path: Path) -> None:
    first = importance(dense, images, directory=tmp_path)
    stamp = next(tmp_path.iterdir()).stat().st_mtime_ns
    again = importance(dense, images, directory=tmp_path)
    assert next(tmp_path.iterdir()).stat().st_mtime_ns == stamp
    assert all(torch.equal(first.scores[g], again.scores[g]) for g in first.scores)
    importance(dense, images + 1, directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_named(dense: Dense, images: torch.Tensor, tmp_path: Path) -> None:
    importance(dense, images, criterion="magnitude", directory=tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(b"torn")
    with pytest.raises(ConfigError, match=path.name):
        importance(dense, images, criterion="magnitude", directory=tmp_path)


def test_the_dense_network_is_left_as_it_was(dense: Dense, images: torch.Tensor) -> None:
    before = {n: v.clone() for n, v in dense.state.items()}
    for criterion in CRITERIA:
        importance(dense, images, criterion=criterion)
    assert all(torch.equal(v, before[n]) for n, v in dense.state.items())
    assert all(p.grad is None for p in dense.module.parameters())
    assert not any(m._forward_pre_hooks for m in dense.module.modules())


def test_an_unknown_criterion_is_refused(dense: Dense, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="taylor"):
        importance(dense, images, criterion="luck")


@pytest.mark.parametrize(("labels", "said"), [([0, 1], "one class for each of the 4 images"), ([0, 1, 2, 7], "accepted: 0 to 6"),
                                              ([-1, 1, 2, 3], "labels from -1 to 3")])
def test_labels_that_do_not_go_with_images_and_classes_are_refused(
        dense: Dense, images: torch.Tensor, labels: list[int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        importance(dense, images, torch.tensor(labels))


@pytest.mark.parametrize("criterion", ["taylor", "attention"])
def test_what_cannot_be_ranked_is_refused_and_not_kept(dense: Dense, images: torch.Tensor, criterion: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not finite"):
        importance(dense, images * float("nan"), criterion=criterion, directory=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_do_not_depend_on_the_callers_mode(
        dense: Dense, images: torch.Tensor, mode: Callable[[], AbstractContextManager[None]]) -> None:
    expected = importance(dense, images).scores
    with mode():
        found = importance(dense, images).scores
    assert all(torch.equal(score, found[group]) for group, score in expected.items())
