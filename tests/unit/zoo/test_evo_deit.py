"""Evo-DeiT: its schedule as arguments, official checkpoints, timm's DeiT as a start, and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nasvit.zoo
from nasvit.arch import Arch
from nasvit.cost import count
from nasvit.errors import ArchError, CheckpointError, ConfigError
from nasvit.models import tokens
from nasvit.torchvision_ops import ensure
from nasvit.zoo.evo_deit import begins

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

HALF = (1.0, 1.0, 0.5, 0.5, 0.5, 0.5)
TINY = {"embed_dim": 16, "num_heads": 2, "patch_size": 8, "keep_ratios": HALF, "selections": (2, 4)}


def tiny(img_size: Any = 32, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("evo_deit_tiny", **{**TINY, "num_classes": 5, "img_size": img_size, **kwargs}).eval()


def official_names(model: Any) -> dict[str, Tensor]:
    """The authors' names of a tiny model, written out the other way round than the conversion has them."""
    state, theirs = dict(model.state_dict()), {}
    theirs["cls_token"] = state.pop("class_token")
    theirs["pos_embed"] = torch.cat([state.pop("class_position"), state.pop("pos_embed").flatten(1, 2)], dim=1)
    blocks = sorted({tuple(int(n) for n in name.split(".")[1:4:2]) for name in state if name.startswith("stages")})
    for i, (s, b) in enumerate(blocks):
        for kind in ("weight", "bias"):
            ours, dim = f"stages.{s}.blocks.{b}", model.num_features
            qkv = state.pop(f"{ours}.mixers.0.qkv.{kind}")
            theirs |= {f"qks.{i}.qk.{kind}": qkv[: 2 * dim], f"vs.{i}.v.{kind}": qkv[2 * dim :]}
            for old, new in (("norms.0", f"norms.{i}"), ("mixers.0.proj", f"projs.{i}"), ("mlp_norm", f"blocks.{i}.norm2"),
                             ("mlp.fc1", f"blocks.{i}.mlp.fc1"), ("mlp.fc2", f"blocks.{i}.mlp.fc2")):
                theirs[f"{new}.{kind}"] = state.pop(f"{ours}.{old}.{kind}")
    renamed = {"stem.proj": "patch_embed.proj", "aux_norm": "norm_cls", "aux_head": "head_cls", "norm": "norm", "head": "head"}
    for name, value in state.items():
        part, kind = name.rsplit(".", 1)
        theirs[f"{renamed[part]}.{kind}"] = value
    return theirs


@pytest.mark.parametrize(("name", "size", "params", "deployed"), [
    ("evo_deit_tiny", 224, 5_910_800, 5_717_416), ("evo_deit_small", 224, 22_436_432, 22_050_664),
    ("evo_deit_base", 224, 87_338_192, 86_567_656), ("evo_deit_small", 384, 22_582_352, 22_196_584)])
def test_published_sizes(name: str, size: int, params: int, deployed: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, img_size=size)
    assert sum(p.numel() for p in model.parameters()) == params
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("aux_")) == deployed
    assert [len(stage.blocks) for stage in model.arch.stages] == [4, 4, 4]
    assert [stage.blocks[0].keep_ratio for stage in model.arch.stages] == [1, 0.5, 0.5]
    assert len(model.feature_info) == 1


# ---- the schedule ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("keep_ratios", "selections", "expected"), [
    (HALF, (2, 4), (0, 2, 4)), (HALF, (2,), (0, 2)), (HALF, (2, 3, 4, 5), (0, 2, 3, 4, 5)), ((0.5, 0.5), (0,), (0,)),
    ((1.0, 0.5, 1.0, 1.0), (1,), (0, 1, 2)), ((1.0, 0.7, 0.3), (1, 2), (0, 1, 2)), ((1.0, 1.0), (), (0,))])
def test_stages_begin_at_selections(keep_ratios: Any, selections: Any, expected: tuple[int, ...]) -> None:
    assert begins(keep_ratios, selections) == expected


@pytest.mark.parametrize(("keep_ratios", "selections", "message"), [
    (HALF, (4,), "layer 2"), (HALF, (2, 6), "layers 0 to 5"), ((0.5, 0.5), (1,), "layer 0"), ((1.0, 0.7, 0.3), (1,), "layer 2")])
def test_a_ratio_that_changes_without_a_selection_is_refused(keep_ratios: Any, selections: Any, message: str) -> None:
    with pytest.raises(ArchError, match=message):
        tiny(keep_ratios=keep_ratios, selections=selections)


def test_every_selection_is_made_where_the_schedule_says_and_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    select = tokens.select

    def watched(score: Tensor, *, keep: int, **rest: Any) -> tokens.Selection:
        seen.append((score.shape[1], keep))
        return select(score, keep=keep, **rest)

    monkeypatch.setattr(tokens, "select", watched)
    tiny()(torch.randn(1, 3, 32, 32))
    assert seen == [(16, 8), (16, 8)]
    seen.clear()
    tiny(layer_wise=True)(torch.randn(1, 3, 32, 32))
    assert seen == [(16, 8)] * 4
    seen.clear()
    tiny(keep_ratios=(1.0, 1.0, 0.7, 0.7, 0.3, 0.3))(torch.randn(1, 3, 32, 32))
    assert seen == [(16, 11), (16, 4)]


