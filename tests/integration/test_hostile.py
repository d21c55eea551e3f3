"""Hostile names and texts in a short form. The long form is `experiments/hostile.py`."""

from __future__ import annotations

import shutil

import pytest

from tests.integration.test_faults import table


@pytest.mark.slow
def test_no_name_leads_out_of_the_run_directory() -> None:
    found = table("hostile.py", "names", "--times", "500")
    assert [found[name] for name in ("files outside of the run directory", "other files lost or changed", "unexpected errors")] == ["0"] * 3
    assert int(found["used"]) > 100 < int(found["refused"])


@pytest.mark.slow
def test_a_spreadsheet_runs_nothing_of_a_report() -> None:
    found = table("hostile.py", "cells", "--times", "60")
    assert int(found["cells with a formula among them"]) > 60 and found["that a spreadsheet would run"] == "0"


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
                    reason="needs chromium or chrome on the PATH")
def test_a_browser_executes_nothing_of_what_a_report_is_told() -> None:
    found = table("hostile.py", "page", "--times", "100")
    assert (found["executed"], found["requests that the page tried"]) == ("0", "0"), found
    assert found["an attack in a page without defence, executed"] == "1", "the control: this browser would have executed it"


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_a_run_or_its_log() -> None:
    found = table("hostile.py", "secrets")
    assert (found["tokens found"], found["the search ended with code"]) == ("0", "0") and int(found["files and logs looked through"]) > 8
