"""Evo-ViT: a slow-fast segment of our blocks reproduces the reference with a representative token.

Parameter names of the reference are the official DeiT ones: qks.i.qk, vs.i.v, norms.i, projs.i, blocks.i.{norm2, mlp}.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem, keep_count
from nasvit.models import build
from tests.golden.cases import Case, assert_matches, cases

DERIVED = ("evo_deit_representative",)


def convert(weights: dict[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """Official DeiT names -> ours. The position of the class token is added to the token itself."""
    height, width = arch.grid(0)
    ours = {"stem.proj.weight": weights["patch_embed.proj.weight"], "stem.proj.bias": weights["patch_embed.proj.bias"],
            "class_token": weights["cls_token"] + weights["pos_embed"][:, :1],
            "pos_embed": weights["pos_embed"][:, 1:].reshape(1, height, width, -1)}
    for i in range(len(arch.stages[0].blocks)):
        to = f"stages.0.blocks.{i}"
        for kind in ("weight", "bias"):
            ours[f"{to}.mixers.0.qkv.{kind}"] = torch.cat([weights[f"qks.{i}.qk.{kind}"], weights[f"vs.{i}.v.{kind}"]])
            ours[f"{to}.mixers.0.proj.{kind}"] = weights[f"projs.{i}.{kind}"]
            ours[f"{to}.norms.0.{kind}"] = weights[f"norms.{i}.{kind}"]
            ours[f"{to}.mlp_norm.{kind}"] = weights[f"blocks.{i}.norm2.{kind}"]
            ours[f"{to}.mlp.fc1.{kind}"] = weights[f"blocks.{i}.mlp.fc1.{kind}"]
            ours[f"{to}.mlp.fc2.{kind}"] = weights[f"blocks.{i}.mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"], ours[f"head.{kind}"] = weights[f"norm.{kind}"], weights[f"head.{kind}"]
        ours[f"aux_norm.{kind}"] = weights.get(f"norm_cls.{kind}", weights[f"norm.{kind}"])
        ours[f"aux_head.{kind}"] = weights.get(f"head_cls.{kind}", weights[f"head.{kind}"])
    return ours


@pytest.mark.parametrize("case", cases("evovit"))
def test_deit_with_representative(case: Case) -> None:
    if case.data["variant"] not in DERIVED:
        pytest.skip("the authors' whole DeiT and LeViT forms are not here yet")
    config = case.config
    mixer = MixerSpec.of("global", num_heads=config["num_heads"])
    mlp_dim = int(config["embed_dim"] * config["mlp_ratio"])
    blocks = tuple(Block(mixers=(mixer,), mlp_dim=mlp_dim, keep_ratio=ratio) for ratio in config["prune_ratio"])
    arch = Arch(image_size=(config["img_size"],) * 2, in_channels=3, num_classes=config["num_classes"],
                stem=Stem(kind="patch", stride=config["patch_size"], pos_embed=True, class_token=True),
                stages=(Stage(embed_dim=config["embed_dim"], blocks=blocks),))
    model = build(arch, seed=0).double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = config["ln_eps"]
    # the reference selects anew at each stage start although the ratio is the same; our segments would merge there
    stage, starts = model.stages[0], config["stage_starts"]
    bounds = [*starts, config["depth"]]
    stage.segments = ((0, starts[0], 1.0), *((a, b, r) for a, b, r in zip(bounds[:-1], bounds[1:], config["keep_ratios"], strict=True)))
    grid = arch.grid(0)
    stage.keep = tuple(keep_count(grid[0] * grid[1], ratio) for _, _, ratio in stage.segments)
    stage.last_selection = starts[-1]
    model.load_state_dict(convert(case.weights(torch.float64), arch))
    with torch.no_grad():
        output = model(case.input(torch.float64))
    assert_matches(output, case.data["eval_output"], tolerance=1e-5, scale="std")
