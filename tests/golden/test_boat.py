"""BOAT: clustering, FSLA and Swin's bilateral block against reference outputs, for any configuration of these kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nasvit.models.mixers.base import MIXERS
from nasvit.models.mixers.fsla import FSLAMixer, cluster_attention, cluster_order, key_lists
from tests.golden.cases import Case, assert_matches, cases

PRECISIONS = [pytest.param(torch.float64, 1e-8, id="float64"), pytest.param(torch.float32, 1e-5, id="float32")]
LATER = "cross-shaped windows / whole published models are not here yet"


def kind(case: Case) -> str:
    """cluster, fsla, block_swin, block_cswin or model: by what the case contains, so that a case may have any name."""
    names = {name for name, _ in case.data.get("state_dict") or ()}
    if "cluster_id_by_token" in case.data["eval_output"]:
        return "cluster"
    if case.data["level"] == "model":
        return "model"
    if "attn.relative_position_bias_table" in names:
        return "block_swin"
    if "content_attn.qkv.weight" in names:
        return "block_cswin"
    if "qkv.weight" in names and "levels" in case.config:
        return "fsla"
    raise AssertionError(f"{case.name}: a kind of case that this adapter does not know")


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", cases("boat"))
def test_reproduces(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    what = kind(case)
    if what in ("model", "block_cswin"):
        pytest.skip(LATER)
    if what == "cluster":
        check_cluster(case, dtype)
        return
    output = fsla(case, dtype) if what == "fsla" else swin_block(case, dtype)
    assert_matches(output, case.data["eval_output"], tolerance=tolerance, scale="std")


# ---- clustering -----------------------------------------------------------------------------------------------------

def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `cluster_order`, but for the depth."""
    extra = {} if config["temperature"] is None else {"temperature": config["temperature"]}
    return {"iterations": config["iters"], "assign": config["assign"], **extra}


def check_cluster(case: Case, dtype: torch.dtype) -> None:
    if "informational" in case.data["input"].get("note", ""):
        pytest.skip("informational: with exact duplicates the order of ties follows rounding")
    if dtype == torch.float32 and not case.data["float32_gives_same_order"]:
        pytest.skip("the reference itself gives another order in float32")
    config, stored, between = case.config, case.data["eval_output"], case.data["intermediate"]
    q = case.input(dtype)  # (groups, N, d)
    orders = [cluster_order(q, depth=level, **options(config)) for level in range(config["levels"] + 1)]
    if config["order"] == "descending":
        orders = [descending(order, level) for level, order in enumerate(orders)]
    else:
        assert config["order"] == "ascending", f"unknown order {config['order']!r}"
    after = torch.tensor(between["order_after_level"])  # (groups, levels, N)
    for level, order in enumerate(orders[1:]):
        assert torch.equal(order, after[:, level]), f"level {level + 1}"
    final = orders[-1]
    assert final.tolist() == stored["final_order"]
    clusters = torch.arange(2 ** config["levels"]).repeat_interleave(q.shape[1] >> config["levels"])
    ids = torch.empty_like(final).scatter_(1, final, clusters.expand_as(final))
    assert ids.tolist() == stored["cluster_id_by_token"]
    for overlap, lists in between["kv_lists_by_overlap"].items():
        keys = key_lists(final[0], depth=config["levels"], overlap=int(overlap))
        assert [sorted(k) for k in keys.tolist()] == [sorted(k) for k in lists[0]], f"overlap {overlap}"


def descending(order: Tensor, depth: int) -> Tensor:
    """The list that descending sorts give: a split exchanges its children, and a child read backwards exchanges its
    centroids, so that the next sort gives the ascending list again. Hence levels 1, 3, 5.. are mirrored.
    """
    pieces = order.view(order.shape[0], *(2,) * depth, -1)
    mirrored = [level for level in range(1, depth + 1) if level % 2] + ([depth + 1] if depth % 2 else [])
    return pieces.flip(mirrored).reshape(order.shape)


# ---- FSLA -----------------------------------------------------------------------------------------------------------

