from __future__ import annotations

import pytest
import torch

from nasvit.errors import ConfigError
from nasvit.named import make_named


@pytest.mark.parametrize("name", ["maxvit_tiny_tf_224", "vit_tiny_patch16_224"])
def test_a_model_that_images_do_not_suit_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"timm cannot make {name} for images of 12x12 px with 1 channels \(.*--image-size 224"):
        make_named(name, image_size=(12, 12), in_channels=1, num_classes=3, seed=0)


def test_trying_a_model_leaves_it_as_it_was_made() -> None:
    first, second = (make_named("resnet10t", image_size=(16, 16), in_channels=1, num_classes=3, seed=5) for _ in range(2))
    assert first.training
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert float(first.get_buffer("bn1.num_batches_tracked")) == 0
