from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nasvit.arch import Arch, MixerSpec
from nasvit.errors import ConfigError, NasvitError
from nasvit.latency import LatencyModel
from nasvit.latency.model import FEWEST
from nasvit.latency.pieces import pieces
from nasvit.models.build import build
from nasvit.space import SearchSpace


def device_ms(arch: Arch) -> float:
    """A device that nobody told the model about: calls, arithmetic and memory cost, each mixer by a factor of its own."""
    factors = {"fsla": 2.5, "window": 1.4, "global": 0.8, "slide": 1.2}
    return 0.1 + sum(factors.get(p.family.partition(",")[0], 1.0) * (0.05 + 0.03 * p.macs_m**0.9 + 0.0005 * p.values_k)
                     for p in pieces(arch))


@pytest.fixture(scope="module")
def archs() -> list[Arch]:
    space, rng = SearchSpace.load("hybrid_tiny"), random.Random(0)
    return list({a.id: a for a in (space.sample(rng) for _ in range(220))}.values())


@pytest.fixture(scope="module")
def model(archs: list[Arch]) -> LatencyModel:
    noise, found = np.random.default_rng(0), LatencyModel(about={"fingerprint": "x", "reference_ms": 2.0})
    for arch in archs[:100]:
        found.observe(arch, device_ms(arch) * float(np.exp(noise.normal(0, 0.02))), error=0.03)
    return found


def test_new_networks_are_predicted_within_a_few_percent_and_the_interval_holds_nine_in_ten(model: LatencyModel, archs: list[Arch]) -> None:
    noise, new = np.random.default_rng(1), archs[100:]
    truth = np.array([device_ms(a) for a in new]) * np.exp(noise.normal(0, 0.02, len(new)))
    found = model.predict_many(new)
    error = np.abs(np.array([p.median_ms for p in found]) / truth - 1)
    assert error.mean() < 0.05 and (error < 0.1).mean() > 0.95
    inside = np.mean([p.low_ms <= t <= p.high_ms for p, t in zip(found, truth, strict=True)])
    assert 0.8 <= inside <= 0.97
    assert all(p.low_ms < p.median_ms < p.high_ms for p in found)


def test_the_interval_holds_nine_in_ten_where_some_measurements_are_much_noisier_than_others(archs: list[Arch]) -> None:
    noise, found = np.random.default_rng(2), LatencyModel()
    spread = np.where(noise.random(len(archs)) < 0.4, 0.12, 0.02)
    truth = np.array([device_ms(a) for a in archs]) * np.exp(noise.normal(0, spread))
    for i in range(110):
        found.observe(archs[i], float(truth[i]), error=1.645 * float(spread[i]))
    inside = np.mean([p.low_ms <= t <= p.high_ms for p, t in zip(found.predict_many(archs[110:]), truth[110:], strict=True)])
    assert 0.83 <= inside <= 0.97


def test_a_measurement_draws_the_prediction_of_its_network_towards_it(archs: list[Arch]) -> None:
    short = LatencyModel()
    for arch in archs[:20]:
        short.observe(arch, device_ms(arch))
    arch = archs[150]
    before = short.predict(arch)
    short.observe(arch, 1.3 * before.median_ms)
    assert before.median_ms < short.predict(arch).median_ms


def test_unseen_is_what_the_others_say_of_a_network(archs: list[Arch]) -> None:
    noise, known = np.random.default_rng(2), LatencyModel()
    for arch in archs[:40]:
        known.observe(arch, device_ms(arch) * float(np.exp(noise.normal(0, 0.02))), error=0.03)
    seen = known.observations
    for one in range(6):
        others = LatencyModel([o for i, o in enumerate(seen) if i != one])
        assert known.unseen(seen[one].arch) == pytest.approx(others.predict(seen[one].arch).median_ms, rel=0.03)
    own, left_out = (np.mean([abs(ms / o.ms - 1) for o, ms in zip(seen, found, strict=True)]) for found in (
        [known.predict(o.arch).median_ms for o in seen], [known.unseen(o.arch) for o in seen]))
    assert left_out > 1.5 * own
    assert known.unseen(archs[50]) == known.predict(archs[50]).median_ms
    with pytest.raises(NasvitError, match="at least"):
        LatencyModel().unseen(archs[0])


