"""Where an export goes by default."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from nasvit import cli
from nasvit.commands.export import folder_name
from nasvit.finals.export import parse_runtime


def test_each_form_has_a_folder_of_its_own() -> None:
    names = [folder_name("0a", parse_runtime(text), dynamic_batch=dynamic) for text, dynamic in (
        ("onnxruntime", False), ("onnxruntime?precision=fp32", False), ("onnxruntime?precision=int8", False), ("onnxruntime", True),
        ("openvino", False), ("litert?python=/opt/litert/bin/python", False))]
    assert names == ["0a-onnxruntime", "0a-onnxruntime", "0a-onnxruntime-int8", "0a-onnxruntime-dynamic", "0a-openvino", "0a-litert"]


def test_the_line_that_runs_predict_py_is_one_that_a_shell_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                                                 tmp_path: Path) -> None:
    def write(trained: object, *, folder: Path, **given: object) -> SimpleNamespace:
        folder.mkdir(parents=True)
        for name in ("model.onnx", "predict.py"):
            (folder / name).touch()
        return SimpleNamespace(file=folder / "model.onnx", parity=SimpleNamespace(relative_error=0.0, agreement=1.0, images=16))

    trained = SimpleNamespace(subject=SimpleNamespace(label="0a", id="0a"), metrics={})
    monkeypatch.setattr("nasvit.commands.export._networks", lambda run, pick: [(tmp_path / "my run", trained)])
    monkeypatch.setattr("nasvit.commands.export._latency", lambda trained, device: "1 ms")
    monkeypatch.setattr("nasvit.finals.export.export", write)
    assert cli.main(["export", str(tmp_path)]) == 0
    line = re.search("try it: (.+)", capsys.readouterr().out)
    assert line and shlex.split(line.group(1)) == ["python", str(tmp_path / "my run/export/0a-onnxruntime/predict.py"), "IMAGE"]
