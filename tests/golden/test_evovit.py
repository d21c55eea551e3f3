"""Evo-ViT: whole models of the zoo, and LeViT's slow-fast layers and subsampling, reproduce the reference outputs for any configuration.

Module cases give their tokens in any order, with a score and each token's raster position; their outputs are in the order of the
selection: class token, kept tokens, placeholders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nasvit.arch import Arch, Block, Head, MixerSpec, Stage, Stem, keep_count
from nasvit.models import tokens
from nasvit.models.blocks import StageModule
from nasvit.models.build import build
from nasvit.models.levit import LevitDownsample
from nasvit.zoo import FAMILIES, load_official
from nasvit.zoo.checkpoint import Checkpoint
from nasvit.zoo.evo_levit import take_attention, take_downsample, take_mlp
from tests.golden.cases import Case, assert_matches, cases

TOLERANCE = 1e-5
Selections = list[tuple[int, Tensor]]


def schedule(config: Any) -> tuple[list[float], tuple[int, ...]]:
    """keep_ratios and selections of a DeiT case. Stage by stage, the authors select at layers 4 and 8 of their 12."""
    ratios = [float(r) for r in config["prune_ratio"]]
    if "stage_starts" not in config and not config["stage_wise_prune"]:
        return ratios, ()
    starts = list(config.get("stage_starts", (4, 8)))
    chosen = config.get("keep_ratios", [ratios[s] for s in starts])
    for start, stop, ratio in zip(starts, [*starts[1:], len(ratios)], chosen, strict=True):
        ratios[start:stop] = [float(ratio)] * (stop - start)
    return ratios, tuple(starts)


def deit(case: Case) -> Arch:
    config, (keep_ratios, selections) = case.config, schedule(case.config)
    return FAMILIES["evo_deit"].arch(
        image_size=(config["img_size"],) * 2, in_channels=3, num_classes=config["num_classes"], embed_dim=config["embed_dim"],
        num_heads=config["num_heads"], patch_size=config["patch_size"], mlp_ratio=config["mlp_ratio"], keep_ratios=keep_ratios,
        selections=selections, layer_wise=not selections, score_shares=config["tradeoff"], prunecls=config.get("prunecls", False),
        representative=case.data["variant"] == "evo_deit_representative")


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split("_")]


def levit(case: Case) -> Arch:
    config = case.config
    depths, (layer_ratios, stage_ratios) = numbers(config["X"]), config["prune_ratio"]
    stage_of = [s for s, depth in enumerate(depths) for _ in range(depth)]
    stage_wise = config["stage_wise_prune"]
    ratios = [float(stage_ratios[s]) if stage_wise and ratio < 1 else float(ratio) for s, ratio in zip(stage_of, layer_ratios, strict=True)]
    assert len(set(config["attn_ratio"])) == len(set(config["mlp_ratio"])) == 1, "one ratio for all stages"
    return FAMILIES["evo_levit"].arch(
        image_size=(config["img_size"],) * 2, in_channels=3, num_classes=config["num_classes"], embed_dims=numbers(config["C"]),
        num_heads=numbers(config["N"]), depths=depths, key_dim=config["D"], keep_ratios=ratios, layer_wise=not stage_wise,
        learned_tradeoff=config["learn_tradeoff_mode"], attn_ratio=config["attn_ratio"][0], mlp_ratio=config["mlp_ratio"][0],
        distillation=config["distillation"])


def model(case: Case, family: str, arch: Arch, dtype: torch.dtype) -> Any:
    made: Any = build(arch, seed=0)
    made.family = family
    made = made.to(dtype).eval()
    load_official(made, case.weights(dtype))
    return made


@pytest.fixture
def selected(monkeypatch: pytest.MonkeyPatch) -> Selections:
    """(tokens, raster positions of the kept ones, sorted) of each selection made."""
    seen: Selections = []
    select = tokens.select

    def watched(score: Tensor, **options: Any) -> tokens.Selection:
        selection = select(score, **options)
        seen.append((score.shape[1], selection.kept.sort(dim=1).values))
        return selection

    monkeypatch.setattr(tokens, "select", watched)
    return seen


@pytest.mark.parametrize("case", [c for pattern in ("deit_*", "derived_*", "levit_*") for c in cases("evovit", pattern)])
def test_the_whole_model_reproduces_the_reference(case: Case, selected: Selections) -> None:
    family, arch = ("evo_levit", levit(case)) if "C" in case.config else ("evo_deit", deit(case))
    # the derived reference is of float64; float32 is of the authors' own runs
    dtype = torch.float64 if "representative" in case.data["variant"] else torch.float32
    network = model(case, family, arch, dtype)
    unused = 0 if family == "evo_deit" or case.config["learn_tradeoff_mode"] else sum(n.endswith("learn_tradeoff")
                                                                                     for n, _ in case.data["state_dict"])
    assert sum(p.numel() for p in network.parameters()) == case.data["params_count"] - unused
    deployed = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("aux_"))
    assert deployed == (case.data.get("params_count_deploy") or deployed + unused) - unused
    with torch.no_grad():
        output = network(case.input(dtype))
    assert_matches(output, case.data["eval_output"], tolerance=TOLERANCE, scale="std")
    same_selections(case, selected)


def same_selections(case: Case, selected: Selections) -> None:
    """The authors count LeViT's positions in the first map, whatever the map: only the order of them is ours."""
    expected = [s for s in case.data["intermediate"]["selections"] if s.get("keep_ratio") != 1 and s["num_keep"] < s.get("num_tokens", 1e9)]
    assert len(selected) == len(expected)
    for (count, kept), reference in zip(selected, expected, strict=True):
        if "kept_sorted" in reference:
            assert kept.tolist() == reference["kept_sorted"]
        else:
            side = round(count**0.5)
            names = first_map_positions(side, int(np.ceil(case.config["img_size"] / 16)))
            assert [[names[i] for i in image] for image in kept.tolist()] == reference["kept_sorted_original_index"]


