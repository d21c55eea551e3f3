"""Recovery's learning rate: tried on a middling plan, the one with the least validation loss taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasvit.data import DataSet
from nasvit.data import load as load_data
from nasvit.errors import ArchError, ConfigError, TrainingError
from nasvit.pruning import prepare
from nasvit.pruning.dense import Dense
from nasvit.pruning.importance import importance
from nasvit.pruning.space import CHOICES, PARTS, PruneSpace
from nasvit.search import prune_rate
from nasvit.search.prune_rate import RATES, recovery_rate, steps_of_a_try
from nasvit.training import Recipe, TrainResult, default_lr
from tests.pruning_models import timm, wake


@pytest.fixture(scope="module")
def known() -> tuple[Dense, PruneSpace, dict[str, Tensor], DataSet]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wake(timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, in_chans=1, num_classes=10, depth=2, embed_dim=48,
                                       num_heads=3))
    dense, data = prepare(model, name="vit", image_size=(16, 16)), load_data("digits", seed=0, image_size=(16, 16))
    space = PruneSpace(dense.plan, layout=dense.layout, choices=CHOICES, orders=dict.fromkeys(PARTS, range(2)))
    scores = importance(dense, data.train.images[:8].float() / 255, data.train.labels[:8], criterion="magnitude").scores
    return dense, space, scores, data


def rates(known: tuple[Dense, PruneSpace, dict[str, Tensor], DataSet], **values: Any) -> dict[float, float]:
    dense, space, scores, data = known
    return recovery_rate(space, dense, scores, data, recipe=Recipe(), seed=0, device="cpu", **{"steps": 2, **values})


def test_every_rate_is_tried_on_the_same_pruned_network_and_the_least_loss_comes_first(
        known: tuple[Dense, PruneSpace, dict[str, Tensor], DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[float, int, int, float]] = []
    whole = sum(p.numel() for p in known[0].module.parameters())

    def watched(module: nn.Module, data: DataSet, *, steps: int, recipe: Recipe, teacher: nn.Module, **given: Any) -> TrainResult:
        assert teacher is known[0].module
        weights = torch.cat([p.detach().flatten() for p in module.parameters()])
        tried.append((recipe.lr, steps, len(weights), float(weights.sum())))
        loss = abs(recipe.lr / default_lr(module) - 0.25)
        return TrainResult(accuracy=0.5, loss=1.0, val_loss=loss, steps=steps, epochs=1.0, seconds=0.0, waited=0.0, history=())

    monkeypatch.setattr(prune_rate, "train", watched)
    found = rates(known)
    assert [lr for lr, *_ in tried] == [share * 8e-3 for share in RATES] and {steps for _, steps, *_ in tried} == {2}
    assert len({(size, total) for _, _, size, total in tried}) == 1 and tried[0][2] < whole
    assert next(iter(found)) == 2e-3 and list(found.values()) == sorted(found.values())
    assert [steps_of_a_try(whole) for whole in (3, 30, 200, 1000)] == [3, 20, 20, 100]


def test_a_rate_that_fails_is_not_taken_and_all_of_them_are_an_error(
        known: tuple[Dense, PruneSpace, dict[str, Tensor], DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    real = prune_rate.train

    def fails_from(lowest: float) -> Any:
        def failing(module: nn.Module, data: DataSet, *, recipe: Recipe, **given: Any) -> TrainResult:
            if recipe.lr >= lowest:
                raise TrainingError("the loss is nan")
            return real(module, data, recipe=recipe, **given)
        return failing

    monkeypatch.setattr(prune_rate, "train", fails_from(1e-3))
    found = rates(known)
    assert next(iter(found)) == RATES[0] * 8e-3 and list(found.values())[1:] == [float("inf")] * 2
    monkeypatch.setattr(prune_rate, "train", fails_from(0.0))
    with pytest.raises(ConfigError, match=r"fails at every learning rate .* the loss is nan; give recipe"):
        rates(known)


def test_where_the_middling_plan_cannot_be_built_another_is_taken(
        known: tuple[Dense, PruneSpace, dict[str, Tensor], DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    real = PruneSpace.from_parameters

    def refused(self: PruneSpace, params: dict[str, Any], **given: Any) -> Any:
        if params:
            raise ArchError("too steep")
        return real(self, params, **given)

    monkeypatch.setattr(PruneSpace, "from_parameters", refused)
    assert len(rates(known)) == len(RATES)
