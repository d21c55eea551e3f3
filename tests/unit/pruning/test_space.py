"""The prune space and its idea of speed, on a plain transformer that nobody built."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from optuna.trial import FixedTrial

from nasvit.cost import count
from nasvit.errors import ArchError, ConfigError
from nasvit.models.deploy import deploy
from nasvit.pruning.dense import build, check, input_shape, prepare
from nasvit.pruning.plan import Plan
from nasvit.pruning.space import BEYOND, GRANULES, NAMED, PARTS, SOLVED, STRENGTHS, PruneSpace, parse_choices
from nasvit.pruning.speed import Speed, terms
from nasvit.search.study import Recorded
from tests.pruning_models import make, timm

CHOICES = ("tokens", "heads", "mlp", "depth", "embed")


def dense_of(image_size: int):
    model = timm.create_model("deit_tiny_patch16_224", img_size=image_size, depth=8, embed_dim=64, num_heads=4, num_classes=10)
    return prepare(model, check=False)


@pytest.fixture(scope="module")
def dense():
    return dense_of(64)


@pytest.fixture
def space(dense) -> PruneSpace:
    return PruneSpace(dense.plan, layout=dense.layout, choices=CHOICES, orders=dict.fromkeys(PARTS, range(8)))


def test_every_sample_can_be_built_touches_something_and_is_recovered_from_its_parameters(space, dense) -> None:
    rng = random.Random(0)
    for _ in range(100):
        plan = space.sample(rng)
        check(plan)
        assert plan != dense.plan
        params = dict(space.arch_parameters(plan))
        assert space.suggest(FixedTrial(params)) == plan == space.from_parameters(params, rng=rng)


def test_a_plan_that_takes_nothing_away_is_refused(space) -> None:
    nothing = {name: values[0] if name in NAMED else 0.0 for name, values in space.parameters().items()}
    with pytest.raises(ArchError, match="takes nothing away"):
        space.suggest(FixedTrial({**nothing, "strength": STRENGTHS}))


def test_more_strength_never_leaves_more(space, dense) -> None:
    rng = random.Random(1)
    for _ in range(30):
        shape = {name: rng.choice(values) for name, values in space.parameters().items()}
        work = [terms(space.plan(shape, s), dense.layout)[1:4].sum() for s in (20, 80, 140, 200)]
        assert work == sorted(work, reverse=True)


def test_widths_are_multiples_of_eight_where_they_were_cut(space, dense) -> None:
    rng = random.Random(2)
    for _ in range(50):
        plan = space.sample(rng)
        assert all(d % 8 == 0 for d in plan.embed_dims)
        assert all(b.mlp_dim % 8 == 0 and b.head_dim % 8 == 0 for b in plan.blocks)


def test_only_what_was_chosen_is_pruned(dense) -> None:
    space = PruneSpace(dense.plan, layout=dense.layout, choices=("mlp",), orders=dict.fromkeys(PARTS, range(8)))
    plan = space.sample(random.Random(0))
    assert plan.with_blocks(mlp_dim=256) == dense.plan.with_blocks(mlp_dim=256)


def test_choices_that_the_model_does_not_have_are_named(dense) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tokens'"):
        parse_choices("token,mlp")
    layout = replace(dense.layout, operators=("none",))
    with pytest.raises(ConfigError, match=r"cannot be pruned by tokens; possible: heads, mlp"):
        PruneSpace(dense.plan, layout=layout, choices=("tokens",), orders=dict.fromkeys(PARTS, ()))


def test_a_choice_that_was_asked_for_and_cannot_be_is_refused_though_others_are_left(dense) -> None:
    layout, orders = replace(dense.layout, operators=("none",)), dict.fromkeys(PARTS, range(8))
    with pytest.raises(ConfigError, match=r"cannot be pruned by tokens; possible: heads, mlp"):
        PruneSpace(dense.plan, layout=layout, choices=("tokens", "mlp"), orders=orders)
    assert PruneSpace(dense.plan, layout=layout, choices=CHOICES, orders=orders).choices == ("heads", "mlp", "depth", "embed")


@pytest.mark.parametrize("part", PARTS)
def test_depth_takes_blocks_or_their_attentions_or_their_mlps(dense, part) -> None:
    orders = {"block": range(8), "attention": range(7, -1, -1), "mlp": (3, 4, 5, 6, 7, 0, 1, 2)}  # from the least important
    space = PruneSpace(dense.plan, layout=dense.layout, choices=("depth",), orders=orders)
    plan = space.suggest(FixedTrial({"depth": 1.0, "dropped": part, "strength": STRENGTHS}))
    check(plan)
    without = [i for i, b in enumerate(plan.blocks) if {"block": b.gone, "attention": not b.heads, "mlp": not b.mlp_dim}[part]]
    assert without == sorted(orders[part][:4]) and all((b.heads == 0) == (b.head_dim == 0) for b in plan.blocks)
    whole = [(b.heads, b.mlp_dim) for i, b in enumerate(plan.blocks) if i not in without]
    assert whole == [(4, 256)] * 4
    assert part == "block" or all(b.mlp_dim if part == "attention" else b.heads for b in plan.blocks)


def test_tokens_are_dropped_behind_attentions_that_are_left(dense) -> None:
    space = PruneSpace(dense.plan, layout=dense.layout, choices=CHOICES, orders=dict.fromkeys(PARTS, range(8)))
    rng, seen = random.Random(3), 0
    for _ in range(200):
        plan = space.sample(rng)
        without = [i for i, b in enumerate(plan.blocks) if i and not b.heads and b.mlp_dim]
        assert all(plan.blocks[i].keep_ratio == plan.blocks[i - 1].keep_ratio for i in without)
        seen += bool(without) and plan.operator != "none"
    assert seen > 10


def test_plans_that_keep_the_same_tokens_are_one_plan(dense) -> None:
    space = PruneSpace(dense.plan, layout=dense.layout, choices=("tokens",), orders=dict.fromkeys(PARTS, range(8)))
    rng, ratios = random.Random(0), dict[tuple, set]()
    for _ in range(300):
        plan = space.sample(rng)
        ratios.setdefault((plan.operator, plan.kept(dense.layout.tokens)), set()).add(tuple(b.keep_ratio for b in plan.blocks))
    assert dense.layout.tokens == 16 and len(ratios) > 50
    assert all(len(of) == 1 for of in ratios.values()), "of 16 tokens 0.5 and 0.56 keep 8"


@pytest.mark.parametrize("case", ["boat_swin", "cswin", "slide_pvtv2", "hybrid_tiny"])
def test_networks_of_an_arch_are_pruned_by_heads_alone(case) -> None:
    dense = prepare(make(case), check=False)
    space = PruneSpace(dense.plan, layout=dense.layout, choices=("heads",), orders=dict.fromkeys(PARTS, ()))
    assert set(space.parameters()) == {f"heads.{k}" for k in range(3)}  # no head_dim, which none of its blocks can lose
    shape, macs = (1, *input_shape(dense.plan)), []
    for strength in (0, 60, STRENGTHS):
        plan = space.plan(dict.fromkeys(space.parameters(), 1.0), strength)
        check(plan)
        counted = count(build(plan), input_shape=shape).macs
        macs.append((counted, *terms(plan, dense.layout)[1:3]))
    assert all(a > b > c for a, b, c in zip(*macs, strict=True))
    assert plan.with_blocks(heads=1) == dense.plan.with_blocks(heads=1)


def test_int8_has_wider_granules(dense) -> None:
    space = PruneSpace(dense.plan, layout=dense.layout, choices=("mlp",), orders=dict.fromkeys(PARTS, range(8)), granule=GRANULES["int8"])
    widths = {b.mlp_dim for seed in range(20) for b in space.sample(random.Random(seed)).blocks}
    assert len(widths) > 4 and all(width % 16 == 0 for width in widths)


def test_the_solver_lands_just_under_the_aim_and_on_the_machine_as_learned(dense) -> None:
    speed = Speed(dense.plan, layout=dense.layout, dense_ms=10.0)
    true = Speed(dense.plan, layout=dense.layout, dense_ms=10.0)
    true.coefficients = true.coefficients * [4.0, 0.8, 3.0, 1.1, *[0.0] * 4] + [0, 0, 0, 0, 0.5, 0, 0, 0]  # another machine
    space = PruneSpace(dense.plan, layout=dense.layout, choices=CHOICES, orders=dict.fromkeys(PARTS, range(8)),
                       solve=speed.solver(aim_ms=lambda: 6.0, steps=STRENGTHS))
    rng, errors = random.Random(0), []
    for _ in range(60):
        plan = space.sample(rng)
        assert 0.93 * 6.0 <= speed.predict(plan) <= 6.0
        errors.append(abs(speed.predict(plan) / true.predict(plan) - 1))
        speed.observe(plan, true.predict(plan), half_width=0.05)
    assert sum(errors[-20:]) / 20 < 0.03 < sum(errors[:5]) / 5


def test_what_a_jump_of_heads_and_blocks_overshoots_is_taken_back_in_small_steps() -> None:
    dense = dense_of(160)  # of 16 tokens one is a jump, too
    speed = Speed(dense.plan, layout=dense.layout, dense_ms=10.0)
    space = PruneSpace(dense.plan, layout=dense.layout, choices=CHOICES, orders=dict.fromkeys(PARTS, range(8)),
                       solve=speed.solver(aim_ms=lambda: 6.0, steps=STRENGTHS))
    rng, whole, taken_back = random.Random(0), [], []
    for _ in range(60):
        plan = space.sample(rng)
        params = dict(space.arch_parameters(plan))
        shape = {name: value for name, value in params.items() if name not in SOLVED}
        assert 1 <= params["fine"] <= params["strength"] and space.plan(shape, params["strength"], params["fine"]) == plan
        whole.append(speed.predict(space.plan(shape, params["strength"])))
        taken_back.append(speed.predict(plan))
    assert all(one <= two <= 6.0 for one, two in zip(whole, taken_back, strict=True))
    assert sum(ms < 0.985 * 6.0 for ms in whole) > 10 and sum(ms < 0.985 * 6.0 for ms in taken_back) <= 4


def test_probes_show_each_choice_alone_and_what_a_machine_makes_of_it(dense) -> None:
    space = PruneSpace(dense.plan, layout=dense.layout, choices=CHOICES, orders=dict.fromkeys(PARTS, range(8)))
    probes = space.probes()
    assert len(probes) == len(space.operators) + 4 and all(plan != dense.plan for plan in probes)  # its heads of 16 give no head_dim
    assert {plan.operator for plan in probes} == {"none", *space.operators}
    true, asked, usual = (Speed(dense.plan, layout=dense.layout, dense_ms=10.0) for _ in range(3))
    true.coefficients = true.coefficients * [4.0, 0.8, 3.0, 1.1, *[0.0] * 4] + [0, 0, 0, 0, 2.0, 1.0, 0.2, 0.4]  # another machine
    for plan in probes:
        asked.observe(plan, true.predict(plan), half_width=0.05)
    rng = random.Random(0)
    plans = [space.sample(rng) for _ in range(40)]
    wrong = [[abs(speed.predict(plan) / true.predict(plan) - 1) for speed in (asked, usual)] for plan in plans]
    first, second = (sorted(column)[20] for column in zip(*wrong, strict=True))
    assert first < 0.15 < 0.3 < second, (first, second)
    assert len(PruneSpace(dense.plan, layout=dense.layout, choices=("mlp",), orders=dict.fromkeys(PARTS, range(8))).probes()) == 1


def test_a_plan_close_to_a_measured_one_is_predicted_with_what_that_one_missed(dense) -> None:
    speed = Speed(dense.plan, layout=dense.layout, dense_ms=10.0)
    space = PruneSpace(dense.plan, layout=dense.layout, choices=CHOICES, orders=dict.fromkeys(PARTS, range(8)))
    shape = {name: values[-1] for name, values in space.parameters().items() if name.startswith(("heads", "mlp"))}
    near, probe = space.plan(shape, 104), space.plan(shape, 100)
    for plan in space.probes():
        speed.observe(plan, speed.predict(plan), half_width=0.05)
    before, missed = speed.predict(near), 1.1 * speed.predict(probe)
    speed.observe(probe, missed, half_width=0.05)
    assert speed.predict(near) > 1.05 * before and abs(speed.predict(probe) / missed - 1) < 0.02


def test_an_aim_out_of_reach_is_an_error(dense) -> None:
    speed = Speed(dense.plan, layout=dense.layout, dense_ms=10.0)
    solve = speed.solver(aim_ms=lambda: 1.0, steps=STRENGTHS)
    space = PruneSpace(dense.plan, layout=dense.layout, choices=("heads",), orders=dict.fromkeys(PARTS, ()), solve=solve)
    with pytest.raises(ArchError, match="at the strongest"):
        space.suggest(FixedTrial({name: 1.0 if 1.0 in values else values[-1] for name, values in space.parameters().items()}))


def test_a_first_measurement_far_off_ends_no_search(dense) -> None:
    speed = Speed(dense.plan, layout=dense.layout, dense_ms=10.0)
    space = PruneSpace(dense.plan, layout=dense.layout, choices=CHOICES, orders=dict.fromkeys(PARTS, range(8)),
                       solve=speed.solver(aim_ms=lambda: 6.0, steps=STRENGTHS))

    def true(plan: Plan) -> float:
        """A machine on which every place where tokens are dropped costs as much as half of the model."""
        return 1 + 9 * float(terms(plan, dense.layout)[1:4].sum() / speed.scale[1:4].sum()) + 5 * float(terms(plan, dense.layout)[5:].sum())

    rng, found, made = random.Random(0), [], []
    first = next(p for p in iter(lambda: space.sample(rng), None) if p.operator == "merge")
    speed.observe(first, true(first), half_width=0.02)
    for _ in range(12):
        plan = space.sample(rng)
        assert space.suggest(FixedTrial(dict(space.arch_parameters(plan)))) == plan
        speed.observe(plan, true(plan), half_width=0.02)
        found.append(true(plan))
        made.append(plan)
    for plan in made:  # what was learned since solves for other strengths, and a resumed run finds its plans all the same
        assert space.suggest(Recorded(space.arch_parameters(plan))) == plan
    assert true(first) > 20 and sum(5 < ms <= 6.3 for ms in found[-4:]) >= 2


def test_a_target_that_nothing_reaches_is_given_up_after_a_few_plans(dense) -> None:
    speed = Speed(dense.plan, layout=dense.layout, dense_ms=10.0)
    space = PruneSpace(dense.plan, layout=dense.layout, choices=("heads",), orders=dict.fromkeys(PARTS, ()),
                       solve=speed.solver(aim_ms=lambda: 1.0, steps=STRENGTHS))
    rng, tried = random.Random(0), 0
    with pytest.raises(ArchError, match="at the strongest"):
        for tried in range(BEYOND + 1):  # noqa: B007
            space.sample(rng)
    assert tried == BEYOND


def test_plans_that_were_tried_beyond_reach_are_recovered_by_a_space_that_knows_nothing_of_it(dense) -> None:
    def far() -> PruneSpace:
        speed = Speed(dense.plan, layout=dense.layout, dense_ms=10.0)
        return PruneSpace(dense.plan, layout=dense.layout, choices=("heads",), orders=dict.fromkeys(PARTS, ()),
                          solve=speed.solver(aim_ms=lambda: 1.0, steps=STRENGTHS))

    space = far()
    plan = space.sample(random.Random(0))
    assert far().suggest(Recorded(space.arch_parameters(plan))) == plan


@pytest.mark.parametrize("i", [0, -1])
@pytest.mark.parametrize("gone", [{"mlp_dim": 0}, {"heads": 0, "head_dim": 0}, {"mlp_dim": 0, "heads": 0, "head_dim": 0}])
def test_the_terms_see_of_the_last_block_what_its_inference_form_computes(dense, i: int, gone: dict[str, int]) -> None:
    blocks, shape = list(dense.plan.blocks), (1, *input_shape(dense.plan))
    blocks[i] = replace(blocks[i], **gone)
    plans = dense.plan, replace(dense.plan, blocks=tuple(blocks))
    ours = [terms(plan, dense.layout)[1:4].sum() for plan in plans]
    counted = [count(deploy(build(plan)), input_shape=shape).macs for plan in plans]
    assert ours[0] - ours[1] == pytest.approx(counted[0] - counted[1], rel=0.15)
