"""A pruned network of every timm family gives the same in the runtimes that read files."""

from __future__ import annotations

import pytest

from nasvit.models.deploy import deploy
from nasvit.pruning import input_shape, prepare, slice_weights, uniform
from nasvit.runtimes import make_runtime
from nasvit.runtimes.parity import compare
from tests.pruning_models import IMAGE_SIZE, TIMM, make


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("case", TIMM)
def test_narrower_heads_and_mlps_are_exported_as_they_compute(case: str, name: str) -> None:
    runtime = make_runtime(name)
    if (why := runtime.missing()) is not None:
        pytest.skip(why)
    dense = prepare(make(case), image_size=IMAGE_SIZE.get(case))
    plan = uniform(dense.plan.source, keep=0.5, parts=("heads", "head_dim", "mlp"))
    network = deploy(slice_weights(dense, plan, {}))
    found = compare(network, runtime=runtime, shape=(1, *input_shape(plan)), inputs=2, seed=0)
    assert found.agrees, found.error