def first_map_positions(side: int, first: int) -> list[int]:
    """What the authors' indices say after each halving: those of the map before, every second row and column."""
    names = np.arange(first * first).reshape(first, first)
    while len(names) > side:
        names = names[::2, ::2]
    return [int(n) for n in names.flatten()]


@pytest.mark.parametrize("case", cases("evovit", "deit_toy_*"))
def test_training_gives_the_logits_of_both_classifiers(case: Case) -> None:
    if "train_mode_output" not in case.data:
        pytest.skip("no output in training")
    network = model(case, "evo_deit", deit(case), torch.float32).train()
    outputs = network.forward_aux(case.input())
    for output, name in zip(outputs, ("head", "head_cls"), strict=True):
        assert_matches(output, case.data["train_mode_output"][name], tolerance=TOLERANCE, scale="std")


def running_score(case: Case) -> tuple[Tensor, Tensor]:
    """The score (B, N) of the tokens as they come, and each one's raster position."""
    seed, (batch, length, _) = case.data["input"]["seed"], case.data["input"]["shape"]
    score = np.random.RandomState(seed + 1).random_sample((batch, length - 1))
    order = np.random.RandomState(seed + 2)
    positions = np.stack([order.permutation(length - 1) for _ in range(batch)])
    return torch.from_numpy((score / score.sum(1, keepdims=True)).astype(np.float32)), torch.from_numpy(positions)