MIXER = {"iterations": 2, "assign": "soft", "temperature": 100.0}


def fsla(case: Case, dtype: torch.dtype) -> Tensor:
    """(B, N, C), by the mixer where the case is the published form, else by the same pure functions."""
    config, weights, x = case.config, case.weights(dtype), case.input(dtype)
    height, width = config["hw"]
    dim, heads, depth = config["dim"], config["heads"], config["levels"]
    overlap = config["overlap"] if depth else 0  # one cluster has no sibling
    head_dim = dim // heads
    own_scale = abs(config["scale"] - head_dim**-0.5) < 1e-8  # stored with 9 digits
    assert (config["clusters_on"], config["overlap_on"]) == ("Q, per head", "K and V only")
    grid = x.view(-1, height, width, dim)
    if config["lepe"] and own_scale and "qkv.bias" in weights and options(config) == MIXER:
        return fsla_mixer(weights, grid.shape, heads, depth, overlap, dtype)(grid).view(x.shape)
    qkv = F.linear(x, weights["qkv.weight"], weights.get("qkv.bias"))
    q, k, v = qkv.view(*x.shape[:2], 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    order = cluster_order(q, depth=depth, **options(config))
    scale = None if own_scale else config["scale"]
    out = cluster_attention(q, k, v, order, depth=depth, overlap=overlap, scale=scale).transpose(1, 2).reshape(x.shape)
    if config["lepe"]:
        values = qkv[..., 2 * dim:].view(grid.shape).permute(0, 3, 1, 2)
        lepe = F.conv2d(values, weights["get_v.weight"], weights["get_v.bias"], padding=1, groups=dim)
        out = out + lepe.flatten(2).transpose(1, 2)
    return F.linear(out, weights["proj.weight"], weights["proj.bias"])


def fsla_mixer(weights: Mapping[str, Tensor], shape: torch.Size, heads: int, depth: int, overlap: int, dtype: torch.dtype) -> FSLAMixer:
    """A mixer filled by official names."""
    mixer = FSLAMixer(shape[3], resolution=(shape[1], shape[2]), num_heads=heads, cluster_depth=depth, overlap=overlap)
    mixer.load_state_dict({name.replace("get_v.", "lepe."): value for name, value in weights.items()})
    return mixer.to(dtype).eval()


# ---- the bilateral block --------------------------------------------------------------------------------------------

CLUSTER_SIZE, OVERLAP = 49, 20  # fixed in the public code


def swin_block(case: Case, dtype: torch.dtype) -> Tensor:
    """(B, N, C): window attention, FSLA in shifted blocks, MLP, each behind its own layer norm."""
    config, weights, x = case.config, case.weights(dtype), case.input(dtype)
    side, dim, heads = config["res"], config["dim"], config["heads"]
    assert config["shift"] in (0, config["window"] // 2), "the mixer shifts by half a window"
    grid = x.view(-1, side, side, dim)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (dim,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    window = MIXERS["window"](dim, resolution=(side, side), num_heads=heads, window_size=config["window"], shift=bool(config["shift"]))
    load_window(window, part("attn."), dtype)
    grid = grid + window(norm("norm1", grid))
    content = part("attnC.")
    assert bool(content) == bool(config["shift"])
    if content:
        depth = (side * side // CLUSTER_SIZE).bit_length() - 1
        grid = grid + fsla_mixer(content, grid.shape, heads, depth, OVERLAP if depth else 0, dtype)(norm("norm4", grid))
    hidden = F.gelu(F.linear(norm("norm2", grid), weights["mlp.fc1.weight"], weights["mlp.fc1.bias"]))
    grid = grid + F.linear(hidden, weights["mlp.fc2.weight"], weights["mlp.fc2.bias"])
    return grid.view(x.shape)


def load_window(window: torch.nn.Module, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Fill a window mixer by the names of Swin's window attention."""
    missing, unexpected = window.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert not {name for name, _ in window.named_parameters()} & set(missing), missing
    window.to(dtype).eval()
