"""The comparison on real searches: what is computed from finished runs, and the law that stands for a device."""

from __future__ import annotations

import json
import random
from argparse import Namespace
from pathlib import Path

import pytest

from experiments.real_job import LAW, PAIRS, Finished, finished, law, table, text, volumes
from nasvit.errors import RunError
from nasvit.space import SearchSpace


def run(sampler: str, seed: int, *points: tuple[float, float]) -> Finished:
    """A search whose retrained front is these (accuracy, milliseconds); MACs follow latency."""
    networks = {f"{sampler}{seed}{i}": {"accuracy": a, "latency_ms": ms, "macs_g": ms / 100, "said": a + 0.01}
                for i, (a, ms) in enumerate(points)}
    return Finished(sampler=sampler, seed=seed, evaluated=40, networks=networks)


def test_volumes_are_shares_of_all_searches_together_under_one_reference_point() -> None:
    runs = [run("a", 0, (0.5, 1.0), (0.9, 2.0)), run("b", 0, (0.5, 1.0)), run("c", 0, (0.4, 2.0))]
    whole, half, none = volumes(runs, PAIRS[0])
    assert whole == pytest.approx(1) and 0 < none < half < 1
    # reference: 0.35 and 2.1; a: 0.4 x 0.1 + 0.15 x 1.1; b: 0.15 x 1.1
    assert half == pytest.approx(0.165 / 0.205)


def test_the_table_has_a_row_for_each_sampler_with_every_seed() -> None:
    runs = [run("a", 0, (0.5, 1.0), (0.9, 2.0)), run("a", 1, (0.5, 1.0)), run("b", 0, (0.9, 2.0))]
    rows = table(runs).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["a", "b"]
    assert "1.000 0.524 | 0.762" in rows[2]
    args = Namespace(command="x", latency="law", minutes=None, budget=40, data="digits", space="s", seeds=2)
    assert "changed the accuracies by -1.0 points" in text(runs, args)


def test_the_law_knows_every_mixer_of_the_space_and_grows_with_work() -> None:
    space = SearchSpace.load("hybrid_tiny")
    arch = space.sample(random.Random(0))
    assert {m.name for s in range(20) for st in space.sample(random.Random(s)).stages for b in st.blocks for m in b.mixers} <= set(LAW)
    assert law(arch, macs_g=0.02) > law(arch, macs_g=0.01) > 0


def test_an_unfinished_search_is_named(tmp_path: Path) -> None:
    (tmp_path / "tpe-1").mkdir()
    with pytest.raises(RunError, match="tpe-1 holds no retrained front"):
        finished(tmp_path, sampler="tpe", seed=1)
    (tmp_path / "tpe-1" / "summary.json").write_text(json.dumps({"evaluated": 7}))
    (tmp_path / "tpe-1" / "retrained.json").write_text("{}")
    assert finished(tmp_path, sampler="tpe", seed=1).evaluated == 7
