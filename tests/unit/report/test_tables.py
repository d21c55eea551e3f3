from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pandas as pd
import pytest

from nasvit.errors import ConfigError, RunError
from nasvit.report import Run, load
from nasvit.report.tables import hypervolume_so_far
from nasvit.results.front import hypervolume, pareto, to_minimised
from nasvit.results.record import TrialRecord, append, latest, read
from tests.unit.report.make_run import write_run


def test_one_row_per_trial_at_its_highest_rung(run: Run) -> None:
    assert run.trials["trial"].is_unique and len(run.trials) == 120
    assert len(run.records) > 120, "the run must hold promotions for this test to mean anything"
    last = latest(run.records)
    assert [last[t].rung for t in run.trials["trial"]] == run.trials["rung"].tolist()
    assert set(run.trials["status"]) == {"complete", "rejected", "failed"}


def test_seconds_of_a_promoted_trial_are_summed_over_its_rungs(run: Run) -> None:
    trial = next(r.trial for r in run.records if r.rung == 2)
    spent = sum(r.seconds["total"] for r in run.records if r.trial == trial)
    assert run.trials.set_index("trial").loc[trial, "seconds"] == pytest.approx(spent)


def test_front_is_the_pareto_front_cheapest_first_with_one_knee(run: Run) -> None:
    assert run.front["trial"].tolist() == [r.trial for r in pareto(run.records, ["accuracy", "latency_ms"])]
    assert run.front["latency_ms"].is_monotonic_increasing and run.front["accuracy"].is_monotonic_increasing
    assert run.front["knee"].sum() == 1
    assert set(run.trials.loc[run.trials["on_front"], "trial"]) == set(run.front["trial"])


def test_hypervolume_ends_at_that_of_the_front_and_counts_each_complete_trial_once(run: Run) -> None:
    points = to_minimised([r.objectives for r in pareto(run.records, run.objectives)], run.objectives)
    assert run.reference is not None
    assert run.hypervolume["hypervolume"].iloc[-1] == pytest.approx(hypervolume(points, run.reference))
    complete = int((run.trials["status"] == "complete").sum())
    assert run.hypervolume["evaluated"].tolist() == list(range(1, complete + 1))


def test_hypervolume_follows_a_promotion_that_lowers_the_accuracy(run: Run) -> None:
    base = TrialRecord(trial=0, status="complete", rung=1, arch=None, arch_id="x", objectives={"accuracy": 0.8, "latency_ms": 1.0})
    worse = replace(base, rung=2, objectives={"accuracy": 0.5, "latency_ms": 1.0})
    other = replace(base, trial=1, objectives={"accuracy": 0.4, "latency_ms": 2.0})
    reference = to_minimised([{"accuracy": 0.0, "latency_ms": 2.0}], ["accuracy", "latency_ms"])[0]
    table = hypervolume_so_far([base, other, worse], ["accuracy", "latency_ms"], reference=reference)
    assert table["evaluated"].tolist() == [1, 2]
    assert table["hypervolume"].tolist() == pytest.approx([0.8, 0.5])
    failed = replace(base, status="failed", rung=base.rung + 1, objectives={}, reason="out of memory")
    assert hypervolume_so_far([base, failed], ["accuracy", "latency_ms"], reference=reference)["evaluated"].tolist() == [1]


def test_best_respects_the_limit_and_says_what_would_be_possible(run: Run) -> None:
    limit = float(run.front["latency_ms"].iloc[3])
    record = run.best(max_latency_ms=limit)
    assert record.trial == run.front["trial"].iloc[3] and record.network().id == record.arch_id
    assert run.best().objectives["accuracy"] == run.front["accuracy"].max()
    with pytest.raises(RunError, match="the fastest takes"):
        run.best(max_latency_ms=1e-3)


def test_choices_name_every_block_of_the_front(run: Run) -> None:
    mixers = run.choices[run.choices["choice"] == "mixers"]
    assert mixers.groupby("trial").size().to_dict() == dict(zip(run.front["trial"], run.front["depth"], strict=True))
    assert set(run.choices["choice"]) == {"embed_dim", "depth", "mixers", "keep_ratio", "mlp_dim"}


