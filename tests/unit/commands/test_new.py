from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

import pytest

import nasvit
from nasvit import cli
from nasvit.commands.new import check_name
from nasvit.errors import ConfigError
from nasvit.models.mixers import MIXERS
from nasvit.space.file import STAGE_KEYS

ROOT = Path(nasvit.__file__).resolve().parents[1]
HOSTILE = ["", ".", "..", "../window2", "/tmp/x", "a/b", "a\\b", "Window", "swirl ", "swirl\n", "swirl\x00", "\x1b[31m", "$(id)", "9lives",
           "_x", "x-y", "x+y", "a" * 33, "w\u00edndow", "class", "import", "None", "con.py", "swirl.py", "base", "tests", *STAGE_KEYS,
           "kernel_size"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `new` sees as the checkout: a copy of the mixers, beside conformance tests."""
    shutil.copytree(ROOT / "nasvit" / "models" / "mixers", tmp_path / "nasvit" / "models" / "mixers")
    (tmp_path / "tests" / "conformance").mkdir(parents=True)
    monkeypatch.setattr(nasvit, "__file__", str(tmp_path / "nasvit" / "__init__.py"))
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [*HOSTILE, *MIXERS.names()])
def test_a_hostile_or_taken_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"accepted|choose another"):
        check_name(name)


def test_a_refused_name_leaves_every_file_as_it_was(checkout: Path) -> None:
    before = tree(checkout)
    assert [cli.main(["new", "mixer", name]) for name in ("../../evil", "window")] == [2, 2]
    assert tree(checkout) == before and not list(checkout.parent.glob("evil*"))


def test_in_a_checkout_it_writes_the_mixer_and_names_it_in_order(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(checkout)
    assert cli.main(["new", "mixer", "ripple_gate"]) == 0
    after = tree(checkout)
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed == {"nasvit/models/mixers/ripple_gate.py", "nasvit/models/mixers/__init__.py"}
    lines = after["nasvit/models/mixers/__init__.py"].decode().splitlines()
    line = next(text for text in lines if text.startswith("from nasvit.models.mixers import"))
    names = line.partition("import ")[2].partition("  #")[0].split(", ")
    assert names == sorted(names) and "ripple_gate" in names and line.endswith("(importing registers)")
    assert "class RippleGateMixer(Mixer)" in after["nasvit/models/mixers/ripple_gate.py"].decode()
    assert "pytest tests/conformance -k ripple_gate" in capsys.readouterr().out


def test_an_installed_nasvit_is_not_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(nasvit, "__file__", str(tmp_path / "site-packages" / "nasvit" / "__init__.py"))
    assert cli.main(["new", "mixer", "ripple"]) == 2
    assert "--package nasvit-ripple" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_package_of_its_own_names_the_mixer_as_an_entry_point(tmp_path: Path) -> None:
    folder = tmp_path / "nasvit-ripple"
    assert cli.main(["new", "mixer", "ripple", "--package", str(folder)]) == 0
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "nasvit-ripple" and project["entry-points"]["nasvit.mixers"] == {"ripple": "nasvit_ripple.ripple:RippleMixer"}
    assert not any(path.stem.startswith(".") for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["json", "torch", "nasvit", "Ripple", "-x", "rip ple", "class", "x;y"])
def test_a_package_takes_no_name_that_would_hide_a_module_or_is_none(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", "mixer", "ripple", f"--package={tmp_path / name}"]) == 2
    assert "accepted" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone_and_told_which_line_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert cli.main(["new", "mixer", "ripple", "--package", str(folder)]) == 2
    assert 'ripple = "mine.ripple:RippleMixer"' in capsys.readouterr().err.replace("\n", " ") and tree(folder) == {"notes.txt": b"mine"}


def test_only_a_mixer_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", "proxy", "ripple"]) == 2
    assert "accepted: mixer" in capsys.readouterr().err and "nasvit.ripple" not in sys.modules
