"""What every zero-cost proxy must do: finite on every shipped space, the same for a seed, and leave the network as it was."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from nasvit.arch import Arch
from nasvit.data import load
from nasvit.errors import ConfigError, MeasurementError
from nasvit.models.build import build
from nasvit.proxies.zero_cost import ZERO_COST, probe_images, score_all, score_module
from nasvit.space import SearchSpace, shipped

NAMES = ZERO_COST.names()


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return probe_images(load("digits", seed=0, image_size=(16, 16)), seed=0, count=8)


@pytest.fixture(scope="module")
def scored(images) -> list[tuple[Arch, dict[str, float]]]:
    """20 samples of hybrid_tiny with their scores."""
    space, rng = SearchSpace.load("hybrid_tiny", image_size=(16, 16), in_channels=1, num_classes=10), random.Random(0)
    archs = [space.sample(rng) for _ in range(20)]
    return [(arch, score_all(arch, images=images[0], labels=images[1], seed=0)) for arch in archs]


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_finite_on_20_samples_and_tells_networks_apart(name, scored) -> None:
    values = [scores[name] for _, scores in scored]
    assert all(isinstance(v, float) and abs(v) < 1e6 for v in values) and len(set(values)) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("space", sorted(set(shipped()) - {"hybrid_tiny"}))
def test_every_score_is_finite_on_every_shipped_space(space, images) -> None:
    size = SearchSpace.load(space).fit_image_size((16, 16))
    loaded = SearchSpace.load(space, image_size=size, in_channels=1, num_classes=10)
    large = torch.nn.functional.interpolate(images[0], size=size)
    scores = score_all(loaded.sample(random.Random(1)), images=large, labels=images[1], seed=0)
    assert set(scores) == set(NAMES) and all(abs(v) < 1e6 for v in scores.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_score_follows_from_its_arguments_and_leaves_no_trace(name, images, tiny_arch) -> None:
    module = build(tiny_arch, seed=0).eval()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    first, again = (score_module(module, images=images[0], labels=images[1], seed=3, names=[name]) for _ in range(2))
    assert first.values == again.values and first.seconds[name] > 0
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and not module.training
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_a_dead_network_is_degenerate_and_one_that_overflows_is_refused(images, tiny_arch) -> None:
    dead = build(tiny_arch, seed=0)
    with torch.no_grad():
        dead.head.weight.zero_()
        dead.head.bias.zero_()
        for p in dead.stem.parameters():
            p.zero_()
    names = [name for name in NAMES if name not in ("params", "macs")]
    assert score_module(dead, images=images[0], labels=images[1], seed=0, names=names).degenerate
    assert not score_module(build(tiny_arch, seed=0), images=images[0], labels=images[1], seed=0, names=names).degenerate
    loud = build(tiny_arch, seed=0)
    with torch.no_grad():
        loud.head.weight.fill_(float("inf"))
    with pytest.raises(MeasurementError, match="snip"):
        score_module(loud, images=images[0], labels=images[1], seed=0, names=["snip"])


def test_wrong_input_is_refused(images, tiny_arch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'naswot'"):
        score_module(build(tiny_arch, seed=0), images=images[0], labels=images[1], seed=0, names=["naswt"])
    with pytest.raises(MeasurementError, match="at least 8 images"):
        score_all(tiny_arch, images=images[0][:4], labels=images[1][:4], seed=0)
