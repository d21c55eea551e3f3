"""BOAT: clustering, FSLA, bilateral blocks and whole models against reference outputs, for any configuration of these kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import nasvit.zoo
from nasvit.arch import Block, MixerSpec
from nasvit.models.blocks import MixerBlock
from nasvit.models.mixers.fsla import FSLAMixer, cluster_attention, cluster_order, key_lists
from nasvit.torchvision_ops import ensure
from nasvit.zoo import boat, cswin
from nasvit.zoo.checkpoint import Checkpoint
from tests.golden.cases import Case, assert_matches, cases

ensure()
import timm  # noqa: E402 (timm needs torchvision importable first)

PRECISIONS = [pytest.param(torch.float64, 1e-8, id="float64"), pytest.param(torch.float32, 1e-5, id="float32")]
DEFECT = "documents a defect of the released code, images of a batch mixing in the last stage; its twin without the defect is the reference"


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
    if mixes_images(case):
        pytest.skip(DEFECT)
    if what == "cluster":
        check_cluster(case, dtype)
        return
    with torch.no_grad():
        output = {"fsla": fsla, "block_swin": swin_block, "block_cswin": cswin_block, "model": model}[what](case, dtype)
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
    scale = own_scale(config["scale"], dim=dim, heads=heads)
    assert (config["clusters_on"], config["overlap_on"]) == ("Q, per head", "K and V only")
    grid = x.view(-1, height, width, dim)
    if config["lepe"] and "qkv.bias" in weights and options(config) == MIXER:
        return fsla_mixer(weights, grid.shape, heads, depth, overlap, scale, dtype)(grid).view(x.shape)
    qkv = F.linear(x, weights["qkv.weight"], weights.get("qkv.bias"))
    q, k, v = qkv.view(*x.shape[:2], 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    order = cluster_order(q, depth=depth, **options(config))
    out = cluster_attention(q, k, v, order, depth=depth, overlap=overlap, scale=scale).transpose(1, 2).reshape(x.shape)
    if config["lepe"]:
        values = qkv[..., 2 * dim:].view(grid.shape).permute(0, 3, 1, 2)
        lepe = F.conv2d(values, weights["get_v.weight"], weights["get_v.bias"], padding=1, groups=dim)
        out = out + lepe.flatten(2).transpose(1, 2)
    return F.linear(out, weights["proj.weight"], weights["proj.bias"])


def fsla_mixer(weights: Mapping[str, Tensor], shape: torch.Size, heads: int, depth: int, overlap: int, scale: float | None,
               dtype: torch.dtype) -> FSLAMixer:
    """A mixer filled by official names."""
    mixer = FSLAMixer(shape[3], resolution=(shape[1], shape[2]), num_heads=heads, cluster_depth=depth, overlap=overlap, qk_scale=scale)
    mixer.load_state_dict({name.replace("get_v.", "lepe."): value for name, value in weights.items()})
    return mixer.to(dtype).eval()


# ---- blocks ---------------------------------------------------------------------------------------------------------

def loaded(spec: Block, converted: Mapping[str, Tensor], *, case: Case, dtype: torch.dtype) -> Tensor:
    """The case's output by our block with converted weights: (B, N, C)."""
    config, x = case.config, case.input(dtype)
    side, dim = config["res"], config["dim"]
    block = MixerBlock(spec, dim=dim, resolution=(side, side), drop_path=0.0, where="block", norm_eps=1e-5)
    block.load_state_dict({name.removeprefix("ours."): value for name, value in converted.items()}, strict=True)
    assert sum(p.numel() for p in block.parameters()) == case.data["params_count"]
    return block.to(dtype).eval()(x.view(-1, side, side, dim), None, scored=False)[0].view(x.shape)


def official(case: Case, dtype: torch.dtype) -> Checkpoint:
    return Checkpoint.of({f"block.{name}": value for name, value in case.weights(dtype).items()})


