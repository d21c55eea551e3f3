"""What every registered runtime must do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nasvit.runtimes import RUNTIMES, Runtime


@pytest.fixture(params=RUNTIMES.names())
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return RUNTIMES[request.param]()


def test_the_prepared_call_agrees_with_the_module(runtime: Runtime) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
    example = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        prepared = runtime.prepare(module, example)
        for image in (example, torch.randn(2, 3, 8, 8)):
            assert torch.allclose(torch.as_tensor(prepared(image)), module(image), rtol=1e-4, atol=1e-5)


def test_preparing_leaves_the_module_alone(runtime: Runtime) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    runtime.prepare(module, torch.randn(2, 4))
    assert not module.training and all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_it_says_what_runs_it_with_a_version(runtime: Runtime) -> None:
    assert any(c.isdigit() for c in runtime.version())