def test_baselines_stand_beside_what_the_front_offers(run: Run) -> None:
    row = run.baselines.set_index("label").loc["timm:levit_128s"]
    assert row["front_accuracy"] == run.front["accuracy"].max(), "every front point is faster than this baseline"
    enough = run.front.loc[run.front["accuracy"] >= 0.93, "latency_ms"]
    assert row["front_latency_ms"] == enough.min()
    assert run.random is not None and len(run.random.trials) == 120 and run.random.random is None


def test_a_run_is_frozen(run: Run) -> None:
    with pytest.raises(FrozenInstanceError):
        run.path = Path("elsewhere")  # type: ignore[misc]


def test_an_unfinished_run_loads_without_summary_and_with_a_torn_last_line(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trials=30, finished=False, baselines=False)
    whole = load(path)
    with (path / "records.jsonl").open("ab") as file:
        file.write(b'{"crc":"00')
    assert len(load(path).trials) == len(whole.trials) == 30
    assert not whole.summary and whole.random is None and whole.baselines.empty


@pytest.mark.parametrize("names", [("accuracy", "macs_g"), ("accuracy", "latency_ms", "params_m"), ("latency_ms", "macs_g")])
def test_other_objectives_make_their_own_front(tmp_path: Path, names: tuple[str, ...]) -> None:
    run = load(write_run(tmp_path / "run", trials=60, baselines=False, names=names))
    assert run.front["trial"].tolist() == [r.trial for r in pareto(run.records, names)]
    assert run.objectives == names and set(run.axes) <= set(names)
    assert run.hypervolume["hypervolume"].iloc[-1] > 0


def test_no_complete_trial_gives_empty_frames_with_all_columns(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trials=0, baselines=False, finished=False)
    assert load(path).trials.empty
    append(path / "records.jsonl", TrialRecord(trial=0, status="rejected", rung=0, arch=None, arch_id="x", reason="too slow"))
    run = load(path)
    assert run.front.empty and run.hypervolume.empty and run.choices.empty and {"knee", "accuracy", "mixers"} <= set(run.front.columns)
    with pytest.raises(RunError, match="no complete trial"):
        run.best()


@pytest.mark.parametrize(("name", "text", "message"), [
    ("env.json", "{", "env.json is damaged"), ("summary.json", "[1]", "must hold a mapping"),
    ("experiment.yaml", "a: [", "experiment.yaml is damaged"),
    ("summary.json", json.dumps({"objectives": ["speed"]}), "unknown objective"), ("records.jsonl", "nonsense\n", "records.jsonl, line 1"),
    ("experiment.yaml", "x: !!python/object/apply:os.system [exit]", "experiment.yaml is damaged")])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write_run(tmp_path / "run", trials=2, baselines=False)
    (path / name).write_text(text)
    with pytest.raises(RunError, match=message):
        load(path)


def test_a_damaged_network_is_named_by_its_trial(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trials=2, baselines=False)
    good = read(path / "records.jsonl")[0]
    append(path / "records.jsonl", replace(good, trial=9, arch={"image_size": [16, 16]}))
    with pytest.raises(RunError, match="trial 9"):
        load(path)


def test_a_missing_or_foreign_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a directory"):
        load(tmp_path / "absent")
    with pytest.raises(ConfigError, match="not a run directory"):
        load(tmp_path)


def test_neither_torch_nor_optuna_is_loaded(run_dir: Path) -> None:
    code = ("import sys, nasvit.report as r; r.load(sys.argv[1]); r.render(sys.argv[1]); "
            "sys.exit(' '.join({'torch', 'optuna', 'timm', 'ray'} & set(sys.modules)) or 0)")
    done = subprocess.run([sys.executable, "-c", code, str(run_dir)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_columns_keep_their_types_without_any_value(tmp_path: Path) -> None:
    empty, full = load(write_run(tmp_path / "a", trials=0, baselines=False)), load(write_run(tmp_path / "b", trials=20, baselines=False))
    pd.testing.assert_series_equal(empty.trials.dtypes, full.trials.dtypes)
