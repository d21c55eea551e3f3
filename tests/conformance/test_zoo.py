"""What every published model keeps: one network for each image, a training that learns, an exact inference form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasvit.arch import Arch
from nasvit.cost import count
from nasvit.errors import ConfigError
from nasvit.models.deploy import deploy
from nasvit.models.mixers import Mixer
from nasvit.zoo import FAMILIES, family_of
from nasvit.zoo.family import is_classifier
from tests.zoo_models import MAKERS, images_of, make

every = pytest.mark.parametrize("case", MAKERS)


def test_every_family_has_a_small_model() -> None:
    assert {family_of(make(case)).name for case in MAKERS} == set(FAMILIES)


@every
def test_its_arch_is_the_same_from_json(case: str) -> None:
    model = make(case)
    assert Arch.from_json(model.arch.to_json()) == model.arch


@every
def test_images_of_a_batch_do_not_influence_each_other(case: str) -> None:
    model = make(case).double()
    x = images_of(model, 3)
    torch.testing.assert_close(model(x), torch.cat([model(image) for image in x.split(1)]), rtol=1e-10, atol=1e-10)


@every
def test_an_unknown_argument_is_refused_with_the_accepted_ones(case: str) -> None:
    with pytest.raises(ConfigError, match=r"no_such.*num_heads|no_such.*embed_dims"):
        make(case, no_such=1)


@every
def test_a_few_steps_lower_the_loss_and_gradients_reach_every_parameter(case: str) -> None:
    torch.manual_seed(1)
    model = make(case).train()
    x, y = images_of(model, 8), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        logits, own = model.forward_aux(x)
        loss = F.cross_entropy(logits, y) if own is None else (F.cross_entropy(logits, y) + F.cross_entropy(own, y)) / 2
        optimizer.zero_grad()
        loss.backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
        optimizer.step()
        losses.append(loss.item())
    silent = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not silent
    assert losses[-1] < 0.8 * losses[0], losses


@every
def test_the_inference_form_computes_the_same_and_survives_a_state_dict(case: str) -> None:
    torch.manual_seed(0)
    model, other = make(case), make(case)
    x = images_of(model, 2)
    expected, ready, again = model(x), deploy(model), deploy(other)
    assert relative(ready(x), expected) <= 1e-5
    assert not [m for m in ready.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert relative(again(x), expected) > 1e-3  # other weights
    again.load_state_dict(ready.state_dict(), strict=True)
    assert torch.equal(again(x), ready(x))


@every
def test_every_operator_is_counted_and_mixers_agree_with_their_closed_forms(case: str) -> None:
    model = make(case)
    cost = count(model, input_shape=(1, 3, *model.arch.image_size))
    assert cost.macs > 0
    if family_of(model).name not in ("slide_pvt", "evo_deit", "evo_levit"):  # a class row and kept tokens are not the mixer's own
        for path, module in model.named_modules():
            if isinstance(module, Mixer):
                assert cost.by_module[path] == pytest.approx(module.macs(), rel=0.005), path


@every
@pytest.mark.parametrize("classes", [5, 3, 0])
def test_a_trained_file_is_a_start_for_other_classes(case: str, classes: int, tmp_path: Path) -> None:
    source, file = make(case), tmp_path / "trained.pth"
    torch.save(source.state_dict(), file)
    model = make(case, num_classes=classes, pretrained=True, pretrained_cfg_overlay={"file": str(file), "num_classes": 5})
    found = dict(model.named_parameters())
    for name, value in source.named_parameters():
        if classes == 5 or not is_classifier(name):
            assert torch.equal(found[name], value), name
    assert model(images_of(model, 1)).shape == (1, classes or model.num_features)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())
