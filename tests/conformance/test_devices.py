"""What every registered device must do on the machine it is tested on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from nasvit.devices import DEVICES, Device, LatencyStats, open_device

PLACES = [*(name for name in DEVICES if name not in ("ssh", "adb")), "cpu/onnxruntime"]  # the remote ones: test_ssh_device.py


@pytest.fixture(params=PLACES, scope="module")
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    if request.param == "cpu/onnxruntime":
        pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
        pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NASVIT_LOCK", str(tmp_path_factory.mktemp("lock") / "lock"))
        opened = open_device(request.param)
        yield opened
        opened.close()


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5))


def test_a_measurement_is_whole_and_ordered(device: Device) -> None:
    stats = device.measure(net(), input_shape=(2, 3, 8, 8))
    assert 0 < stats.ci_low_ms <= stats.median_ms <= stats.ci_high_ms
    assert 0 < stats.p10_ms <= stats.median_ms * 1.5 and stats.p10_ms <= stats.p90_ms
    assert (stats.batch_size, stats.threads, stats.fingerprint) == (2, 1, device.fingerprint)
    assert stats.repeats >= 5 and stats.runs >= 20 * stats.repeats and stats.slowness > -1
    assert stats.verdict in ("stable", "noisy", "drifting") and stats.cpu_ms > 0
    assert LatencyStats.from_dict(json.loads(json.dumps(stats.to_dict()))) == stats


def test_the_module_comes_back_to_its_place_and_mode(device: Device) -> None:
    module = net().train()
    device.measure(module, input_shape=(1, 3, 8, 8))
    device.peak_memory_mb(module, input_shape=(1, 3, 8, 8))
    assert all(m.training for m in module.modules())
    assert {p.device.type for p in module.parameters()} == {"cpu"}


def test_peak_memory_holds_at_least_the_parameters_and_grows_with_the_batch(device: Device) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5000))
    one, many = (device.peak_memory_mb(module, input_shape=(b, 3, 8, 8)) for b in (1, 1024))
    assert one > 0.9 * sum(p.numel() * 4 for p in module.parameters()) / 1e6
    assert many - one > 1023 * 5000 * 4 / 1e6 * 0.9


def test_the_description_is_json_and_names_the_fingerprint(device: Device) -> None:
    facts = json.loads(json.dumps(device.describe()))
    assert facts["fingerprint"] == device.fingerprint and len(device.fingerprint) == 12
    assert {"cpu", "cores", "torch", "threads", "runtime", "runtime_version", "kind", "form", "calibration", "governor", "temperature_c",
            "load_average"} <= set(facts)
