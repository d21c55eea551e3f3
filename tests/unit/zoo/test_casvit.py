"""CAS-ViT: published sizes, timm's interface, official checkpoints, training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nasvit.zoo
from nasvit.errors import CheckpointError
from nasvit.models.deploy import deploy
from nasvit.models.mixers.integration import IntegrationMixer
from nasvit.models.network import Network
from nasvit.torchvision_ops import ensure
from nasvit.zoo.casvit import BLOCK

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

VARIANTS = {"casvit_xs": (3_200_700, 2_979_700), "casvit_s": (5_764_224, 5_507_224), "casvit_m": (12_421_520, 12_036_520),
            "casvit_t": (21_763_120, 21_250_120)}


def micro(name: str = "casvit_xs", **kwargs: Any) -> Any:
    sizes = {"embed_dims": (8, 12, 16, 24), "depths": (1, 1, 2, 1), "num_classes": 5, "img_size": (64, 48)}
    return timm.create_model(name, **{**sizes, **kwargs})


def official_names(model: Network) -> dict[str, Tensor]:
    """Our weights under the authors' names and in their layouts, written out here once more and the other way round."""
    state = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    theirs = {}
    table = {"stem.layers.0.0": "patch_embed.0", "stem.layers.0.1": "patch_embed.1", "stem.layers.1.0": "patch_embed.3",
             "stem.layers.1.1": "patch_embed.4", "norm.bn": "norm", "head_dist": "dist_head", "head": "head"}
    for s, stage in enumerate(model.arch.stages):
        table |= {f"stages.{s}.downsample": f"network.{2 * s - 1}", f"feature_norms.{s}.bn": f"norm{2 * s}"}
        for b in range(len(stage.blocks)):
            table |= {f"stages.{s}.blocks.{b}.{new}": f"network.{2 * s}.{b}.{old}" for old, new in BLOCK.items()}
    for name, value in state.items():
        prefix = next(old for old in table if name.startswith(f"{old}."))
        pointwise = value.ndim == 2 and "blocks" in name
        theirs[table[prefix] + name.removeprefix(prefix)] = value[:, :, None, None] if pointwise else value
    return theirs


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_the_published_numbers_with_and_without_the_distillation_head(name: str) -> None:
    for distillation, expected in zip((True, False), VARIANTS[name], strict=True):
        model = timm.create_model(name, distillation=distillation)
        assert sum(p.numel() for p in model.parameters()) == expected
    assert model.num_classes == 1000


def test_the_authors_names_are_the_published_ones() -> None:
    names = official_names(micro(distillation=True))
    assert names["network.4.1.attn.oper_q.0.block.3.weight"].shape == (1, 16, 1, 1)
    assert names["network.4.1.attn.qkv.weight"].shape == (48, 16, 1, 1)
    assert {"patch_embed.3.bias", "network.1.proj.bias", "network.6.0.local_perception.network.4.bias", "dist_head.bias"} <= set(names)


@pytest.mark.parametrize("distillation", [False, True])
def test_official_weights_round_trip(distillation: bool) -> None:
    source, target = micro(distillation=distillation).eval(), micro(distillation=distillation).eval()
    nasvit.zoo.load_official(target, official_names(source))
    x = torch.randn(2, 3, 64, 48)
    assert torch.equal(source(x), target(x))


def test_backbone_weights_round_trip_and_each_map_has_its_own_norm() -> None:
    source, target = (micro(features_only=True, feature_norms=True).eval() for _ in range(2))
    for norm in source.model.feature_norms:
        nn.init.uniform_(norm.bn.weight, 0.5, 2)
    nasvit.zoo.load_official(target.model, official_names(source.model))
    x = torch.randn(1, 3, 64, 48)
    plain = micro(features_only=True).eval()
    plain.load_state_dict(source.state_dict(), strict=False)
    for i, (a, b, c) in enumerate(zip(source(x), target(x), plain(x), strict=True)):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c * source.model.feature_norms[i].bn.weight[:, None, None] / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("feature_norms", [False, True])
def test_a_deployed_backbone_gives_the_same_maps(feature_norms: bool) -> None:
    model, x = micro(features_only=True, feature_norms=feature_norms).eval(), torch.randn(1, 3, 64, 48)
    for a, b in zip(deploy(model)(x), model(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w.pop("network.4.1.attn.dwc.bias"), "stages.2.blocks.1.mixers.1.mix.bias"),
    (lambda w: w.update({"network.9.proj.weight": torch.zeros(1)}), "network.9.proj.weight"),
    (lambda w: w.update({"network.0.0.mlp.fc1.weight": torch.zeros(31, 8, 1, 1)}), "mlp.fc1.weight"),
    (lambda w: w.update({"dist_head.weight": torch.zeros(5, 24)}), "dist_head.weight"),
])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name_and_changes_nothing(change: Any, message: str) -> None:
    model = micro()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    weights = official_names(micro())
    change(weights)
    with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
        nasvit.zoo.load_official(model, weights)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("size", [(64, 48), (33, 41), (160, 192)])
def test_any_size_works(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    assert micro(img_size=size).eval()(x).shape == (2, 5)
    maps = micro(img_size=size, features_only=True).eval()(x)
    assert [m.shape[1] for m in maps] == [8, 12, 16, 24]
    height, width = size
    for i, m in enumerate(maps):
        assert m.shape[2:] == (-(-height // 2 ** (i + 2)), -(-width // 2 ** (i + 2)))


def test_classifier_can_be_left_out_and_made_anew() -> None:
    model, x = micro(num_classes=0, distillation=True).eval(), torch.randn(2, 3, 64, 48)
    assert model(x).shape == (2, 24)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert len(model.get_classifier()) == 2


def test_training_returns_both_logits_where_asked_and_evaluation_their_mean() -> None:
    model, x = micro(distillation=True), torch.randn(2, 3, 64, 48)
    model.set_distilled_training()
    both = model.train()(x)
    assert [t.shape for t in both] == [(2, 5), (2, 5)]
    model.eval()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model(x), (model.head(pooled) + model.head_dist(pooled)) / 2)


def test_the_local_integration_is_never_dropped() -> None:
    """The authors' block has no stochastic depth on its first branch."""
    model = micro(drop_path_rate=0.5)
    block = model.stages[2].blocks[1]
    assert not isinstance(block.drop_path, nn.Identity) and isinstance(block.mixers[0], IntegrationMixer)
    block.drop_path.drop_prob = 1.0
    x = torch.randn(2, 4, 3, 16)
    torch.testing.assert_close(block.train()(x, None, scored=False)[0], x + block.mixers[0](x))
