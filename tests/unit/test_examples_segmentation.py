from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nasvit.models import Features, build
from nasvit.space import SearchSpace

FILE = Path(__file__).resolve().parents[2] / "examples" / "segmentation.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_segmentation", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_searched_network_under_torchvisions_head_gives_a_class_for_every_pixel_and_learns_in_all_its_parts(example: ModuleType) -> None:
    space = SearchSpace.load("hybrid_tiny", image_size=(32, 32), in_channels=3, num_classes=4)
    for seed in range(4):
        model = example.Segmenter(Features(build(space.sample(random.Random(seed)), seed=0)), classes=4)
        out = model(torch.randn(2, 3, 32, 32))
        assert out.shape == (2, 4, 32, 32)
        out.square().mean().backward()
        unreached = [name for name, p in model.named_parameters() if p.grad is None]
        assert not [name for name in unreached if not name.startswith("backbone.model.aux_")], unreached


def test_the_shapes_are_of_every_class_and_the_same_for_a_seed(example: ModuleType) -> None:
    images, labels = example.shapes(40, size=(32, 24), channels=3, seed=1)
    assert images.shape == (40, 3, 32, 24) and labels.shape == (40, 32, 24) and set(labels.unique().tolist()) == {0, 1, 2, 3}
    again = example.shapes(40, size=(32, 24), channels=3, seed=1)
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(images, example.shapes(40, size=(32, 24), channels=3, seed=2)[0])


def test_intersection_over_union_by_hand(example: ModuleType) -> None:
    labels = torch.tensor([[[0, 0], [1, 1]]])
    found = torch.tensor([[[0, 1], [1, 1]]])
    said = torch.nn.functional.one_hot(found, 4).permute(0, 3, 1, 2).float()
    model = torch.nn.Identity()
    assert example.mean_iou(model, said, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.slow
def test_the_example_learns_to_segment(example: ModuleType) -> None:
    before, after = example.main(["--steps", "200"])
    assert after > before + 0.15
