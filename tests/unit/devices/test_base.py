"""The timing loop and its settings, without asserting any time."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nasvit.devices import base, open_device
from nasvit.devices.base import LEAST_PAIRS, LONGEST_S, PAIRS, REPEATS, plan, sample
from nasvit.devices.local import fingerprint_of, processor_time
from nasvit.devices.reference import make_reference
from nasvit.errors import ConfigError, MeasurementError


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "lock"))


def test_candidate_and_reference_alternate_call_by_call() -> None:
    calls: list[str] = []

    def clock(call):  # type: ignore[no-untyped-def]
        call()
        return 1.0, 1.0

    repeat = sample(lambda: calls.append("c"), lambda: calls.append("r"), clock=clock, pairs=3, beside=2)
    assert "".join(calls) == "crrcrrcrr"
    assert (len(repeat.candidate_ms), len(repeat.reference_ms)) == (3, 6)


@pytest.mark.parametrize("candidate_ms", [0.05, 1.0, 3.0, 30.0, 300.0])
def test_a_measurement_is_long_enough_and_bounded(candidate_ms: float) -> None:
    pairs, beside = plan(candidate_ms, 1.0)
    seconds = REPEATS * pairs * (candidate_ms + beside) / 1e3
    assert pairs >= (PAIRS if candidate_ms <= 20 else LEAST_PAIRS)
    assert seconds <= max(LONGEST_S, REPEATS * LEAST_PAIRS * 1.2 * candidate_ms / 1e3)


def test_a_wide_interval_is_measured_again_and_the_best_attempt_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    device = open_device("cpu", reference_ms=1.0)
    truth = device.measure(nn.Identity(), input_shape=(1, 3, 8, 8))
    noisy = replace(truth, verdict="noisy", ci_low_ms=0.1 * truth.median_ms, ci_high_ms=3 * truth.median_ms)
    attempts = [noisy, replace(noisy, ci_high_ms=2 * truth.median_ms), noisy]
    monkeypatch.setattr(device, "_attempt", lambda *_, **__: attempts.pop(0))
    kept = device.measure(nn.Identity(), input_shape=(1, 3, 8, 8))
    assert (kept.verdict, kept.ci_high_ms, attempts) == ("noisy", 2 * truth.median_ms, [])


def test_measuring_leaves_mode_threads_collector_and_random_state_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    module[1].eval()
    state, random_state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    torch.set_num_threads(2)
    stats = open_device("cpu", reference_ms=1.0).measure(module, input_shape=(2, 3, 8, 8))
    assert (torch.get_num_threads(), stats.threads, stats.batch_size, gc.isenabled()) == (2, 1, 2, True)
    assert [m.training for m in module] == [True, False, True] and module.training
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_module_runs_in_inference_and_eval_mode_on_the_asked_threads_without_collector() -> None:
    seen: set[tuple[bool, ...]] = set()

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.add((torch.is_inference_mode_enabled(), self.training, torch.get_num_threads() == 1, gc.isenabled()))
            return x

    open_device("cpu", reference_ms=1.0).measure(Spy(), input_shape=(1, 3, 4, 4))
    assert {(i, t) for i, t, _, _ in seen} == {(True, False)}
    assert (True, False, True, False) in seen


def test_a_module_that_fails_is_named_with_its_shape() -> None:
    device = open_device("cpu", reference_ms=1.0)
    for ask in (device.measure, device.peak_memory_mb):
        with pytest.raises(MeasurementError, match=r"Conv2d does not run on an input of shape \(1, 5, 8, 8\)"):
            ask(nn.Conv2d(3, 4, 3), input_shape=(1, 5, 8, 8))


def test_a_dead_clock_is_a_measurement_error(monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("cpu", reference_ms=1.0)
    monkeypatch.setattr(base, "plan", lambda *_: (2, 1))
    monkeypatch.setattr(type(device), "clock", lambda self, call: (0.0, 0.0))
    with pytest.raises(MeasurementError, match="zero, negative or not finite"):
        device.measure(nn.Identity(), input_shape=(1, 3, 4, 4))


def test_calibrating_sets_the_scale_and_a_given_one_is_kept() -> None:
    device = open_device("cpu")
    assert device.reference_ms is None
    assert device.calibrate() == device.reference_ms > 0
    given = open_device("cpu", reference_ms=7.0)
    assert given.measure(nn.Identity(), input_shape=(1, 3, 4, 4)).reference_ms == given.reference_ms == 7.0


@pytest.mark.parametrize(("spec", "settings", "message"), [
    ("cpuu", {}, "did you mean 'cpu'"), ("cpu/eagre", {}, "did you mean 'eager'"), ("cpu", {"threads": 0}, "threads"),
    ("cpu", {"reference_ms": 0.0}, "reference_ms"), ("cpu", {"reference_ms": float("nan")}, "reference_ms"),
])
def test_a_wrong_device_is_refused_with_what_is_accepted(spec: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_device(spec, **settings)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_cuda_without_a_gpu_is_refused_with_the_next_step() -> None:
    with pytest.raises(ConfigError, match="use --device cpu"):
        open_device("cuda")


def test_the_fingerprint_is_the_same_in_another_process_and_follows_the_threads() -> None:
    code = "from nasvit.devices import open_device; print(open_device('cpu').fingerprint)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert open_device("cpu").fingerprint == open_device("cpu/eager").fingerprint == other
    assert open_device("cpu", threads=2).fingerprint != other
    assert len(other) == 12 and fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})


def test_the_reference_network_is_the_same_every_time_and_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    (one, image), (two, _) = make_reference(), make_reference()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        assert torch.equal(one(image), two(image))


def test_time_waited_for_the_processor_is_taken_off_and_clock_noise_is_not() -> None:
    assert processor_time(27.0, 16.0) == 16.0
    assert processor_time(1.0, 0.99) == 1.0
    assert processor_time(1.0, 1.01) == 1.0