def slow_fast(case: Case) -> tuple[Tensor, Tensor]:
    """One layer, or a stage of them with one selection: a stage of ours whose tokens arrive scored."""
    config, grid = case.config, (case.config["resolution"],) * 2
    learned = {"learned_tradeoff": True} if config["learn_tradeoff_mode"] else {}
    mixer = MixerSpec.of("levit", num_heads=config["heads"], key_dim=config["key_dim"], attn_ratio=config["attn_ratio"], **learned)
    slow = Block(mixers=(mixer,), mlp_dim=int(config["dim"] * config["mlp_ratio"]), keep_ratio=config["keep_ratio"], mlp="levit")
    plain = Stage(embed_dim=config["dim"], blocks=(Block(mixers=(mixer,), mlp_dim=1, mlp="levit"),))
    arch = Arch(image_size=grid, in_channels=config["dim"], num_classes=1, head=Head(kind="mean"),
                stem=Stem(kind="patch", stride=1, class_token=True),
                stages=(plain, Stage(embed_dim=config["dim"], blocks=(slow,) * config["depth"], downsample="none")))
    stage = StageModule(arch, 1, drop_paths=[0.0] * config["depth"], class_enters=True, class_begins=False, scored=True,
                        keeps_only=False).eval()
    stage.use_score(True)
    checkpoint = Checkpoint.of(case.weights())
    weights: dict[str, Tensor] = {}
    for b in range(config["depth"]):
        whole = "m1.m.qkv.c.weight" in checkpoint
        attention, mlp = ("m1.m", "m2.m") if whole else (f"m.{2 * b}.m", f"m.{2 * b + 1}.m")
        weights |= take_attention(checkpoint, attention, f"blocks.{b}.mixers.0", learned=bool(learned))
        weights |= take_mlp(checkpoint, mlp, f"blocks.{b}.mlp")
    checkpoint.must_be_used_up()
    assert all("num_batches_tracked" in name for name in stage.load_state_dict(weights, strict=False).missing_keys)
    x, (score, _) = case.input(), running_score(case)
    assert keep_count(score.shape[1], config["keep_ratio"]) == config["num_keep"]
    out, class_token, after = stage(x[:, 1:].unflatten(1, grid), x[:, :1], score)
    order = score.argsort(dim=1, descending=True)
    return torch.cat([class_token, tokens.take(out.flatten(1, 2), order)], dim=1), after.gather(1, order)


def subsample(case: Case) -> tuple[Tensor, Tensor]:
    """Attention with every second query, without the MLP behind it."""
    config, grid = case.config, (case.config["resolution"],) * 2
    assert config["stride"] == 2
    assert config["heads"] == config["in_dim"] // config["key_dim"]
    module = LevitDownsample(config["in_dim"], config["out_dim"], resolution=grid, key_dim=config["key_dim"], class_token=True,
                             learned_tradeoff=True, attn_ratio=config["attn_ratio"]).eval()
    checkpoint = Checkpoint.of(case.weights())
    weights = take_downsample(checkpoint, "", "", grid=grid, learned=True)
    checkpoint.must_be_used_up()
    missing = module.load_state_dict(weights, strict=False).missing_keys
    assert all(name.startswith("mlp.") or "num_batches_tracked" in name for name in missing)
    x, (score, positions) = case.input(), running_score(case)
    raster = positions.argsort(dim=1)
    out, class_token, after = module.attend(tokens.take(x[:, 1:], raster).unflatten(1, grid), x[:, :1], score.gather(1, raster))
    assert class_token is not None
    assert after is not None
    return torch.cat([class_token, out.flatten(1, 2)], dim=1), after


MODULES: dict[str, Callable[[Case], tuple[Tensor, Tensor]]] = {"slow-fast layer": slow_fast, "slow-fast stage": slow_fast,
                                                               "subsample": subsample}


@pytest.mark.parametrize("case", cases("evovit", "m_*"))
def test_levits_modules_reproduce_the_reference(case: Case) -> None:
    with torch.no_grad():
        output, score = MODULES[case.data["variant"]](case)
    assert_matches(output, case.data["eval_output"], tolerance=TOLERANCE, scale="std")
    assert_matches(score, case.data["global_attn_out"], tolerance=TOLERANCE, scale="std")
