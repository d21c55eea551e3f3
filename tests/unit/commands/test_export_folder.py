"""Where an export goes by default."""

from __future__ import annotations

from nasvit.commands.export import folder_name
from nasvit.finals.export import parse_runtime


def test_each_form_has_a_folder_of_its_own() -> None:
    names = [folder_name("0a", parse_runtime(text), dynamic_batch=dynamic) for text, dynamic in (
        ("onnxruntime", False), ("onnxruntime?precision=fp32", False), ("onnxruntime?precision=int8", False), ("onnxruntime", True),
        ("openvino", False), ("litert?python=/opt/litert/bin/python", False))]
    assert names == ["0a-onnxruntime", "0a-onnxruntime", "0a-onnxruntime-int8", "0a-onnxruntime-dynamic", "0a-openvino", "0a-litert"]
