from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from nasvit.models.deploy import deploy
from nasvit.runtimes import foreign, make_runtime


def test_another_environment_gets_weights_as_their_shapes_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def convert(interpreter: str, script: str, name: str, program: str, path: str, *, what: str) -> None:
        seen.extend(torch.export.load(program).state_dict.values())
        Path(path).touch()

    monkeypatch.setattr(foreign, "in_environment", convert)
    network = deploy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval())
    first = network[0].weight  # type: ignore[index]
    first.data = first.data.contiguous(memory_format=torch.channels_last)
    runtime = make_runtime("executorch")
    assert isinstance(runtime, foreign.ForeignRuntime)
    runtime.write(network, torch.randn(1, 3, 8, 8), tmp_path / "model.pte")
    assert len(seen) == 2 and all(value.is_contiguous() for value in seen)
    assert not first.is_contiguous()  # the network itself stays as it computes best here
