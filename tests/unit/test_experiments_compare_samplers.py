"""The judge of the samplers: figures by hand on a tiny table, and errors that name what is wrong."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
MODULES = ("compare_samplers", "hierarchical", "judging", "peers", "peers_elsewhere", "presets", "sampler_report", "tabular")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver, imported as it is when it is run: with its folder on the path."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import compare_samplers

    yield compare_samplers
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """27 configurations; accuracy and milliseconds rise with the sum of the three choices, so that the front has 7 points."""
    rows = [{"a": a, "b": b, "c": f"k{c}", "acc": 50.0 + 5 * (a + b + c) - 0.1 * a, "ms": 1.0 + a + b + c, "disconnected": False}
            for a, b, c in itertools.product(range(3), repeat=3)]
    path = tmp_path / "tiny.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def arguments(table: Path, *more: str, objectives: str = "acc:max,ms:min") -> list[str]:
    return ["--table", str(table), "--choices", "a,b,c", "--objectives", objectives, "--budget", "12", "--seeds", "2", *more]


def load(table: Path, **options: Any) -> Any:
    from tabular import load_problem

    return load_problem(table, **{"choices": ["a", "b", "c"], "objectives": ["acc:max", "ms:min"], **options})


def outcome(*values: float, observed: tuple[float, ...] | None = None, valid: bool = True) -> Any:
    from judging import Outcome

    return Outcome(id=str(values), true=np.array(values), observed=np.array(observed or values), valid=valid)


def test_the_share_of_the_true_front_is_what_a_hand_computes(driver: Any) -> None:
    from judging import Goal

    # the front (0, 4), (1, 1), (2, 0) scaled by its box 2 x 4: (0, 1), (.5, .25), (1, 0); beside it (2, 4), the worst row
    goal = Goal.of_rows(np.array([[0.0, 4.0], [1.0, 1.0], [2.0, 0.0], [2.0, 4.0]]))
    whole = 1.1 * 0.1 + 0.6 * 0.75 + 0.1 * 0.25
    assert goal.total == pytest.approx(whole)
    assert goal.share(np.array([[1.0, 1.0]])) == pytest.approx(0.6 * 0.85 / whole)
    assert goal.share_full(np.array([[1.0, 1.0]])) == pytest.approx(1.0)  # at reference 1 the ends of the front count nothing


def test_a_curve_judges_the_true_values_of_the_front_by_observed_ones_and_leaves_invalid_rows_out(driver: Any) -> None:
    from judging import Goal, curves

    goal = Goal.of_rows(np.array([[0.0, 4.0], [1.0, 1.0], [2.0, 0.0]]))
    seen = [outcome(-9.0, -9.0, valid=False), outcome(1.0, 1.0), outcome(1.5, 2.0, observed=(0.5, 0.5)), outcome(2.0, 0.0)]
    shares, _ = curves(goal, seen)
    assert shares[0] == 0
    assert shares[1] == pytest.approx(goal.share(np.array([[1.0, 1.0]])))
    # noise made a dominated point look best: what the user is handed is worth less
    assert shares[2] == pytest.approx(goal.share(np.array([[1.5, 2.0]])))
    assert shares[3] == pytest.approx(goal.share(np.array([[1.5, 2.0], [2.0, 0.0]])))


def test_holm_steps_down_and_never_falls(driver: Any) -> None:
    from judging import holm

    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])


def test_a_sampler_that_is_better_on_every_seed_is_called_above_its_peer(driver: Any) -> None:
    from judging import comparisons

    runs = pd.DataFrame([{"sampler": name, "seed": seed, "trial": 10, "hv": base + 0.01 * seed}
                         for name, base in (("ours", 0.8), ("peer", 0.5), ("same", 0.8)) for seed in range(8)])
    verdicts = comparisons(runs, ours="ours", at=[10]).set_index("peer")["verdict"]
    assert verdicts.to_dict() == {"peer": "above", "same": "-"}
    assert comparisons(runs, ours="peer", at=[10]).set_index("peer")["verdict"]["ours"] == "below"


def test_a_configuration_has_its_own_row_and_one_that_is_missing_the_nearest(driver: Any, table: Path) -> None:
    whole = load(table)
    assert whole.complete
    assert whole.evaluate({"a": 2, "b": 1, "c": "k0"}, seed=0).true.tolist() == [-(50 + 15 - 0.2), 4.0]
    frame = pd.read_csv(table)
    frame[~((frame.a == 0) & (frame.b == 0))].to_csv(table, index=False)
    gaps = load(table, choices=["a:ordinal", "b:ordinal", "c"])
    assert not gaps.complete
    assert gaps.params(gaps.row({"a": 0, "b": 0, "c": "k2"})) in ({"a": 0, "b": 1, "c": "k2"}, {"a": 1, "b": 0, "c": "k2"})


def test_known_objectives_are_in_the_tables_own_direction(driver: Any, table: Path) -> None:
    problem = load(table, objectives=["ms:min", "acc:max"], known=["acc"])
    assert dict(problem.known_values({"a": 0, "b": 2, "c": "k1"})) == {1: 65.0}


def test_a_choice_under_a_condition_is_asked_only_there(driver: Any, table: Path) -> None:
    from peers_elsewhere import Asked, flat_choices
    from tabular import size

    problem = load(table, when=["b:a=1|2", "c:b=2"], duplicates="first")
    assert problem.suggest(Asked({"a": 0, "b": 2, "c": 1})) == {"a": 0}
    assert problem.suggest(Asked({"a": 1, "b": 2, "c": 1})) == {"a": 1, "b": 2, "c": "k1"}
    assert size(problem.choices) == len(problem.codes) == 1 + 2 * (2 + 3)
    assert set(flat_choices(problem)) == {"a", "b", "c"}


@pytest.mark.parametrize(("change", "message"), [
    (["--choices", "a,b,dis"], "unknown column 'dis'"),
    (["--objectives", "acc:max,mss:min"], "unknown column 'mss'; did you mean 'ms'?"),
    (["--objectives", "acc,ms:min"], "say COLUMN:max or COLUMN:min"),
    (["--objectives", "acc:max"], "two or more"),
    (["--objectives", "acc:max,c:min", "--choices", "a,b"], "not numeric"),
    (["--objectives", "acc:max,a:min"], "a cannot be a choice and an objective"),
    (["--known", "a"], "only objectives can be known"),
    (["--known", "acc,ms"], "nothing is left to search for"),
    (["--choices", "a,b"], "18 rows repeat"),
    (["--samplers", "tpee"], "unknown sampler 'tpee'; did you mean 'tpe'?"),
    (["--reference-point", "1"], "one number for each of the 2 objectives"),
    (["--reference-point", "nan,1"], "one number for each of the 2 objectives"),
    (["--reference-point", "100,0"], "is better than it in every objective (acc from 50 to 79.8; ms from 1 to 7)"),
    (["--jobs", "0"], "must be at least 1"),
    (["--out", __file__], "is a file; say a folder"),
    (["--when", "a:b=7"], "b has the values 0, 1, 2"),
    (["--when", "a:b=1", "--when", "b:a=1"], "go round in a circle"),
    (["--exclude", "acc"], "true or false in every row"),
    (["--table", "none.csv"], "no table at none.csv"),
    (["--samplers", "surrogate:scores"], "a table has no zero-cost scores"),
])
def test_a_wrong_argument_is_named_with_what_is_accepted(
        driver: Any, table: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str) -> None:
    assert driver.main([*arguments(table, "--samplers", "random"), *change]) == 2
    assert message in capsys.readouterr().err


def test_missing_values_are_refused_or_left_out(driver: Any, table: Path) -> None:
    from nasvit.errors import ConfigError

    frame = pd.read_csv(table)
    frame.loc[[3, 5], "ms"] = [np.nan, np.inf]
    frame.to_csv(table, index=False)
    with pytest.raises(ConfigError, match=r"missing or infinite values in ms \(2\)"):
        load(table)
    assert len(load(table, missing="drop").codes) == 25


def test_a_cell_may_be_empty_where_its_choice_is_not_asked_and_an_operation_may_be_called_none(driver: Any, table: Path) -> None:
    from nasvit.errors import ConfigError

    rows = [{"op": op, "kernel": kernel, "acc": 10.0 * (kernel or 1) + len(op), "ms": len(op) + (kernel or 0)}
            for op, kernels in (("None", (None,)), ("conv", (3, 5, 7)), ("attn", (None,))) for kernel in kernels]
    pd.DataFrame(rows).to_csv(table, index=False)
    problem = load(table, choices=["op", "kernel:ordinal"], when=["kernel:op=conv"])
    assert problem.complete and len(problem.codes) == 5 and [c.values for c in problem.choices] == [("None", "attn", "conv"), (3, 5, 7)]
    assert problem.params(problem.row({"op": "conv", "kernel": 5})) == {"op": "conv", "kernel": 5} and problem.params(0) == {"op": "None"}
    with pytest.raises(ConfigError, match=r"missing or infinite values in kernel \(2\)"):
        load(table, choices=["op", "kernel:ordinal"])
    with pytest.raises(ConfigError, match=r"missing or infinite values in kernel \(1\)"):
        load(table, choices=["op", "kernel:ordinal"], when=["kernel:op=conv|attn"])


@pytest.mark.parametrize(("name", "content"), [("empty.csv", ""), ("heads.csv", "a,b,c,acc,ms\n"), ("broken.parquet", "x")])
def test_a_file_that_is_no_table_is_refused(driver: Any, tmp_path: Path, name: str, content: str) -> None:
    from nasvit.errors import ConfigError

    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=r"cannot be read as a table|has no rows"):
        load(tmp_path / name)


def test_repeated_rows_are_refused_or_averaged(driver: Any, table: Path) -> None:
    from nasvit.errors import ConfigError

    frame = pd.read_csv(table)
    pd.concat([frame, frame.iloc[[4]].assign(acc=0.0)]).to_csv(table, index=False)
    with pytest.raises(ConfigError, match="1 rows repeat"):
        load(table)
    assert load(table, duplicates="mean").values[4, 0] == pytest.approx(-frame.acc[4] / 2)
    assert load(table, duplicates="first").values[4, 0] == pytest.approx(-frame.acc[4])


def test_two_files_are_joined_on_a_column(driver: Any, table: Path) -> None:
    from nasvit.errors import ConfigError

    frame = pd.read_csv(table).rename_axis("row").reset_index()
    frame.drop(columns="ms").to_csv(table, index=False)
    other = table.with_name("latency.csv")
    frame[["row", "ms"]].sample(frac=1, random_state=0).to_csv(other, index=False)
    assert load(table, join=f"{other}:row").values[:, 1].tolist() == frame["ms"].tolist()
    with pytest.raises(ConfigError, match="unknown column"):
        load(table, join=f"{other}:number")


def test_a_comparison_writes_every_trial_and_can_be_continued(
        driver: Any, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert driver.main([*arguments(table, "--known", "ms", "--samplers", "random,nsga2,surrogate", "--out", str(out))]) == 0
    trials = pd.read_csv(out / "trials.csv")
    assert len(trials) == 3 * 2 * 12
    assert trials.groupby(["sampler", "seed"])["hv"].is_monotonic_increasing.all()
    assert (out / "figure.png").stat().st_size > 10_000
    written = {p.name for p in out.iterdir()}
    assert {"summary.csv", "tests.csv", "report.md"} <= written
    says = next(action.help for action in driver.parser()._actions if action.dest == "out")
    assert written == set(says.removeprefix("folder for ").split(", ")), "the help names what is written"
    told = capsys.readouterr()
    assert "surrogate against each peer" in told.out

    again = tmp_path / "again"
    assert driver.main([*arguments(table, "--known", "ms", "--samplers", "random,nsga2,tpe", "--reuse", str(out / "trials.csv"),
                                   "--again", "nsga2", "--out", str(again))]) == 0
    run = {line.split(" seed")[0] for line in capsys.readouterr().err.splitlines() if " seed " in line}
    assert run == {"nsga2", "tpe"}  # random was taken from the file
    only = tmp_path / "only"
    assert driver.main([*arguments(table, "--known", "ms", "--samplers", "random,tpe", "--reuse", str(out / "trials.csv"), "--no-run",
                                   "--seeds", "5", "--out", str(only))]) == 0
    told = capsys.readouterr()
    assert "NOT RUN tpe: no search of it" in told.out
    assert not told.err
    assert pd.read_csv(only / "trials.csv")["seed"].nunique() == 2
    both = [pd.read_csv(p / "trials.csv").query("sampler == 'random'")["config"].tolist() for p in (out, again)]
    assert both[0] == both[1]


def test_the_report_of_several_comparisons_says_which_goals_are_met(driver: Any) -> None:
    import sampler_report

    summary = pd.DataFrame([{"sampler": name, "seeds": 20, "hv@100": early, "hv@300": late}
                            for name, early, late in (("surrogate", 0.96, 0.98), ("tpe", 0.9, 0.95), ("nsga2", 0.8, 0.97))])
    tests = pd.DataFrame([{"trials": 50, "peer": "tpe", "verdict": "below"}, {"trials": 300, "peer": "tpe", "verdict": "above"},
                          {"trials": 300, "peer": "surrogate:modelled", "verdict": "below"}]).assign(pairs=20)
    row = sampler_report.goals("tiny", summary, tests, ours="surrogate")
    assert row["best peer at 300"] == "nsga2 0.970"
    assert row["surrogate at 100"] == "0.960 (missed)"
    assert row["surrogate at 300"] == "0.980 (missed)"
    assert (row["significantly below"], row["significantly above"]) == ("tpe@50", "1 of 2")
    few = sampler_report.goals("tiny", summary, tests.assign(pairs=5, verdict="-"), ours="surrogate")
    assert few["significantly below"] == "too few seeds to tell"


def test_a_report_in_a_file_shows_the_figures_beside_it(driver: Any, tmp_path: Path) -> None:
    import sampler_report

    out, page = tmp_path / "out", tmp_path / "page" / "samplers.md"
    for folder in (out, page.parent):
        folder.mkdir()
    pd.DataFrame([{"sampler": name, "seeds": 2, "hv@100": 0.8, "hv@300": 0.9} for name in ("surrogate", "tpe")]).to_csv(
        out / "summary.csv", index=False)
    pd.DataFrame([{"trials": 300, "peer": "tpe", "verdict": "-", "pairs": 2}]).to_csv(out / "tests.csv", index=False)
    (out / "report.md").write_text("## Tiny: a x b\n\nA table.\n")
    (out / "figure.png").write_bytes(b"a picture")
    assert sampler_report.main([str(out), "--markdown", str(page)]) == 0
    shown = [line for line in page.read_text().splitlines() if line.startswith("![")]
    assert len(shown) == 1 and (page.parent / shown[0].partition("(")[2].rstrip(")")).read_bytes() == b"a picture"


def test_results_of_another_problem_are_not_reused(driver: Any, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert driver.main([*arguments(table, "--samplers", "random", "--out", str(out))]) == 0
    other = load(table, objectives=["acc:max", "ms:max"])
    assert driver.reusable([out / "trials.csv"], key=other.key, budget=12, again=()) == {}
    assert len(driver.reusable([out / "trials.csv"], key=load(table).key, budget=12, again=())) == 2


def test_a_sampler_that_is_not_installed_is_named_and_left_out(
        driver: Any, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import peers
    from peers_elsewhere import ELSEWHERE

    absent = peers.Peer(make=ELSEWHERE["pymoo-nsga2"].make, packages=("no-such-package",), what="")
    monkeypatch.setitem(ELSEWHERE, "pymoo-nsga2", absent)
    assert driver.main([*arguments(table, "--samplers", "random,pymoo-nsga2")]) == 0
    assert "NOT RUN pymoo-nsga2: the package no-such-package is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "package"), [("pymoo-nsga2", "pymoo"), ("qnehvi", "botorch"), ("syne-mo-rea", "syne_tune"),
                                               ("syne-ehvi", "syne_tune"), ("tpe-multivariate", "optuna"), ("nsga3", "optuna")])
def test_every_peer_searches_a_table_with_conditions(driver: Any, table: Path, name: str, package: str) -> None:
    pytest.importorskip(package)
    problem = load(table, choices=["a", "b:ordinal", "c"], when=["c:a=1|2"], duplicates="first")
    runs = driver.search(problem, name, seed=0, budget=22)
    assert runs["hv"].iloc[-1] > 0.3
    assert runs["config"].nunique() > 5


def test_the_hierarchical_problem_is_noisy_for_the_searcher_and_exact_for_the_judge(driver: Any) -> None:
    import random

    import hierarchical
    from judging import Goal

    landscape = hierarchical.Landscape(seed=3)
    problem = hierarchical.HierarchicalProblem(landscape=landscape, goal=Goal.of_rows(np.eye(2)))
    arch = landscape.space.sample(random.Random(0))
    params = landscape.space.arch_parameters(arch)
    one, same, other = (problem.evaluate(params, seed=seed) for seed in (0, 0, 1))
    assert one.observed.tolist() == same.observed.tolist() != other.observed.tolist()
    assert one.true.tolist() == other.true.tolist()
    assert one.observed[1] == one.true[1] == problem.domain(known=True).known(params)[1]
    assert problem.domain(known=False).known(params) == {}
    assert set(problem.domain(known=True, scores=True).scores(params)) == {"hint", "chaff"}
    assert not problem.domain(known=True).scores(params)
    assert landscape.fingerprint != hierarchical.Landscape(seed=4).fingerprint
