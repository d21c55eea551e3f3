"""Whole searches through `nasvit.search.run`: real processes, real data, a real device; killed, interrupted, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nasvit.errors import ConfigError, RunError
from nasvit.experiment import Experiment
from nasvit.results.front import pareto
from nasvit.results.record import TrialRecord, read
from nasvit.search import run
from nasvit.search.evaluate import Job
from nasvit.search.progress import counts
from tests.conftest import ROOT
from tests.unit.search.fakes import record

BUDGET = 30


def quick_evaluate(job: Job) -> TrialRecord:
    """Stands for measuring and training: 0.1 s, values that follow from the architecture."""
    time.sleep(0.1)
    size = int(job.arch.id[:4], 16) / 65536
    return replace(record(0), trial=job.trial, rung=job.rung, arch=job.arch.to_dict(), arch_id=job.arch.id, params=job.params,
                   objectives={"accuracy": 0.5 + 0.1 * job.rung * size, "latency_ms": 0.5 + size},
                   seconds={"train": 0.09, "measure": 0.01, "total": 0.1})


def experiment(**values: Any) -> Experiment:
    return Experiment(**{"space": str(ROOT / "search_spaces" / "hybrid_tiny.yaml"), "budget": BUDGET, "workers": 2, "sampler": "random",
                         "rungs": (2, 4), **values})


def begin(out: Path, log: Path, **values: Any) -> subprocess.Popen[bytes]:
    """A search in a process group of its own, as a shell would start it."""
    code = (f"from pathlib import Path; from tests.integration import test_search as t\n"
            f"if __name__ == '__main__': print(t.run(t.experiment(**{values!r}), out=Path({str(out)!r}), evaluate=t.quick_evaluate))")
    script = log.with_suffix(".py")
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT,
                            start_new_session=True)


def wait_for_records(process: subprocess.Popen[bytes], out: Path, log: Path, *, number: int, name: str = "records.jsonl") -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if (out / name).exists() and (out / name).read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"no {number} records: {log.read_text()}")


@pytest.mark.slow
def test_a_search_killed_in_the_middle_resumes_without_losing_a_trial_and_ends_at_exactly_the_budget(tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    process = begin(out, log)
    wait_for_records(process, out, log, number=8)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read(out / "records.jsonl")
    assert len(before) >= 8 and counts(before).evaluated < BUDGET
    summary = run(experiment(), out=out, resume=True, evaluate=quick_evaluate)
    after = read(out / "records.jsonl")
    assert after[: len(before)] == before
    assert summary["evaluated"] == BUDGET == counts(after).evaluated == len({r.arch_id for r in after})
    assert (summary["stopped_because"], summary["sessions"]) == ("budget", 2)
    assert {r.rung for r in pareto(after, ["accuracy", "latency_ms"])} == {2}


@pytest.mark.slow
def test_a_search_killed_in_its_truth_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    out, log, values = tmp_path / "run", tmp_path / "log", {"budget": 12, "truth": 2.0}
    process = begin(out, log, **values)
    wait_for_records(process, out, log, number=2, name="truth.jsonl")
    process.send_signal(signal.SIGKILL)
    process.wait()
    records, before = read(out / "records.jsonl"), read(out / "truth.jsonl")
    summary = run(experiment(**values), out=out, resume=True, evaluate=quick_evaluate)
    after = read(out / "truth.jsonl")
    assert read(out / "records.jsonl") == records and after[: len(before)] == before and len(after) > len(before)
    assert summary["truth"]["networks"] == len(after) == len({r.arch_id for r in after})
    assert all(r.details["truth_steps"] == 8 and r.rung == 3 for r in after)
    again = run(experiment(**values), out=out, resume=True, evaluate=quick_evaluate)
    assert read(out / "truth.jsonl") == after and again["truth"] == summary["truth"]


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    process = begin(out, log)
    wait_for_records(process, out, log, number=5)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers too
    assert process.wait(timeout=30) == 0, log.read_text()
    summary = json.loads((out / "summary.json").read_text())
    records = read(out / "records.jsonl")
    assert summary["stopped_because"] == "interrupted" and summary["evaluated"] == counts(records).evaluated < BUDGET
    assert len(records) >= 5 and all(r.status == "complete" for r in records)
    assert run(experiment(budget=12), out=out, resume=True, evaluate=quick_evaluate)["evaluated"] >= 12


def small(out: Path, **values: Any) -> dict[str, Any]:
    more = {key: values.pop(key) for key in ("resume", "allow_drift") if key in values}
    return run(experiment(**{"budget": 3, "engine": "inline", **values}), out=out, evaluate=quick_evaluate, **more)


@pytest.mark.slow
def test_a_run_is_never_overwritten_and_never_mixed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    small(out)
    before = read(out / "records.jsonl")
    with pytest.raises(ConfigError, match="--resume"):
        small(out)
    with pytest.raises(RunError, match=r"seed \(was 0, is 1\)"):
        small(out, resume=True, seed=1)
    with pytest.raises(RunError, match=r"rungs \(was 2, 4, is 2, 5\)"):
        small(out, resume=True, rungs=(2, 5))
    with pytest.raises(RunError, match="space"):
        small(out, resume=True, image_size=32)
    assert read(out / "records.jsonl") == before
    small(out, resume=True, seed=1, budget=4, allow_drift=True)
    marked = [r for r in read(out / "records.jsonl") if "drift" in r.details]
    assert marked and marked == read(out / "records.jsonl")[len(before):]


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        small(tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(("values", "text"), [({"sampler": "tep"}, "did you mean 'tpe'"),
                                              ({"recipe": {"learning_rate": 1.0}}, "accepted: .*lr"),
                                              ({"baselines": ("timm:levit_128z",)}, "levit_128s"), ({"recipe": {"lr": -1.0}}, "lr"),
                                              ({"engine": "proceses"}, "did you mean 'processes'"), ({"data": "digit"}, "digits"),
                                              ({"device": "gpu"}, "cuda")])
def test_wrong_names_are_refused_before_anything_is_written(values: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        small(tmp_path / "run", **values)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_real_search_measures_trains_promotes_and_compares(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run(experiment(budget=4, rungs=(3, 6), engine="inline", objectives=("accuracy", "latency_ms", "peak_memory_mb"),
                             baselines=("timm:test_vit", "random")), out=out)
    records = read(out / "records.jsonl")
    complete = [r for r in records if r.status == "complete"]
    assert summary["evaluated"] == 4 and complete == records, [r.reason for r in records]
    highest = {r.trial: r.rung for r in complete}
    for r in complete:
        assert set(r.objectives) == {"accuracy", "latency_ms", "peak_memory_mb", "macs_g", "params_m"}
        assert (out / str(r.checkpoint)).exists() == (r.rung == highest[r.trial])
        assert r.latency is not None and r.seconds["train"] > 0
    assert {r.rung for r in pareto(records, summary["objectives"])} == {2}
    named = read(out / "baselines.jsonl")
    assert [(r.label, r.status) for r in named] == [("timm:test_vit", "complete")], named[0].reason
    assert len(read(out / "baselines" / "random" / "records.jsonl")) >= 4
    env = json.loads((out / "env.json").read_text())
    assert env["reference_ms"] > 0 and env["data"]["classes"] == 10


@pytest.mark.slow
def test_a_limit_is_checked_on_what_was_counted_before_anything_is_measured_or_trained(tmp_path: Path) -> None:
    summary = run(experiment(budget=1, engine="inline", limits={"params_m": 1e-6}), out=tmp_path / "run")
    records = read(tmp_path / "run" / "records.jsonl")
    assert "the limits leave too little" in summary["stopped_because"]
    assert {(r.status, r.rung) for r in records} == {("rejected", 0)}
    assert all("params_m" in str(r.reason) and r.latency is None and r.seconds["train"] == 0 for r in records)
