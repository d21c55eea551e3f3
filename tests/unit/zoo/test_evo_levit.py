"""Evo-LeViT: its schedule as arguments, official checkpoints, timm's LeViT as a start, and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nasvit.zoo
from nasvit.arch import Arch
from nasvit.errors import ArchError, CheckpointError, ConfigError
from nasvit.models import tokens
from nasvit.torchvision_ops import ensure

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

TINY = {"embed_dims": (16, 24, 32), "num_heads": (2, 3, 5), "depths": (3, 2, 2), "key_dim": 8}


def tiny(img_size: Any = 96, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model("evo_levit_128s", **{**TINY, "num_classes": 5, "img_size": img_size, **kwargs}).eval()
    for part in model.modules():
        if isinstance(part, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return model


def official_names(model: Any) -> dict[str, Tensor]:
    """The authors' names of a tiny model, written out the other way round than the conversion has them."""
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    theirs, number, count = {}, {}, 0
    for s, stage in enumerate(model.arch.stages):
        if stage.downsample == "levit":
            number[f"stages.{s}.downsample.mlp"] = f"blocks.{count + 1}.m"
            number[f"stages.{s}.downsample"] = f"blocks.{count}"
            count += 2
        for b in range(len(stage.blocks)):
            number[f"stages.{s}.blocks.{b}.mlp"] = f"blocks.{count}.m2.m"
            number[f"stages.{s}.blocks.{b}.mixers.0"] = f"blocks.{count}.m1.m"
            count += 1
    number |= {f"stem.layers.{i}": f"patch_embed.{2 * i}" for i in range(4)}
    heads = {"norm.": "head.", "norm_dist.": "head_dist.", "aux_norm.": "head_cls.", "aux_norm_dist.": "head_cls_dist.",
             "head.": "head.l.", "head_dist.": "head_dist.l.", "aux_head.": "head_cls.l.", "aux_head_dist.": "head_cls_dist.l."}
    for name, value in state.items():
        prefix = next((p for p in number if name.startswith(f"{p}.")), "")
        rest = name[len(prefix) + 1 :] if prefix else name
        rest = rest.replace("linear.", "c.").replace("fc1.", "0.").replace("fc2.", "2.").replace("proj.", "proj.1.")
        if rest.endswith("class_position"):
            continue
        if rest.endswith("pos_embed"):
            start = state[name.replace("pos_embed", "class_position")]
            rest, value = "poss", torch.cat([start, value.flatten(1, 2)], dim=1)
        if prefix.startswith("stem"):
            rest = rest.replace("0.", "c.", 1) if rest.startswith("0.") else rest.replace("1.", "bn.", 1)
        elif prefix.endswith("downsample"):
            rest = f"q.1.{rest[2:]}" if rest.startswith("q.") else rest
        elif not prefix:
            rest = next((new + rest[len(old) :] for old, new in heads.items() if rest.startswith(old)), rest)
            rest = "cls_token" if rest == "class_token" else rest
        theirs[f"{number[prefix]}.{rest}" if prefix else rest] = value
    return theirs


@pytest.mark.parametrize(("name", "params", "deployed", "slow"), [
    ("evo_levit_128s", 8_606_651, 7_835_115, 7), ("evo_levit_128", 10_041_022, 9_269_486, 10),
    ("evo_levit_192", 11_803_526, 11_031_990, 10),
    ("evo_levit_256", 20_035_278, 19_007_230, 10), ("evo_levit_384", 40_836_830, 39_295_758, 10)])
def test_published_sizes(name: str, params: int, deployed: int, slow: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("aux_")) == deployed
    assert sum(block.keep_ratio == 0.5 for stage in model.arch.stages for block in stage.blocks) == slow
    assert [model.arch.grid(s) for s in range(len(model.arch.stages))] == [(14, 14), (7, 7), (4, 4)]


# ---- the schedule ---------------------------------------------------------------------------------------------------

def test_every_selection_is_made_where_the_schedule_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    select = tokens.select

    def watched(score: Tensor, *, keep: int, **rest: Any) -> tokens.Selection:
        seen.append((score.shape[1], keep))
        return select(score, keep=keep, **rest)

    monkeypatch.setattr(tokens, "select", watched)
    x = torch.randn(1, 3, 96, 96)  # maps of 6x6, 3x3, 2x2
    tiny()(x)
    assert seen == [(36, 18), (9, 4), (4, 2)]
    seen.clear()
    tiny(96, layer_wise=True)(x)
    assert seen == [(36, 18), (9, 4), (9, 4), (4, 2), (4, 2)]
    seen.clear()
    tiny(96, keep_ratios=(1.0, 0.7, 0.7, 1.0, 1.0, 0.3, 0.3))(x)
    assert seen == [(36, 25), (4, 1)]


def test_the_options_change_the_network() -> None:
    x, base = torch.randn(2, 3, 96, 96) * 10, tiny()
    for options in ({"representative": False}, {"keep_ratios": (1.0,) * 7}, {"keep_ratios": (1.0, 1.0, 0.3, 1.0, 1.0, 1.0, 1.0)}):
        other = tiny(96, **options)
        other.load_state_dict(base.state_dict())
        assert other.arch.id != base.arch.id
        assert not torch.equal(other(x), base(x)), options
    assert Arch.from_json(base.arch.to_json()) == base.arch
    fixed = tiny(96, learned_tradeoff=False)
    assert not [n for n in fixed.state_dict() if n.endswith("learn_tradeoff")]
    fixed.load_state_dict({n: t for n, t in base.state_dict().items() if not n.endswith("learn_tradeoff")})
    torch.testing.assert_close(fixed(x), base(x))  # the learned one starts at 0.5
    with pytest.raises(ArchError, match="3 keep ratios for 7 layers"):
        tiny(keep_ratios=(1.0, 0.5, 0.5))


