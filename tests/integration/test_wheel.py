"""What travels in the wheel: it must work outside the checkout, in a folder that holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, made from a copy: the build leaves folders beside its source."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("nasvit", "search_spaces", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-R", "-P", str(ROOT / name), str(source / name)], check=True)
    made = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                           "--wheel-dir", str(place), str(source)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return next(place.glob("nasvit-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_shipped_spaces_and_every_data_file_of_the_package(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    spaces = {f"nasvit/spaces/{path.name}" for path in (ROOT / "search_spaces").glob("*.yaml")}
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "nasvit").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert spaces and spaces <= inside
    assert not {name for name in files - inside if not name.startswith("nasvit/spaces/")}


@pytest.mark.slow
def test_the_installed_wheel_lists_its_spaces_and_searches_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
                   check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(target), "NASVIT_LOCK": str(tmp_path / "lock")}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, "-P", *words], cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(target) in run("-c", "import nasvit; print(nasvit.__file__)")
    shipped = [path.stem for path in (ROOT / "search_spaces").glob("*.yaml")]
    assert shipped and all(name in run("-m", "nasvit.cli", "list", "spaces") for name in shipped)
    assert "report: run/report.html" in run("-m", "nasvit.cli", "search", "--budget", "1", "--engine", "inline", "--out", "run",
                                            "--device", "cpu?noise=keep")
