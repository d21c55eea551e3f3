"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasvit import data, training
from nasvit.errors import ConfigError, TrainingError
from nasvit.torchvision_ops import ensure
from nasvit.training import HISTORY, Average, Recipe, batch_index, batch_loss, evaluate, examples, learning_rate, parameter_groups, train


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.load("digits", seed=0)


def network(*, seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
                         nn.Dropout(dropout), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def weights(module: nn.Module) -> Tensor:
    return torch.cat([v.double().flatten() for v in module.state_dict().values()])


def small(digits: data.DataSet, count: int) -> data.DataSet:
    part = data.Images(images=digits.train.images[:count], labels=digits.train.labels[:count])
    return replace(digits, train=part, val=part)


class WithToken(nn.Module):
    """A network with a class token's logits beside its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU())
        self.head, self.token_head = nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def forward_aux(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y = self.body(x)
        return self.head(y), self.token_head(y)


def test_a_small_network_learns_real_digits(digits: data.DataSet) -> None:
    before, _ = evaluate(network(), digits.val, data=digits)
    result = train(network(), digits, steps=120, seed=0)
    assert before < 0.3 < 0.85 < result.accuracy <= 1
    assert result.history[-1]["loss"] < 0.6 * result.history[0]["loss"]
    assert result.steps == 120 and result.epochs == pytest.approx(120 * Recipe().batch_size / len(digits.train))


def test_two_trainings_with_one_seed_give_bit_equal_weights_and_another_seed_others(digits: data.DataSet) -> None:
    ends = []
    for seed, noise in ((3, 0), (3, 1), (4, 2)):
        module = network(dropout=0.1)
        torch.manual_seed(noise)  # the surrounding random state must not matter
        result = train(module, digits, steps=12, seed=seed, recipe=Recipe(ema=0.9))
        ends.append((weights(module), result.accuracy, result.val_loss, result.history))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]
    assert not torch.equal(ends[0][0], ends[2][0])


def test_training_leaves_the_global_random_state_alone(digits: data.DataSet) -> None:
    module = network(dropout=0.5)
    state = torch.get_rng_state()
    train(module, digits, steps=3, seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_a_second_training_continues_from_the_weights_of_the_first(digits: data.DataSet) -> None:
    module = network()
    first = train(module, digits, steps=60, seed=0)
    second = train(module, digits, steps=60, seed=1)
    assert second.history[0]["loss"] < 0.7 * first.history[0]["loss"] and second.accuracy >= first.accuracy - 0.02


def test_frozen_parameters_stay_as_they_are(digits: data.DataSet) -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    before, free = module[0].weight.clone(), module[3].weight.clone()
    train(module, digits, steps=3, seed=0, recipe=Recipe(ema=0.9))
    assert torch.equal(before, module[0].weight) and not torch.equal(free, module[3].weight)


def test_a_loss_that_is_not_finite_ends_the_training_with_step_loss_and_lr(digits: data.DataSet) -> None:
    class Burst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = network(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            return self.body(x) * (math.nan if self.calls == 4 else 1)

    with pytest.raises(TrainingError, match=r"loss is nan at step 4 of 20 \(lr 0\.0"):
        train(Burst(), digits, steps=20, seed=0)


def test_too_large_a_learning_rate_ends_with_an_error_not_with_a_result(digits: data.DataSet) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    with pytest.raises(TrainingError, match="lower the recipe's lr"):
        train(plain, digits, steps=50, seed=0, recipe=Recipe(lr=1e30, clip_grad=0))


def test_logits_that_do_not_fit_the_classes_are_refused(digits: data.DataSet) -> None:
    with pytest.raises(TrainingError, match="10 classes"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(256, 7)), digits, steps=1, seed=0)


def test_a_network_with_nothing_to_train_is_refused(digits: data.DataSet) -> None:
    with pytest.raises(TrainingError, match="no parameter to train"):
        train(network().requires_grad_(False), digits, steps=1, seed=0)


def test_the_average_of_the_weights_is_what_is_kept(digits: data.DataSet) -> None:
    plain, averaged = network(), network()
    train(plain, digits, steps=30, seed=0)
    train(averaged, digits, steps=30, seed=0, recipe=Recipe(ema=0.99))
    start = network()[9].weight
    assert not torch.equal(plain[9].weight, averaged[9].weight)
    assert (averaged[9].weight - start).norm() < (plain[9].weight - start).norm()


def test_the_average_follows_its_recursion_and_starts_with_a_small_decay() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average, expected = Average(module, 0.2), 0.0
    for step, decay in enumerate((0.1, 2 / 11, 0.2)):
        nn.init.constant_(module.weight, step + 1.0)
        average.update(step)
        expected = decay * expected + (1 - decay) * (step + 1)
    average.keep()
    assert module.weight.item() == pytest.approx(expected)


def test_the_class_token_loss_reaches_its_head_by_its_weight(digits: data.DataSet) -> None:
    x, y = torch.randn(8, 1, 16, 16), torch.arange(8)
    module = WithToken()
    ce = nn.CrossEntropyLoss(label_smoothing=Recipe().label_smoothing)
    logits, token = module.forward_aux(x)
    assert torch.allclose(batch_loss(module, x, y, recipe=Recipe(aux_weight=0.3)), 0.7 * ce(logits, y) + 0.3 * ce(token, y))
    before = module.token_head.weight.clone()
    train(module, digits, steps=2, seed=0)
    assert not torch.equal(before, module.token_head.weight)


def test_a_network_that_gives_no_class_token_is_trained_by_its_logits() -> None:
    module = WithToken()
    module.forward_aux = lambda x: (module(x), None)  # type: ignore[method-assign]
    x, y = torch.randn(8, 1, 16, 16), torch.arange(8)
    assert torch.allclose(batch_loss(module, x, y, recipe=Recipe(label_smoothing=0)), nn.functional.cross_entropy(module(x), y))


def test_distillation_changes_the_gradient_and_pulls_towards_the_teacher() -> None:
    student, teacher = network(seed=0).eval(), network(seed=1).eval()
    x, y = torch.randn(16, 1, 16, 16), torch.arange(16) % 10
    plain = torch.autograd.grad(batch_loss(student, x, y, recipe=Recipe()), student[9].weight)[0]
    taught = torch.autograd.grad(batch_loss(student, x, y, recipe=Recipe(), teacher=teacher), student[9].weight)[0]
    assert not torch.allclose(plain, taught)
    full = Recipe(distill_weight=1.0)
    assert batch_loss(teacher, x, y, recipe=full, teacher=teacher).item() == pytest.approx(0, abs=1e-6)
    assert batch_loss(student, x, y, recipe=full, teacher=teacher).item() > 1e-4


def test_a_teacher_is_not_trained(digits: data.DataSet) -> None:
    teacher = network(seed=1)
    before = weights(teacher)
    train(network(), digits, steps=3, seed=0, teacher=teacher)
    assert torch.equal(before, weights(teacher))


@pytest.mark.parametrize("count", [3, 33, 65])
def test_no_batch_has_one_image_however_small_the_data_set(digits: data.DataSet, count: int) -> None:
    sizes = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x)) if self.training else None
            return self.body(x)

    train(Spy(), small(digits, count), steps=5, seed=0, recipe=Recipe(batch_size=32))
    assert set(sizes) == {min(32, count)}


def test_every_epoch_sees_every_image_once_when_batches_divide_it() -> None:
    first, second = (torch.cat([batch_index(3 * epoch + n, count=12, size=4, seed=0) for n in range(3)]) for epoch in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12)) and first.tolist() != second.tolist()


def test_the_learning_rate_rises_then_falls_to_its_last_share() -> None:
    recipe = Recipe(lr=1.0, warmup=0.2, final_lr=0.1)
    rates = [learning_rate(s, steps=50, recipe=recipe) for s in range(50)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1) and 0 < rates[0] < 0.2
    assert [learning_rate(0, steps=1, recipe=recipe)] == [1.0]


def test_only_matrices_and_kernels_decay() -> None:
    module = nn.Module()
    module.fc = nn.Linear(4, 4)
    module.norm = nn.LayerNorm(4)
    module.pos_embed = nn.Parameter(torch.zeros(1, 4, 4))
    module.class_token = nn.Parameter(torch.zeros(1, 1, 4))
    module.bias_table = nn.Parameter(torch.zeros(9, 2))
    decay, plain = parameter_groups(module, weight_decay=0.1)
    assert [p is module.fc.weight for p in decay["params"]] == [True]
    assert (decay["weight_decay"], plain["weight_decay"], len(plain["params"])) == (0.1, 0.0, 6)


def test_the_guard_is_entered_around_every_step_and_left(digits: data.DataSet) -> None:
    log = []

    @contextmanager
    def guard() -> Iterator[None]:
        log.append("in")
        yield
        log.append("out")

    train(network(), digits, steps=4, seed=0, step_guard=guard)
    evaluated = math.ceil(len(digits.val) / 256)
    assert log == ["in", "out"] * (1 + 4 + evaluated)  # one look at the logits, the steps, the evaluation


def test_what_the_guard_makes_wait_is_counted_apart(digits: data.DataSet) -> None:
    @contextmanager
    def busy() -> Iterator[None]:
        time.sleep(0.02)
        yield

    result = train(network(), digits, steps=5, seed=0, step_guard=busy)
    assert 0.1 <= result.waited < result.seconds
    assert train(network(), digits, steps=2, seed=0).waited == 0


def test_history_is_short_and_ends_at_the_last_step(digits: data.DataSet) -> None:
    result = train(network(), small(digits, 16), steps=103, seed=0)
    assert len(result.history) <= HISTORY and result.history[-1]["step"] == 103
    assert set(result.history[0]) == {"step", "loss", "lr"}


def test_evaluation_counts_right_answers(digits: data.DataSet) -> None:
    class Cheat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float() * 100

    accuracy, loss = evaluate(Cheat(), digits.val, data=digits, batch_size=7)
    assert accuracy == pytest.approx(float((digits.val.labels == 0).double().mean())) and loss == pytest.approx(100 * (1 - accuracy))


@pytest.mark.parametrize(("field", "value"), [("lr", 0), ("lr", math.nan), ("batch_size", 1), ("augment", "heavy"), ("warmup", 1.0),
                                              ("ema", 1.0), ("clip_grad", -1), ("aux_weight", 1.5), ("distill_temperature", 0)])
def test_a_recipe_that_makes_no_sense_is_refused_with_the_accepted_values(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} is .*accepted"):
        Recipe(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0.1", None, True, [1]])
def test_a_recipe_takes_numbers_only(value: object) -> None:
    with pytest.raises(ConfigError, match=r"weight_decay is .*accepted: a number"):
        Recipe(weight_decay=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("features", "lr"), [(16, 8e-3), (64, 8e-3), (256, 2e-3), (512, 1e-3)])
def test_the_default_rate_falls_with_the_width(features: int, lr: float) -> None:
    module = nn.Linear(2, 2)
    assert training.default_lr(module) == 8e-3
    module.num_features = features
    assert training.default_lr(module) == pytest.approx(lr)


def test_an_unknown_recipe_setting_is_refused_with_the_nearest_name() -> None:
    assert Recipe.of({"lr": 1e-3, "flip": False}) == Recipe(lr=1e-3, flip=False)
    with pytest.raises(ConfigError, match="did you mean 'weight_decay'"):
        Recipe.of({"weight_decy": 0.1})


@pytest.mark.parametrize(("own", "recipe", "mirrored"), [(False, None, False), (True, None, True), (True, False, False),
                                                         (False, True, True)])
def test_images_are_mirrored_as_the_data_set_says_unless_the_recipe_does(digits: data.DataSet, own: bool, recipe: bool | None,
                                                                        mirrored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = [], examples.light_batch

    def spy(*given: Any, flip: bool, **named: Any) -> Tensor:
        asked.append(flip)
        return plain(*given, flip=flip, **named)

    monkeypatch.setattr(examples, "light_batch", spy)
    train(network(), replace(digits, flip=own), steps=2, seed=0, recipe=Recipe(flip=recipe))
    assert asked == [mirrored] * 2


def test_augmentation_grows_over_its_epochs(digits: data.DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, plain = [], examples.light_batch

    def spy(*given: Any, share: float, **named: Any) -> Tensor:
        shares.append(share)
        return plain(*given, share=share, **named)

    monkeypatch.setattr(examples, "light_batch", spy)
    train(network(), small(digits, 64), steps=6, seed=0, recipe=Recipe(batch_size=32, augment_epochs=2))
    assert shares == [0.25, 0.5, 0.75, 1, 1, 1]


def test_no_steps_are_refused(digits: data.DataSet) -> None:
    with pytest.raises(ConfigError, match="steps is 0"):
        train(network(), digits, steps=0, seed=0)


def test_a_vision_transformer_of_timm_trains_unchanged(digits: data.DataSet) -> None:
    ensure()
    import timm

    colour = replace(digits, train=replace(digits.train, images=digits.train.images.repeat(1, 3, 2, 2)),
                     val=replace(digits.val, images=digits.val.images.repeat(1, 3, 2, 2)), mean=digits.mean * 3, std=digits.std * 3)
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10)
    result = train(module, colour, steps=150, seed=0, recipe=Recipe(batch_size=16, lr=2e-3, augment="none"))
    losses = [entry["loss"] for entry in result.history]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_mixed_precision_on_a_gpu_learns_as_well(digits: data.DataSet) -> None:
    assert train(network(), digits, steps=120, seed=0, device="cuda", recipe=Recipe(ema=0.9)).accuracy > 0.85