def test_all_tokens_kept_is_plain_deit_with_a_mean_head() -> None:
    plain, slow = tiny(keep_ratios=(1.0,) * 6, selections=()), tiny()
    full = tiny(keep_ratios=(1.0, 1.0, 0.999, 0.999, 0.999, 0.999))
    assert plain.arch.representative and len(plain.arch.stages) == 1
    x = torch.randn(2, 3, 32, 32)
    nasvit.zoo.load_official(plain, official_names(slow))
    nasvit.zoo.load_official(full, official_names(slow))
    assert not torch.allclose(plain(x), slow(x))
    assert (plain(x) - full(x)).abs().max() < (plain(x) - slow(x)).abs().max()


def test_the_options_change_the_network_and_its_cost_as_they_say() -> None:
    x, base = torch.randn(2, 3, 32, 32), tiny()
    for options in ({"prunecls": True}, {"representative": True}, {"score_shares": (1.0, 0.1, 0.1, 0.9, 0.9, 0.9)}):
        other = tiny(**options)
        other.load_state_dict(base.state_dict())
        assert other.arch.id != base.arch.id
        assert not torch.equal(other(x), base(x)), options
    usual = tiny(score_shares=(1.0, 1.0, 0.5, 0.5, 0.5, 0.5))
    assert usual.arch == base.arch
    assert Arch.from_json(base.arch.to_json()) == base.arch
    plain = tiny(keep_ratios=(1.0,) * 6, selections=())
    assert count(base, input_shape=(1, 3, 32, 32)).macs < count(plain, input_shape=(1, 3, 32, 32)).macs


def test_placeholders_pass_by_unchanged_unless_a_representative_leads_them() -> None:
    x = torch.randn(1, 3, 32, 32)
    for representative, still in ((False, 8), (True, 0)):
        model = tiny(keep_ratios=(1.0, 0.5), selections=(1,), representative=representative)
        before, after = model._run(x)[0]
        assert int((before == after).all(dim=-1).sum()) == still


# ---- timm's interface -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [32, 64, (32, 48), (56, 24)])
def test_any_resolution_divisible_by_the_patch_works(size: Any) -> None:
    model = tiny(size)
    out = model(torch.randn(2, 3, *model.arch.image_size))
    assert out.shape == (2, 5) and out.isfinite().all()


def test_other_resolutions_are_refused_by_name() -> None:
    with pytest.raises(ArchError, match="divisible by it"):
        tiny((36, 32))


@pytest.mark.parametrize("prunecls", [False, True])
def test_timm_interface(prunecls: bool) -> None:
    (feature,) = tiny(features_only=True, prunecls=prunecls)(torch.randn(1, 3, 32, 32))
    assert feature.shape == (1, 16, 4, 4)
    model = tiny(num_classes=0, prunecls=prunecls)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 16)
    model.reset_classifier(7)
    assert [t.shape for t in model.forward_aux(torch.randn(1, 3, 32, 32))] == [(1, 7), (1, 7)]
    with pytest.raises(ConfigError, match=r"no_such.*keep_ratios"):
        tiny(no_such=1)


# ---- checkpoints ----------------------------------------------------------------------------------------------------

def test_official_checkpoint_round_trips_whatever_the_schedule() -> None:
    source = tiny()
    target = tiny(layer_wise=True)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    nasvit.zoo.load_official(target, official_names(source))
    again = tiny()
    nasvit.zoo.load_official(again, official_names(target))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), source(x))


def test_weights_move_between_schedules() -> None:
    source, other, again = tiny(), tiny(layer_wise=True), tiny()
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.0 if name.endswith("learn_tradeoff") else 0.1))
    nasvit.zoo.reschedule(source, other)
    nasvit.zoo.reschedule(other, again)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), source(x))
    with pytest.raises(CheckpointError, match=r"head\.weight is"):
        nasvit.zoo.reschedule(source, tiny(num_classes=4))


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("vs.1.v.bias"), r"no vs\.1\.v\.bias"), (lambda s: s.update(extra=torch.zeros(1)), "extra"),
    (lambda s: s.update({"head.weight": torch.zeros(4, 16)}), r"head\.weight is \(4, 16\), not \(5, 16\)"),
    (lambda s: s.update(pos_embed=torch.zeros(1, 26, 16)), "26 positions, not 4x4")])
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(change: Any, message: str) -> None:
    model = tiny()
    state, before = official_names(tiny()), {n: t.clone() for n, t in model.state_dict().items()}
    change(state)
    with pytest.raises(CheckpointError, match=message):
        nasvit.zoo.load_official(model, state)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_timms_deit_is_a_start_and_its_plain_blocks_are_ours() -> None:
    source = timm.create_model("deit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, num_heads=2, depth=6, num_classes=5).eval()
    model = tiny(keep_ratios=(1.0,) * 6, selections=())
    loaded = nasvit.zoo.load_relative(model, source)
    assert not loaded.unused and not loaded.initial
    x = torch.randn(2, 3, 32, 32)
    theirs = source.forward_features(x)  # its norm comes before the pooling
    tokens_, class_token = model._features(x)
    torch.testing.assert_close(source.norm(torch.cat([class_token, tokens_.flatten(1, 2)], dim=1)), theirs, rtol=1e-4, atol=1e-5)
    other = nasvit.zoo.load_relative(tiny(num_classes=3), source)
    assert set(other.initial) == {f"{head}.{kind}" for head in ("head", "aux_head") for kind in ("weight", "bias")}
    assert set(other.unused) == {"head.weight", "head.bias"}
