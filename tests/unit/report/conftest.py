"""One realistic run directory for all tests of this folder; tests that change it make their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from nasvit.report import Run, load
from tests.unit.report.make_run import write_run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def run(run_dir: Path) -> Run:
    return load(run_dir)
