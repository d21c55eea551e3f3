"""The fault experiments in a short form: real searches, damaged, starved, killed. The long form is `experiments/fault*.py`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def table(script: str, *arguments: str) -> dict[str, str]:
    """What the experiment prints: a figure for each line's text."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, str(ROOT / "experiments" / script), *arguments], capture_output=True, text=True,
                          check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return {line[:55].strip(): line[55:].strip() for line in done.stdout.splitlines()}


@pytest.mark.slow
def test_damaged_records_and_checkpoints_are_mended_or_named_and_never_a_traceback() -> None:
    found = table("faults.py", "records", "--times", "60")
    assert [found.pop(name) for name in ("truncations of records", "byte flips in records", "truncations and flips of checkpoints")] == [
        "60", "60", "120"]
    assert len(found) == 7 and set(found.values()) == {"0"}, found


@pytest.mark.slow
def test_a_full_disk_is_named_and_loses_nothing_at_any_write() -> None:
    found = table("faults.py", "disk")
    assert int(found.pop("write calls tried")) > 15 and set(found.values()) == {"0"}


@pytest.mark.slow
def test_odd_values_fail_their_trial_with_a_reason_and_are_on_no_front() -> None:
    found = table("faults.py", "metrics")
    assert (found["failed with a reason"], found["on the front"], found["the search ended by"]) == ("40", "0", "budget")


@pytest.mark.slow
def test_jumps_of_the_clock_change_nothing() -> None:
    found = table("faults.py", "clock")
    assert (found["evaluated"], found["failed"], found["negative durations"]) == ("30", "0", "0")


@pytest.mark.slow
def test_a_run_under_other_conditions_is_refused_by_name_or_marked() -> None:
    found = table("faults.py", "resume")
    assert len(found) >= 9 and all(said.startswith("refused, named") for said in found.values()), found
    marked = {name.removeprefix("another ") for name, said in found.items() if said.endswith("records marked")}
    assert marked == {"data", "seed", "version", "objectives", "limits", "rungs", "recipe"}


@pytest.mark.slow
def test_trainings_of_one_seed_are_alike() -> None:
    assert set(table("faults.py", "seeds", "--times", "2", "--sampler", "tpe").values()) == {"2"}


@pytest.mark.slow
def test_trials_that_hang_swell_or_crash_end_alone_after_one_retry_at_most() -> None:
    found = table("faults.py", "jobs", "--hang-seconds", "15")
    assert [figure.split(",")[0] for name, figure in found.items() if "evaluated, failed" in name] == ["8", "8", "8"]


@pytest.mark.slow
def test_killed_searches_lose_nothing_and_end_at_their_budget() -> None:
    found = table("fault_kills.py", "--times", "4", "--budget", "10")
    assert [found[name] for name in ("finished trials lost", "duplicates", "processes left", "sessions without any progress",
                                     "runs that missed their budget")] == ["0"] * 5


@pytest.mark.slow
def test_broken_data_sets_are_refused_or_their_broken_files_counted() -> None:
    found = table("fault_data.py")
    assert int(found["kinds"]) >= 25 and found["gone wrong"] == "0", found