def swin_block(case: Case, dtype: torch.dtype) -> Tensor:
    """Window attention, FSLA in shifted blocks, MLP, each behind its own layer norm."""
    config, checkpoint = case.config, official(case, dtype)
    side, heads = config["res"], config["heads"]
    assert config["shift"] in (0, config["window"] // 2), "the mixer shifts by half a window"
    mixers = [MixerSpec.of("window", num_heads=heads, window_size=config["window"], shift=bool(config["shift"]))]
    if config["shift"]:
        mixers.append(boat.clusters((side, side), num_heads=heads, cluster_size=boat.CLUSTER_SIZE, overlap=boat.OVERLAP))
    ours = boat.take_swin_block(checkpoint, "block", "ours", fsla=len(mixers) > 1)
    for old, new in (("norm1", "norms.0"), ("norm2", "mlp_norm"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
        ours |= checkpoint.take_all(f"block.{old}", f"ours.{new}")
    checkpoint.must_be_used_up()
    return loaded(Block(mixers=tuple(mixers), mlp_dim=ours["ours.mlp.fc1.weight"].shape[0]), ours, case=case, dtype=dtype)


def own_scale(value: float, *, dim: int, heads: int) -> float | None:
    """A stored FSLA scale as the parameter of the mixer, left out where it is d ** -0.5 (9 digits are stored)."""
    return None if abs(value - (dim // heads) ** -0.5) < 1e-8 else float(value)


def cswin_block(case: Case, dtype: torch.dtype) -> Tensor:
    """Cross-shaped windows, FSLA, MLP, each behind its own layer norm."""
    config, checkpoint = case.config, official(case, dtype)
    side, dim, heads = config["res"], config["dim"], config["heads"]
    whole = config.get("last_stage", False) or config["split"] >= side
    cross = MixerSpec.of("cross_window", num_heads=heads, split_size=side if whole else config["split"])
    scale = own_scale(config["fsla_scale"], dim=dim, heads=heads)
    content = boat.clusters((side, side), num_heads=heads, cluster_size=boat.CLUSTER_SIZE, overlap=boat.OVERLAP, qk_scale=scale)
    ours = cswin.take_block(checkpoint, "block", "ours", branches=1 if whole else 2) | boat.take_cswin_content(checkpoint, "block", "ours")
    checkpoint.must_be_used_up()
    return loaded(Block(mixers=(cross, content), mlp_dim=ours["ours.mlp.fc1.weight"].shape[0]), ours, case=case, dtype=dtype)


# ---- models ---------------------------------------------------------------------------------------------------------

def mixes_images(case: Case) -> bool:
    """Whether the case is of the released CSWin code's last stage as it is."""
    last = case.data["level"] == "model" or case.config.get("last_stage", False)
    return last and kind(case) in ("model", "block_cswin") and "split" in case.config and "defect removed" not in case.data["source"]


def model(case: Case, dtype: torch.dtype) -> Tensor:
    """Any variant: the smallest one's function, with every size of the configuration given anew, and the released names."""
    config, weights = case.config, case.weights(dtype)
    channels, *size = case.data["input"]["shape"][1:]
    common = {"embed_dim": config["embed_dim"], "num_heads": config["heads"], "num_classes": weights["head.weight"].shape[0],
              "in_chans": channels, "img_size": tuple(size)}
    if "split" in config:
        made = timm.create_model("boat_cswin_tiny", depths=config["depth"], split_sizes=config["split"], fsla_scale=config["fsla_scale"],
                                 **common)
    else:
        fsla_stages = 1 + max(int(name.split(".")[1]) for name in weights if ".attnC." in name)
        made = timm.create_model("boat_swin_tiny", depths=config["depths"], window_size=config["window"], fsla_stages=fsla_stages, **common)
    nasvit.zoo.load_official(made, weights)
    assert sum(p.numel() for p in made.parameters()) == case.data["params_count"]
    return made.to(dtype).eval()(case.input(dtype))
