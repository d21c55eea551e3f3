from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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


class Sorts(nn.Module):
    """Everything that networks sort: scores either way, and places."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        down = x.argsort(dim=1, descending=True)
        values, up = x.sort(dim=-1)
        return down, down.argsort(dim=1), values, up


def test_sorts_are_written_as_a_topk_of_everything_with_the_same_result() -> None:
    x = torch.randn(3, 50)
    program = converters.sorted_by_topk(torch.export.export(Sorts(), (x,)))
    assert not [n for n in program.graph.nodes if "sort" in str(n.target)]
    for found, expected in zip(program.module()(x), Sorts()(x), strict=True):
        assert torch.equal(found, expected) and found.dtype == expected.dtype


def test_an_attention_that_was_traced_in_one_piece_stays_so_for_executorch() -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x).reshape(-1, 8)

    x = torch.randn(1, 2, 4, 8)
    program = torch.export.export(Rows(), (x,))
    contiguous = all(n.meta["val"].is_contiguous() for n in program.graph.nodes if "scaled_dot_product" in str(n.target))
    converters._in_one_piece(program)
    assert contiguous == any("clone" in str(n.target) for n in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), Rows()(x))
