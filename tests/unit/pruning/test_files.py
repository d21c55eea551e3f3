"""arch.json and model.safetensors: one loader for both forms, strict about what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nasvit.arch import Arch
from nasvit.errors import CheckpointError, ConfigError
from nasvit.pruning import Plan, form_of, load, prepare, read_form, save, slice_weights, uniform
from tests.pruning_models import make


@pytest.mark.parametrize(("case", "kind"), [("vit", Plan), ("hybrid_tiny", Arch)])
def test_one_loader_reads_both_forms(case: str, kind: type, tmp_path: Path) -> None:
    dense = prepare(make(case))
    pruned = slice_weights(dense, uniform(dense.plan.source, keep=0.5, granule=4), {})
    arch, weights = save(pruned, tmp_path)
    assert isinstance(read_form(arch), kind) and read_form(arch) == form_of(pruned)
    assert all(torch.equal(v, load(arch, weights).state_dict()[n]) for n, v in pruned.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arch.json", "model.safetensors"]


def test_a_pruned_network_of_an_arch_can_be_pruned_again() -> None:
    dense = prepare(make("hybrid_tiny"))
    once = slice_weights(dense, uniform(dense.plan.source, keep=0.5, granule=4), {})
    twice = prepare(once)
    assert twice.plan.source.options["arch"] == form_of(once).to_dict()
    heads = [sum(b.heads for b in plan.blocks) for plan in (dense.plan, twice.plan, uniform(twice.plan.source, keep=0.5, granule=4))]
    assert heads[0] > heads[1] > heads[2]
    smallest = slice_weights(twice, uniform(twice.plan.source, keep=0.5, granule=4), {})
    arch = form_of(smallest)
    assert isinstance(arch, Arch) and smallest(torch.randn(1, arch.in_channels, *arch.image_size)).isfinite().all()


def test_heads_of_their_own_width_come_back_from_the_files(tmp_path: Path) -> None:
    dense = prepare(make("hybrid_tiny"))
    pruned = slice_weights(dense, uniform(dense.plan.source, keep=0.5, parts=("heads",)), {})
    arch = read_form(save(pruned, tmp_path)[0])
    assert isinstance(arch, Arch) and '"head_dim":8' in arch.to_json() and "head_dim" not in make("hybrid_tiny").arch.to_json()


def test_weights_of_another_plan_are_refused_by_tensor(tmp_path: Path) -> None:
    dense = prepare(make("vit"))
    arch, weights = save(slice_weights(dense, uniform(dense.plan.source, keep=0.5), {}), tmp_path)
    tensors = load_file(weights)
    tensors["head.bias"] = tensors["head.bias"][1:]
    del tensors["pos_embed"]
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"pos_embed is missing.*head\.bias"):
        load(arch, weights)


def test_files_that_are_neither_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "arch.json"
    with pytest.raises(ConfigError, match=r"arch\.json"):
        read_form(path)
    path.write_text("no json")
    with pytest.raises(ConfigError, match=r"arch\.json"):
        read_form(path)


def test_a_live_timm_model_is_not_saved_as_a_pruned_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="VisionTransformer"):
        save(make("vit"), tmp_path)
