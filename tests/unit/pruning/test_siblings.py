from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nasvit.pruning.siblings import Measured, smaller_names, verdict
from nasvit.search.prune_siblings import compared

MODELS = {"deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224", "levit_128s", "levit_192", "pvt_v2_b0", "pvt_v2_b2"}


@pytest.mark.parametrize(("name", "found"), [
    ("deit_base_patch16_224", ["deit_small_patch16_224", "deit_tiny_patch16_224"]), ("deit_tiny_patch16_224", []),
    ("levit_256", ["levit_192", "levit_128s"]), ("pvt_v2_b2", ["pvt_v2_b0"]), ("resnet50", [])])
def test_smaller_members_of_a_family_are_found_by_their_names(name: str, found: list[str]) -> None:
    assert smaller_names(name, exists=MODELS.__contains__) == found


def at(ms: float, accuracy: float | None, *, half: float = 0.05, name: str = "it") -> Measured:
    return Measured(name=name, latency_ms=ms, ci_low_ms=ms * (1 - half), ci_high_ms=ms * (1 + half), accuracy=accuracy)


PLANTED = [  # siblings of a pruned model at 5 ms and 80 %, and whether one of them dominates it; nobody compared is no "no"
    ([], None), ([at(5, 0.81)], True), ([at(5, 0.79)], False), ([at(5, 0.80)], False), ([at(4, 0.80)], True), ([at(4, 0.79)], False),
    ([at(6, 0.90)], False), ([at(5.3, 0.81)], True), ([at(5.6, 0.99)], False), ([at(4.6, 0.80)], False), ([at(1, 0.81)], True),
    ([at(4, None)], None), ([at(6, None)], False), ([at(4, None), at(4, 0.9)], True), ([at(4, 0.7), at(4, None)], None),
    ([at(4, 0.7), at(3, 0.6)], False), ([at(8, 0.9), at(4.9, 0.8001)], True), ([at(5, 0.81, half=0.3)], True),
    ([at(7, 0.81, half=0.4)], True), ([at(7, 0.81, half=0.1)], False)]


def test_a_sibling_that_could_not_be_measured_leaves_the_verdict_open_unless_another_decides_it() -> None:
    open_ = verdict(at(5, 0.8), [at(4, 0.7)], unmeasured=["small"])
    assert open_.dominated is None and "small: unknown" in open_.text
    assert verdict(at(5, 0.8), [at(4, 0.9)], unmeasured=["small"]).dominated is True
    both = verdict(at(5, 0.8), [at(4, None, name="blind")], unmeasured=["small"]).text
    assert "blind: unknown" in both and "small: unknown" in both


@pytest.mark.parametrize(("siblings", "dominated"), PLANTED)
def test_twenty_planted_verdicts(siblings: list[Measured], dominated: bool | None) -> None:
    found = verdict(at(5, 0.80, name="pruned"), siblings)
    assert found.dominated is dominated
    open_ = "unknown" if siblings else "no sibling was compared"
    said = ("yes" in found.text, found.text.endswith(": no"), open_ in found.text)
    assert said == (dominated is True, dominated is False, dominated is None)


@pytest.mark.parametrize(("sibling", "owned"), [("deit_tiny_patch16_224", True), ("pvt_v2_b0", True),
                                                ("vit_relpos_small_patch16_224", False)])
def test_a_sibling_is_measured_in_the_form_that_pruned_models_have_where_its_family_is_known(sibling: str, owned: bool) -> None:
    seen: list[nn.Module] = []

    def measure(module: nn.Module, *, input_shape: tuple[int, ...]) -> Any:
        module(torch.zeros(input_shape))
        seen.append(module)
        return SimpleNamespace(to_dict=lambda: {"median_ms": 4.0, "ci_low_ms": 3.9, "ci_high_ms": 4.1})

    data: Any = SimpleNamespace(image_size=(32, 32), in_channels=3, num_classes=4)
    experiment: Any = SimpleNamespace(siblings={sibling: None})
    device: Any = SimpleNamespace(measure=measure)
    told = compared(at(5, 0.8), experiment, model="arch:none", data=data, device=device)
    assert [row["latency_ms"] for row in told["siblings"]] == [4.0]
    assert type(seen[0]).__module__.startswith("nasvit.pruning" if owned else "timm.")
