"""The page in a real browser: it draws, it runs under its own policy, and text from a run does nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nasvit.report import load, render
from tests.unit.report.make_run import write_run
from tests.unit.report.test_render import hostile

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or chrome on the PATH")


def _dom(page: Path, profile: Path) -> tuple[str, str]:
    """The document after its scripts have run, and the browser's console."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
               f"--user-data-dir={profile}", "--window-size=1280,2400", "--virtual-time-budget=8000", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_charts_are_drawn_offline_under_the_page_policy(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trials=60)
    render(path)
    dom, console = _dom(path / "report.html", tmp_path / "profile")
    assert console == ""
    front = re.search(r'<div id="front-by-mixer".*?</svg>', dom, re.S)
    assert front is not None and dom.count('class="marks"') == 2, "the front and the hypervolume; the hidden chart is drawn when asked for"
    marks = re.findall(r'aria-roledescription="circle"', front.group())
    assert len(marks) >= len(load(path).front), "one circle for each front point at least"
    assert "could not be drawn" not in dom.partition("<script")[0]


def test_hostile_text_is_shown_and_not_executed(tmp_path: Path) -> None:
    path = hostile(tmp_path / "run")
    render(path)
    dom, console = _dom(path / "report.html", tmp_path / "profile")
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert title is not None and title.group(1) != "pwned" and "&lt;script&gt;" in title.group(1)
    assert "<img" not in dom.partition('<script type="application/json"')[0]
    assert dom.count('class="marks"') == 2 and console == ""
