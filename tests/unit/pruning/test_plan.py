"""Plans: one spelling, exact JSON, and refusals that name the block."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nasvit.pruning import BlockPlan, Plan, PlanError, Source

SOURCE = Source.of("timm:x", family="vit", description={"b": 1, "a": [1, 2]})


def plan(*ratios: float, operator: str = "none") -> Plan:
    return Plan(source=SOURCE, blocks=tuple(BlockPlan(heads=3, head_dim=16, mlp_dim=96, keep_ratio=r) for r in ratios), embed_dims=(48,),
                operator=operator)


def test_a_plan_comes_back_from_json_equal_and_with_its_id() -> None:
    first = plan(1.0, 0.5, operator="merge")
    again = Plan.from_json(first.to_json())
    assert again == first and again.id == first.id and len(first.id) == 12


def test_the_order_of_the_description_does_not_change_the_id() -> None:
    other = Source.of("timm:x", family="vit", description={"a": [1, 2], "b": 1})
    assert replace(plan(1.0), source=other).id == plan(1.0).id


def test_another_width_is_another_plan() -> None:
    assert replace(plan(1.0), embed_dims=(40,)).id != plan(1.0).id


@pytest.mark.parametrize(("ratios", "operator"), [((1.0, 0.5), "none"), ((1.0, 1.0), "merge")])
def test_an_operator_and_its_ratios_go_together(ratios: tuple[float, ...], operator: str) -> None:
    with pytest.raises(PlanError, match="operator"):
        plan(*ratios, operator=operator)


@pytest.mark.parametrize("operator", ["merge", "topk_fuse"])
def test_tokens_that_went_do_not_come_back(operator: str) -> None:
    with pytest.raises(PlanError, match="block 1"):
        plan(0.5, 0.7, operator=operator)


def test_slow_fast_restores_tokens_so_its_ratios_may_rise() -> None:
    assert plan(1.0, 0.5, 1.0, operator="slow_fast").kept(9) == (9, 4, 9)


@pytest.mark.parametrize("values", [{"heads": 0}, {"head_dim": 0}, {"mlp_dim": -1}, {"keep_ratio": 0.0}, {"heads": True}, {"mlp_dim": 1.5}])
def test_impossible_blocks_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(PlanError):
        replace(plan(1.0).blocks[0], **values)


@pytest.mark.parametrize("text", ["[]", "{", '{"source": {}, "blocks": [], "embed_dims": [], "operator": "none"}', '{"blocks": []}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_a_wrong_block_is_named() -> None:
    data = plan(1.0, 1.0).to_dict()
    data["blocks"][1]["heads"] = "three"
    with pytest.raises(PlanError, match="block 1: heads"):
        Plan.from_dict(data)
