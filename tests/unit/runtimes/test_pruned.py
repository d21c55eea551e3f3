"""Pruned networks in OpenVINO, whose fusions take attention apart (in ONNX Runtime: tests/conformance/test_pruning_families.py)."""

from __future__ import annotations

import pytest

from nasvit.models.deploy import deploy
from nasvit.pruning import input_shape, prepare, slice_weights, uniform
from nasvit.runtimes import make_runtime
from nasvit.runtimes.parity import compare
from tests.pruning_models import IMAGE_SIZE, make


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vit", "eva02", "beit", "cait", "swin", "swinv2", "pvt", "levit"])
def test_narrower_heads_and_mlps_are_exported_as_they_compute(case: str) -> None:
    runtime = make_runtime("openvino")
    if (why := runtime.missing()) is not None:
        pytest.skip(why)
    dense = prepare(make(case), image_size=IMAGE_SIZE.get(case))
    plan = uniform(dense.plan.source, keep=0.5, parts=("heads", "head_dim", "mlp"))
    network = deploy(slice_weights(dense, plan, {}))
    found = compare(network, runtime=runtime, shape=(1, *input_shape(plan)), inputs=2, seed=0)
    assert found.agrees, found.error
