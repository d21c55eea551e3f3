from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nasvit import data
from nasvit.errors import ConfigError
from nasvit.training import Examples, Recipe, train
from nasvit.training.examples import chance

CPU = torch.device("cpu")
PLAIN = Recipe(augment="none")


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.load("digits", seed=0)


def draw(digits: data.DataSet, recipe: Recipe, *, step: int = 3, seed: int = 0, parts: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return Examples(digits, seed=seed, recipe=recipe, device=CPU, parts=parts)(step)


def test_seeds_of_neighbouring_steps_parts_and_purposes_differ() -> None:
    drawn = {chance(seed, kind, step, part) for seed in range(5) for kind in range(5) for step in range(50) for part in range(4)}
    assert len(drawn) == 5 * 5 * 50 * 4 and all(0 <= value < 2**63 for value in drawn)
    assert len({value & 0xFFFFFFFF for value in drawn}) > 0.999 * len(drawn)  # torch's CPU generator takes 32 bits


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(augment="rand-m9-mstd0.5-inc1", augment_epochs=0.01), Recipe(mixup=0.4),
                                    Recipe(cutmix=1.0), Recipe(mixup=0.4, cutmix=1.0), Recipe(erase=1.0)])
def test_a_step_gives_the_same_images_whatever_came_before_and_leaves_the_global_states(recipe: Recipe, digits: data.DataSet) -> None:
    examples = Examples(digits, seed=5, recipe=recipe, device=CPU)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = [examples(step) for step in (0, 1, 2)]
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    again = Examples(digits, seed=5, recipe=recipe, device=CPU)(2)
    assert torch.equal(first[2][0], again[0]) and torch.equal(first[2][1], again[1])
    assert not torch.equal(first[1][0], first[2][0])
    assert not torch.equal(Examples(digits, seed=6, recipe=recipe, device=CPU)(2)[0], again[0])


@pytest.mark.parametrize("recipe", [replace(PLAIN, augment="rand-m9-n2", augment_epochs=0.01), replace(PLAIN, mixup=0.4),
                                    replace(PLAIN, cutmix=1.0), replace(PLAIN, erase=1.0)])
def test_every_option_changes_the_images(recipe: Recipe, digits: data.DataSet) -> None:
    plain, changed = draw(digits, PLAIN)[0], draw(digits, recipe)[0]
    assert changed.shape == plain.shape and torch.isfinite(changed).all() and not torch.allclose(plain, changed)


@pytest.mark.parametrize("recipe", [replace(PLAIN, mixup=0.4), replace(PLAIN, cutmix=1.0)])
def test_mixed_labels_are_distributions_with_the_shares_of_the_mixed_images(recipe: Recipe, digits: data.DataSet) -> None:
    _, labels = draw(digits, replace(recipe, label_smoothing=0.0))
    _, plain = draw(digits, PLAIN)
    assert labels.shape == (32, 10) and torch.allclose(labels.sum(dim=1), torch.ones(32))
    share = labels[torch.arange(32), plain]
    mixed = plain != plain.flip(0)
    assert mixed.any() and len(set(share[mixed].tolist())) <= 2  # lam, up to rounding


def test_rand_augment_takes_colour_and_grey_and_refuses_other_channels(digits: data.DataSet) -> None:
    images = digits.train.images.repeat(1, 3, 1, 1)
    colour = replace(digits, train=data.Images(images=images, labels=digits.train.labels), mean=digits.mean * 3, std=digits.std * 3)
    recipe = Recipe(augment="rand-m9-n2", augment_epochs=0.01)
    assert draw(colour, recipe)[0].shape == (32, 3, 16, 16)
    pairs = data.Images(images=digits.train.images.repeat(1, 2, 1, 1), labels=digits.train.labels)
    two = replace(digits, train=pairs, mean=digits.mean * 2, std=digits.std * 2)
    with pytest.raises(ConfigError, match="1 or 3 channels, not 2"):
        draw(two, recipe)


def test_a_policy_that_timm_does_not_know_is_refused(digits: data.DataSet) -> None:
    with pytest.raises(ConfigError, match="RandAugment of timm"):
        draw(digits, Recipe(augment="rand-q9"))


def test_parts_make_up_the_batch(digits: data.DataSet) -> None:
    whole = draw(digits, PLAIN)
    examples = Examples(digits, seed=0, recipe=PLAIN, device=CPU, parts=4)
    parts = [examples(3, part) for part in range(4)]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0]) and torch.equal(torch.cat([y for _, y in parts]), whole[1])


@pytest.mark.parametrize(("recipe", "parts"), [(Recipe(batch_size=30), 4), (Recipe(batch_size=8), 8), (Recipe(batch_size=6, mixup=1.0), 2),
                                               (Recipe(batch_size=33, cutmix=1.0), 1)])
def test_batches_that_cannot_be_divided_are_refused(recipe: Recipe, parts: int, digits: data.DataSet) -> None:
    with pytest.raises(ConfigError, match="cannot be computed in"):
        Examples(digits, seed=0, recipe=recipe, device=CPU, parts=parts)


def test_accumulated_gradients_are_those_of_the_whole_batch(digits: data.DataSet) -> None:
    ends = []
    for accumulate in (1, 4):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.GELU(), nn.Linear(16, 10))
        train(module, digits, steps=10, seed=0, recipe=replace(PLAIN, accumulate=accumulate))
        ends.append(module[1].weight)
    assert torch.allclose(ends[0], ends[1], atol=1e-5) and not torch.equal(ends[0], ends[1])


def test_a_network_learns_with_everything_on(digits: data.DataSet) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32),
                           nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    recipe = Recipe(augment="rand-m5-n1", mixup=0.2, cutmix=0.5, erase=0.1, ema=0.98, accumulate=2, channels_last=True)
    assert train(module, digits, steps=150, seed=0, recipe=recipe).accuracy > 0.8


def test_mixed_precision_on_a_cpu_is_bfloat16_where_asked(digits: data.DataSet) -> None:
    seen = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(x)
            seen.append(y.dtype)
            return y

    train(Spy(), digits, steps=1, seed=0, recipe=Recipe(amp=True))
    assert list(dict.fromkeys(seen)) == [torch.bfloat16, torch.float32], "what is exported is float32, and so is what is evaluated"
    seen.clear()
    train(Spy(), digits, steps=1, seed=0)
    assert set(seen) == {torch.float32}
