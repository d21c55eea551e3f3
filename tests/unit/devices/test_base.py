"""Devices of this process: how a network is prepared and timed, without asserting any time."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nasvit.devices import LatencyStats, calibration, open_device, protocol, timing
from nasvit.devices.base import FEW_LEVELS, LEVELS, Prepared
from nasvit.devices.form import fill_zeros_, inference_form
from nasvit.devices.local import Cpu, fingerprint_of
from nasvit.devices.reference import make_reference
from nasvit.errors import ConfigError, MeasurementError, UnstableError
from nasvit.runtimes.base import Runtime


@pytest.fixture(autouse=True)
def _own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "lock"))
    monkeypatch.setenv("NASVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NASVIT_NOISE", "keep")
    monkeypatch.setattr(calibration, "FIRST_S", 0.2)
    monkeypatch.setattr(calibration, "CHECK_S", 0.1)


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
    assert not any(training for _, training, _, _ in seen)
    assert (True, False, True, False) in seen


def test_what_is_timed_is_the_inference_form() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    form = inference_form(module)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in form.modules())
    assert isinstance(module[1], nn.BatchNorm2d) and module.training
    assert open_device("cpu").describe()["form"] == "deployed"


def test_a_graph_is_another_form_so_that_no_latency_of_an_older_export_stands_beside_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_device("cpu/compile").fingerprint, open_device("cpu").fingerprint
    monkeypatch.setattr(Runtime, "form", "deployed, graph 99")
    assert open_device("cpu/compile").fingerprint != before[0] and open_device("cpu").fingerprint == before[1]


def test_nothing_that_is_timed_is_zero_so_that_no_compiler_can_delete_it() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.gamma = nn.BatchNorm2d(4), nn.Parameter(torch.zeros(4))
            nn.init.zeros_(self.norm.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gamma[:, None, None] * self.norm(x)

    module = Residual().eval()
    image = torch.randn(1, 4, 5, 5)
    assert torch.equal(module(image), image)
    form = inference_form(module)
    assert not torch.allclose(form(image), image, atol=0.1)
    assert not module.norm.weight.any() and not module.gamma.any()


def test_a_trained_network_keeps_every_value() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        for tensor in (*module.parameters(), module[1].running_mean):
            tensor.add_(0.1)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    assert fill_zeros_(module) == 0
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_module_that_fails_is_named_with_its_shape() -> None:
    device = open_device("cpu", reference_ms=1.0)
    for ask in (device.measure, device.peak_memory_mb):
        with pytest.raises(MeasurementError, match=r"Conv2d does not run on an input of shape \(1, 5, 8, 8\)"):
            ask(nn.Conv2d(3, 4, 3), input_shape=(1, 5, 8, 8))


def test_a_network_that_needs_more_memory_than_there_is_is_refused_before_it_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(1)
            return x

    monkeypatch.setattr("nasvit.devices.machine.available_mb", lambda: 1.0)
    large = nn.Sequential(nn.Flatten(), nn.Linear(100, 300_000, bias=False), Late())
    with pytest.raises(MeasurementError, match="over 1 MB, which is what the machine can give"):
        open_device("cpu", reference_ms=1.0).measure(large, input_shape=(1, 100))
    assert ran == []


def test_what_a_run_cannot_do_without_is_measured_again_with_the_machine_free_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    alone, measure = Cpu.alone, Prepared.measure

    @contextmanager
    def watched(self: Cpu) -> Iterator[None]:
        with alone(self):
            events.append("taken")
            try:
                yield
            finally:
                events.append("free")

    def unstable_at_first(self: Prepared) -> LatencyStats:
        events.append("measured")
        if events.count("measured") % 2:
            raise UnstableError("a neighbour")
        return measure(self)

    monkeypatch.setattr(protocol, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(Cpu, "alone", watched)
    monkeypatch.setattr(Prepared, "measure", unstable_at_first)
    device = open_device("cpu", reference_ms=1.0)
    with pytest.raises(UnstableError):
        device.measure(nn.Flatten(), input_shape=(1, 3, 4, 4))
    events.clear()
    assert device.measure(nn.Flatten(), input_shape=(1, 3, 4, 4), patient=True).median_ms > 0
    assert events == ["taken", "measured", "free"] * 2


def test_a_dead_clock_is_a_measurement_error(monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("cpu", reference_ms=1.0)
    monkeypatch.setattr(type(device), "clock", lambda self, call: (0.0, 0.0))
    with pytest.raises(MeasurementError, match="zero, negative or not finite"):
        device.measure(nn.Identity(), input_shape=(1, 3, 4, 4))


def test_calibrating_sets_the_scale_and_a_given_one_is_kept() -> None:
    device = open_device("cpu")
    assert device.reference_ms is None
    assert device.calibrate() == device.reference_ms > 0
    given = open_device("cpu", reference_ms=7.0)
    assert given.measure(nn.Identity(), input_shape=(1, 3, 4, 4)).reference_ms == given.reference_ms == 7.0


def _a_machine_of(monkeypatch: pytest.MonkeyPatch, *round_ms: float) -> None:
    """Each look at the reference gives the next of these: how calm this machine is must not decide a test."""
    looks = iter(round_ms)
    monkeypatch.setattr(Cpu, "rounds", lambda self, seconds: [next(looks)] * 5)


def test_two_runs_on_one_machine_share_their_scale_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _a_machine_of(monkeypatch, 1.0, 1.2)
    first, second = open_device("cpu"), open_device("cpu")
    assert first.calibrate() == second.calibrate()
    sources = [d.describe()["calibration"]["source"] for d in (first, second)]
    assert sources == ["new", "kept"]


def test_a_kept_scale_that_is_plainly_wrong_is_replaced_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _a_machine_of(monkeypatch, 1.0, 1.1, 1.05)
    first = open_device("cpu")
    scale = first.calibrate()
    (file,) = (calibration.cache_folder() / "calibration").iterdir()
    entries = json.loads(file.read_text())
    file.write_text(json.dumps({key: {**one, "reference_ms": 3 * scale} for key, one in entries.items()}))
    second = open_device("cpu")
    assert second.calibrate() == 1.05
    told = second.describe()["calibration"]
    assert (told["source"], told["before_ms"]) == ("replaced", 3 * scale)
    file.write_text("{damaged")
    assert calibration.scale_of(lambda _: [1.0, 1.0, 1.0], fingerprint=first.fingerprint, place="cpu").source == "new"


def test_a_cache_that_cannot_be_written_only_means_a_scale_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NASVIT_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        assert calibration.scale_of(lambda _: [2.0, 2.0, 2.0], fingerprint="f", place="cpu").source == "new"


def test_the_machines_own_speed_is_remembered_once_it_has_been_kept() -> None:
    device = open_device("cpu", reference_ms=1.0)
    device.levels.extend([1.3] * (LEVELS - 1))
    assert device.level_ms(1.0) == 1.0
    device.levels.append(1.3)
    assert device.level_ms(1.0) == pytest.approx(1.3)


def test_a_machine_that_is_faster_than_its_scale_is_judged_by_its_own_speed() -> None:
    device = open_device("cpu", reference_ms=1.0)
    device.levels.extend([0.7] * (FEW_LEVELS - 1))
    assert device.level_ms(1.0) == 1.0
    device.levels.append(0.7)
    assert device.level_ms(1.0) == pytest.approx(0.7)


@pytest.mark.parametrize(("now_ms", "source"), [(1.05, "kept"), (0.95, "kept"), (1.25, "kept"), (0.85, "replaced"), (1.4, "replaced")])
def test_a_scale_is_kept_until_the_machine_is_plainly_faster_or_much_slower(now_ms: float, source: str, tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASVIT_CACHE", str(tmp_path))
    calibration.scale_of(lambda _: [1.0, 1.0, 1.0], fingerprint="f", place="cpu")
    scale = calibration.scale_of(lambda _: [now_ms] * 3, fingerprint="f", place="cpu")
    assert (scale.source, scale.reference_ms) == (source, 1.0 if source == "kept" else now_ms)


@pytest.mark.parametrize(("spec", "settings", "message"), [
    ("cpuu", {}, "did you mean 'cpu'"), ("cpu/eagre", {}, "did you mean 'eager'"), ("cpu", {"threads": 0}, "threads"),
    ("cpu", {"reference_ms": 0.0}, "reference_ms"), ("cpu", {"reference_ms": float("nan")}, "reference_ms"),
    ("cpu/eager?precision=int8", {}, "unknown setting 'precision'"), ("ssh://pi/eager", {}, "runs inside this process only"),
])
def test_a_wrong_device_is_refused_with_what_is_accepted(spec: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_device(spec, **settings)  # type: ignore[arg-type]


def test_noise_is_a_word_of_the_spec_or_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (open_device("cpu").noise, open_device("cpu/eager?noise=fail").noise) == ("keep", "fail")
    monkeypatch.delenv("NASVIT_NOISE")
    assert open_device("cpu").noise == "fail"
    monkeypatch.setenv("NASVIT_NOISE", "maybe")
    with pytest.raises(ConfigError, match="NASVIT_NOISE is fail or keep"):
        open_device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_cuda_without_a_gpu_is_refused_with_the_next_step() -> None:
    with pytest.raises(ConfigError, match="use --device cpu"):
        open_device("cuda")


def test_the_fingerprint_is_the_same_in_another_process_and_follows_the_threads() -> None:
    code = "from nasvit.devices import open_device; print(open_device('cpu').fingerprint)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert open_device("cpu").fingerprint == open_device("cpu/eager?noise=fail").fingerprint == other
    assert open_device("cpu", threads=2).fingerprint == open_device("cpu/eager?threads=2").fingerprint != other
    assert len(other) == 12 and fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})


def test_the_state_of_the_machine_is_told_and_not_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"governor": "powersave", "frequency_mhz": 800.0, "max_frequency_mhz": 3000.0, "temperature_c": 91.0, "load_average": [9.0],
             "available_mb": 100.0}
    before = open_device("cpu").fingerprint
    monkeypatch.setattr("nasvit.devices.machine.state", lambda: state)
    told = open_device("cpu").describe()
    assert {key: told[key] for key in state} == state and told["fingerprint"] == before


def test_the_reference_network_is_the_same_every_time_and_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    (one, image), (two, _) = make_reference(), make_reference()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        assert torch.equal(one(image), two(image))


def test_an_attempt_is_made_of_both_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("cpu", reference_ms=1.0)
    with device.prepared(nn.Identity(), input_shape=(1, 3, 4, 4)) as ready:
        one = ready.attempt(3)
    assert len(one.repeats) == 3 and all(len(r.alone_ms) == timing.ALONE - timing.ALONE_WARM for r in one.repeats)
