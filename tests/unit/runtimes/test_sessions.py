from __future__ import annotations

import ast
from pathlib import Path

import pytest

from nasvit.runtimes import RUNTIMES, FileRuntime, converters, sessions


@pytest.mark.parametrize("module", [sessions, converters])
def test_what_runs_in_another_environment_imports_nothing_of_nasvit(module: object) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in named if name.startswith("nasvit")]


def test_importing_sessions_needs_the_standard_library_alone() -> None:
    tree = ast.parse(Path(sessions.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    at_import = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    at_import |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert at_import <= {"__future__", "json", "os", "sys", "typing"}


def test_every_file_runtime_has_a_session_and_no_other_has() -> None:
    assert set(sessions.OPENERS) == {name for name in RUNTIMES if issubclass(RUNTIMES[name], FileRuntime)}


def test_an_unknown_runtime_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match=r"no session for runtime 'tvm'.*onnxruntime"):
        sessions.open_session("tvm", "model", threads=1, settings={})


def test_threads_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sessions.open_session("onnxruntime", "model", threads=0, settings={})