def test_more_networks_give_narrower_intervals(model: LatencyModel, archs: list[Arch]) -> None:
    few = LatencyModel(model.observations[:12])
    def width(one: LatencyModel) -> float:
        return float(np.median([p.high_ms / p.low_ms for p in one.predict_many(archs[100:])]))
    assert width(model) < width(few)


def test_a_profile_is_read_back_as_it_was_written(model: LatencyModel, archs: list[Arch], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "profile.json"
    model.save(path)
    again = LatencyModel.load(path)
    assert again.about == model.about and again.predict(archs[-1]) == model.predict(archs[-1])
    assert list(path.parent.iterdir()) == [path]


def test_a_profile_on_another_scale_predicts_on_that_scale(model: LatencyModel, archs: list[Arch]) -> None:
    assert model.scaled(3.0).predict(archs[-1]).median_ms == pytest.approx(3 * model.predict(archs[-1]).median_ms, rel=1e-3)
    assert model.scaled(3.0).about["reference_ms"] == 6.0


def test_the_table_of_blocks_knows_a_dear_block_from_a_cheap_one(model: LatencyModel, archs: list[Arch]) -> None:
    table = model.table(archs[:100])
    dear = np.median([c.median_ms for name, c in table.items() if name.startswith("fsla")])
    cheap = np.median([c.median_ms for name, c in table.items() if name.startswith("global")])
    assert dear > 2 * cheap and all(c.low_ms <= c.median_ms <= c.high_ms for c in table.values())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"observations": [{"arch": {}, "ms": 1}]}', '{"observations": 3}'])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match="profile"):
        LatencyModel.load(tmp_path / "p.json")


def test_too_few_networks_and_times_that_cannot_be_are_refused(archs: list[Arch]) -> None:
    empty = LatencyModel()
    with pytest.raises(NasvitError, match=f"at least {FEWEST}"):
        empty.predict(archs[0])
    for ms in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(NasvitError, match="positive"):
            empty.observe(archs[0], ms)


def test_what_is_carried_over_weighs_as_much_as_its_uncertainty_allows(archs: list[Arch]) -> None:
    wrong = LatencyModel()
    for arch in archs[:60]:
        wrong.observe(arch, 2 * device_ms(arch), error=0.5, carried=True)
    for arch in archs[60:100]:
        wrong.observe(arch, device_ms(arch), error=0.02)
    ratio = np.median([wrong.predict(a).median_ms / device_ms(a) for a in archs[100:140]])
    assert ratio < 1.15


def test_fewer_heads_of_the_same_width_are_the_same_kind_of_piece_of_another_size(tiny_arch: Arch) -> None:
    stage = tiny_arch.stages[1]
    mixer = MixerSpec.of("window", window_size=4, shift=False, num_heads=1, head_dim=8)
    fewer = replace(tiny_arch, stages=(tiny_arch.stages[0], replace(stage, blocks=(replace(stage.blocks[0], mixers=(mixer,)),))))
    one, two = (next(p for p in pieces(arch) if p.family.startswith("window")) for arch in (tiny_arch, fewer))
    assert one.variant == two.variant and one.key != two.key
    assert two.macs_m == one.macs_m / 2 and two.values_k == one.values_k * 5 / 8


@pytest.mark.parametrize("name", ["hybrid_tiny", "hybrid_mobile", "isotropic"])
def test_pieces_count_the_operations_that_the_network_has(name: str) -> None:
    space, rng = SearchSpace.load(name), random.Random(1)
    for _ in range(5):
        arch = space.sample(rng)
        found, network = pieces(arch), build(arch, seed=0)
        mixers = sum(len(b.mixers) for s in arch.stages for b in s.blocks)
        assert sum(p.family.startswith("mlp") for p in found) == sum(len(s.blocks) for s in arch.stages)
        assert sum(p.family.split(",")[0] in {m.name for s in arch.stages for b in s.blocks for m in b.mixers} for p in found) == mixers
        own = sum(len(stage.class_attention) for stage in network.stages)  # type: ignore[arg-type, union-attr]
        assert sum(p.family == "class attention" for p in found) == own
        rows = sum(sum(stage.rows_needed) for stage in network.stages)  # type: ignore[arg-type, union-attr]
        assert sum("row" in p.family.split(", ") for p in found) == rows
