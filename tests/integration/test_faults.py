"""The fault experiments in a short form: real searches, damaged, starved, killed. The long form is `experiments/faults.py`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def table(*arguments: str) -> dict[str, str]:
    """What the experiment prints: a figure for each line's text."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, str(ROOT / "experiments" / "faults.py"), *arguments], capture_output=True, text=True,
                          check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return {line[:45].strip(): line[45:].strip() for line in done.stdout.splitlines()}


@pytest.mark.slow
def test_damaged_records_are_resumed_or_named_and_never_a_traceback() -> None:
    found = table("records", "--times", "60")
    assert {name: figure for name, figure in found.items() if name not in ("truncations", "byte flips")} == {
        "not resumed with all whole records": "0", "not found, or with the wrong line": "0", "repairs that lost an intact record": "0",
        "tracebacks": "0"}


@pytest.mark.slow
def test_a_full_disk_is_named_and_loses_nothing_at_any_write() -> None:
    found = table("disk")
    assert int(found.pop("write calls tried")) > 15 and set(found.values()) == {"0"}


@pytest.mark.slow
def test_odd_values_fail_their_trial_with_a_reason_and_are_on_no_front() -> None:
    found = table("metrics")
    assert (found["failed with a reason"], found["on the front"], found["the search ended by"]) == ("40", "0", "budget")


@pytest.mark.slow
def test_jumps_of_the_clock_and_repeated_seeds_change_nothing() -> None:
    found = table("clock")
    assert (found["evaluated"], found["failed"], found["negative durations"]) == ("30", "0", "0")
    assert table("seeds")["different outcomes"] == "0"


@pytest.mark.slow
def test_trials_that_hang_swell_or_crash_end_alone() -> None:
    found = table("jobs")
    assert [figure.split(",")[0] for name, figure in found.items() if "evaluated, failed" in name] == ["12", "12", "12"]


@pytest.mark.slow
def test_killed_searches_lose_nothing_and_end_at_their_budget() -> None:
    found = table("kills", "--times", "4", "--budget", "10")
    assert [found[name] for name in ("finished trials lost", "duplicates", "processes left", "runs that missed their budget")] == ["0"] * 4