def test_only_tradeoffs_that_a_later_selection_depends_on_are_trained() -> None:
    trained = [n for n, p in tiny().named_parameters() if n.endswith("learn_tradeoff") and p.requires_grad]
    assert trained == ["stages.0.blocks.1.mixers.0.learn_tradeoff", "stages.0.blocks.2.mixers.0.learn_tradeoff",
                       "stages.1.downsample.learn_tradeoff", "stages.1.blocks.0.mixers.0.learn_tradeoff",
                       "stages.1.blocks.1.mixers.0.learn_tradeoff", "stages.2.downsample.learn_tradeoff"]
    assert not [n for n, p in tiny(representative=False).named_parameters() if n.endswith("learn_tradeoff") and p.requires_grad]


# ---- timm's interface -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [96, 128, (64, 96), (80, 40), (50, 70)])
def test_any_resolution_works(size: Any) -> None:
    model = tiny(size)
    out = model(torch.randn(2, 3, *model.arch.image_size))
    assert out.shape == (2, 5) and out.isfinite().all()


@pytest.mark.parametrize("layer_wise", [False, True])
def test_a_map_of_one_token_cannot_select_and_is_refused_by_name(layer_wise: bool) -> None:
    with pytest.raises(ArchError, match=r"use 1\.0 on a 1x1 map"):
        tiny(64, layer_wise=layer_wise)
    assert tiny(64, keep_ratios=(1.0,) * 3 + (0.5,) * 2 + (1.0,) * 2, layer_wise=layer_wise)(torch.randn(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("layer_wise", [False, True])
def test_timm_interface(layer_wise: bool) -> None:
    features = tiny(96, features_only=True, layer_wise=layer_wise)(torch.randn(1, 3, 96, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(16, 6, 6), (24, 3, 3), (32, 2, 2)]
    model = tiny(num_classes=0)
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 32)
    model.reset_classifier(7)
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 7)
    with pytest.raises(ConfigError, match=r"no_such.*layer_wise"):
        tiny(no_such=1)


def test_training_gives_four_logits_where_asked() -> None:
    model, x = tiny().train(), torch.randn(2, 3, 96, 96)
    model.set_distilled_training()
    both, own = model.forward_aux(x)
    assert [t.shape for t in (*both, *own)] == [(2, 5)] * 4
    model.set_distilled_training(False)
    assert [t.shape for t in model.forward_aux(x)] == [(2, 5)] * 2
    assert [t.shape for t in tiny(distillation=False).forward_aux(x)] == [(2, 5)] * 2


# ---- checkpoints ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("distillation", [False, True])
def test_official_checkpoint_round_trips_whatever_the_schedule(distillation: bool) -> None:
    source = tiny(distillation=distillation)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    target, again = tiny(layer_wise=True, distillation=distillation), tiny(distillation=distillation)
    nasvit.zoo.load_official(target, official_names(source))
    theirs = official_names(target)
    nasvit.zoo.load_official(again, {**theirs, "stage_blocks.0.m.learn_tradeoff": torch.zeros(1)})  # the trunk's second names
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(again(x), source(x))
    nasvit.zoo.load_official(tiny(learned_tradeoff=False, distillation=distillation), theirs)


def test_weights_move_between_schedules() -> None:
    source, other, again = tiny(), tiny(layer_wise=True, learned_tradeoff=False), tiny()
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.0 if name.endswith("learn_tradeoff") else 0.1))
    nasvit.zoo.reschedule(source, other)
    nasvit.zoo.reschedule(other, again)
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(again(x), source(x))
    with pytest.raises(CheckpointError, match=r"head\.weight is"):
        nasvit.zoo.reschedule(source, tiny(num_classes=4))


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("blocks.5.m1.m.qkv.c.weight"), r"no blocks\.5\.m1\.m\.qkv\.c\.weight"),
    (lambda s: s.update(extra=torch.zeros(1)), "extra"),
    (lambda s: s.update({"head.l.weight": torch.zeros(4, 32)}), r"head\.weight is \(4, 32\), not \(5, 32\)"),
    (lambda s: s.update(poss=torch.zeros(1, 26, 16)), "26 positions, not 6x6")])
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(change: Any, message: str) -> None:
    model = tiny()
    state, before = official_names(tiny()), {n: t.clone() for n, t in model.state_dict().items()}
    change(state)
    with pytest.raises(CheckpointError, match=message):
        nasvit.zoo.load_official(model, state)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("layer_wise", [False, True])
def test_timms_levit_is_a_start(layer_wise: bool) -> None:
    source = timm.models.levit.LevitDistilled(img_size=96, embed_dim=(16, 24, 32), key_dim=8, depth=(3, 2, 2), num_heads=(2, 3, 5),
                                              num_classes=5).eval()
    model = tiny(layer_wise=layer_wise)
    loaded = nasvit.zoo.load_relative(model, source)
    assert all(n.endswith("attention_biases") for n in loaded.unused)
    parts = ("learn_tradeoff", "class_token", "class_position", "pos_embed")
    assert all(n.startswith("aux_") or n.endswith(parts) for n in loaded.initial)
    theirs = source.state_dict()
    assert torch.equal(model.head_dist.weight, theirs["head_dist.linear.weight"])
    last = model.stages[-1].blocks[-1]
    assert torch.equal(last.mlp.fc2.linear.weight, theirs["stages.2.blocks.1.mlp.ln2.linear.weight"])
    assert set(nasvit.zoo.load_relative(tiny(num_classes=3), source).initial) > {"head.weight", "head_dist.bias"}
