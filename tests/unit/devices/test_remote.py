"""Devices behind the agent: what it measures, and what it does with devices that crash, hang or lie."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nasvit.devices import transport
from nasvit.devices.base import example
from nasvit.devices.remote import TRIES, LocalAgent
from nasvit.devices.spec import parse_spec
from nasvit.devices.transport import DeviceFault, Link, ModelRefused
from nasvit.errors import DeviceLostError, MeasurementError
from tests.unit.devices.agents import Net, Toy, ToyPlace, toy_place, write_agent

SHAPE = (1, 3, 8, 8)


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "lock"))
    monkeypatch.setenv("NASVIT_NOISE", "keep")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToyPlace]:
    device = toy_place(tmp_path, monkeypatch)
    yield device
    device.close()


def test_the_agent_measures_with_the_same_loop_and_says_where(place: ToyPlace) -> None:
    fast, slow = (place.measure(Net(b), input_shape=SHAPE) for b in ("well", "slow"))
    assert fast.fingerprint == slow.fingerprint == place.fingerprint
    assert 1.5 < slow.median_ms / fast.median_ms < 2.6  # it is told to work twice as long
    assert fast.repeats >= 5 and fast.batch_size == 1 and fast.threads == 1
    facts = place.describe()
    assert {"cpu", "cores", "torch", "runtime_version", "load_average", "governor", "temperature_c"} <= set(facts)
    assert (facts["runtime_version"], facts["fingerprint"], facts["place"], place.started) == ("toy 1.0", place.fingerprint, "ssh://toy", 1)


def test_its_outputs_come_back(place: ToyPlace) -> None:
    image = example(Net(), shape=SHAPE)
    (out,) = place.outputs(Net().eval(), image=image)
    assert np.array_equal(out, 2 * image.numpy())


def test_calibrating_gives_the_scale(place: ToyPlace) -> None:
    assert 0.3 < place.calibrate() < 3.0


def test_peak_memory_is_what_a_fresh_process_grows_by(place: ToyPlace) -> None:
    small, large = (place.peak_memory_mb(Net(b), input_shape=SHAPE) for b in ("well", "large"))
    assert 60 < large - small < 72  # 8 million float64


def test_a_network_that_needs_more_memory_than_there_is_is_ended_in_time(place: ToyPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasvit.devices.remote.MEMORY_SHARE", 1e-6)
    with pytest.raises(MeasurementError, match="which is what the machine can give"):
        place.peak_memory_mb(Net("large"), input_shape=SHAPE)


def test_a_latency_is_not_measured_of_a_network_whose_tensors_need_more_than_is_free(place: ToyPlace,
                                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    place.connected()
    monkeypatch.setattr("nasvit.devices.machine.available_mb", lambda: 1e-3)  # 1 kB
    exported: list[object] = []
    monkeypatch.setattr(place, "_exported", lambda *_, **__: exported.append(1))
    with pytest.raises(MeasurementError, match="which is what the machine can give"):
        place.measure(Net(), input_shape=SHAPE)
    assert not exported and not place.faults  # the network's fault, and before anything is exported or sent


def test_what_a_runtime_prints_is_not_taken_for_an_answer(place: ToyPlace) -> None:
    assert place.measure(Net("print"), input_shape=SHAPE).median_ms > 0


def test_a_network_that_the_runtime_refuses_is_an_error_and_no_fault(place: ToyPlace) -> None:
    for _ in range(TRIES + 1):
        with pytest.raises(ModelRefused, match="no kernel for sort"):
            place.measure(Net("raise"), input_shape=SHAPE)
    assert place.measure(Net(), input_shape=SHAPE).median_ms > 0 and place.started == 1


def test_a_runtime_that_crashes_on_a_network_is_named_and_the_next_network_is_measured(place: ToyPlace) -> None:
    for _ in range(2):
        with pytest.raises(MeasurementError, match=r"the runtime toy does not survive this network: .*SIGSEGV"):
            place.measure(Net("crash"), input_shape=SHAPE)
    assert place.measure(Net(), input_shape=SHAPE).median_ms > 0
    assert place.faults == []


def test_a_device_that_hangs_is_in_quarantine_after_three_tries(place: ToyPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.connected()
    monkeypatch.setattr(transport, "REPLY_TIMEOUT_S", 1.0)
    monkeypatch.setattr(transport, "END_TIMEOUT_S", 1.0)
    for number in range(TRIES):
        with pytest.raises(DeviceLostError if number == TRIES - 1 else DeviceFault, match="no answer to 'open' in 1 s"):
            place.measure(Net("hang"), input_shape=SHAPE)
    started = place.started
    with pytest.raises(DeviceLostError, match="in quarantine after 3 faults"):
        place.measure(Net(), input_shape=SHAPE)
    assert place.started == started  # it is asked no more


def test_a_network_that_takes_long_is_no_device_that_hangs(place: ToyPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.connected()
    monkeypatch.setattr(transport, "REPLY_TIMEOUT_S", 1.0)
    with place.prepared(Net("long"), input_shape=SHAPE) as ready, place.alone():
        assert ready.attempt(1).usage.wall_s > 0.4
    assert place.faults == []


def test_an_interruption_goes_through_and_the_next_answer_is_to_the_next_question(place: ToyPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "END_TIMEOUT_S", 0.5)
    place.connected()
    with pytest.raises(KeyboardInterrupt), place.prepared(Net("tires"), input_shape=SHAPE) as ready, place.alone():
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        ready.attempt(1)
    assert place.measure(Net(), input_shape=SHAPE).median_ms > 0
    assert place.faults == [] and place.started == 2


def test_an_agent_without_its_reference_network_is_none(place: ToyPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Toy.write

    def once(*given: object) -> None:
        monkeypatch.setattr(Toy, "write", write)
        raise MeasurementError("no room for the reference")

    monkeypatch.setattr(Toy, "write", once)
    with pytest.raises(MeasurementError, match="no room for the reference"):
        place.measure(Net(), input_shape=SHAPE)
    assert place.measure(Net(), input_shape=SHAPE).median_ms > 0


def test_a_full_disk_there_is_said_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = 'if "m0" in path: raise OSError(28, "No space left on device")\n                    file.write(chunk)'
    place = toy_place(tmp_path, monkeypatch, change=(AGENT, "file.write(chunk)", full))
    try:
        with pytest.raises(ModelRefused, match=r"the file m0/\S+ cannot be written there: No space left on device; make room"):
            place.measure(Net(), input_shape=SHAPE)
        assert place.measure(Net(), input_shape=SHAPE).median_ms > 0 and place.started == 1
    finally:
        place.close()


def test_a_good_measurement_forgives(place: ToyPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.faults.extend(["once", "twice"])
    place.measure(Net(), input_shape=SHAPE)
    assert place.faults == []


TIMING, AGENT = "nasvit/devices/timing.py", "nasvit/devices/agent.py"
LIES = {
    "zero": (TIMING, "candidate_ms.append(wall)", "candidate_ms.append(0.0)"),
    "negative": (TIMING, "candidate_ms.append(wall)", "candidate_ms.append(-wall)"),
    "not a number": (TIMING, "candidate_ms.append(wall)", "candidate_ms.append(math.nan)"),
    "infinite": (TIMING, "candidate_ms.append(wall)", "candidate_ms.append(math.inf)"),
    "a year": (TIMING, "candidate_ms.append(wall)", "candidate_ms.append(3e10)"),
    "more than went by": (TIMING, "candidate_ms.append(wall)", "candidate_ms.append(1000 * wall)"),
    "less than went by": (TIMING, "alone = [clock(reference)[0] for _ in range(ALONE)]",
                          "alone = [1e-3] * ALONE; candidate_ms[:], reference_ms[:] = [1e-3] * pairs, [1e-3] * pairs * beside"),
    "too few samples": (TIMING, "for _ in range(repeats))", "for _ in range(repeats - 1))"),
    "no samples": (TIMING, '"repeats": [r._asdict() for r in self.repeats]', '"repeats": []'),
    "text": (TIMING, '"repeats": [r._asdict() for r in self.repeats]', '"repeats": "fast"'),
    "wrong hash": (AGENT, '{"sha256": digest.hexdigest()}', '{"sha256": "0" * 64}'),
    "another answer": (AGENT, '{"id": request["id"], **', '{"id": 0, **'),
    "no JSON": (AGENT, 'replies.write(json.dumps({"id"', 'replies.write(b"hello "); replies.write(json.dumps({"id"'),
    "no end": (AGENT, 'replies.write(json.dumps({"id"', 'replies.write(b"x" * 20_000_000); replies.write(json.dumps({"id"'),
    "deep": (AGENT, 'replies.write(json.dumps({"id"', 'replies.write(b"[" * 200_000); replies.write(json.dumps({"id"'),
    "no facts": (AGENT, '"facts": machine.facts()', '"facts": {"cpu": {"a": 1}}'),
    "gone": (AGENT, "request = json.loads(line)", "sys.exit(3)"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_device_that_lies_is_an_error_each_time_and_in_quarantine_after_three(
        lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = toy_place(tmp_path, monkeypatch, change=LIES[lie])
    try:
        for number in range(TRIES):
            with pytest.raises(DeviceLostError if number == TRIES - 1 else DeviceFault):
                device.measure(Net(), input_shape=SHAPE)
        with pytest.raises(DeviceLostError, match="ssh://toy/toy is in quarantine"):
            device.measure(Net(), input_shape=SHAPE)
    finally:
        device.close()


def test_a_device_that_cannot_be_reached_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = toy_place(tmp_path, monkeypatch)
    device.argv = [sys.executable, "-c", "import sys; sys.exit('no route to host')"]
    with pytest.raises(DeviceFault, match="no route to host"):
        device.measure(Net(), input_shape=SHAPE)


def test_the_agent_takes_no_path_outside_its_folder_and_no_other_operation(place: ToyPlace) -> None:
    link = place.connected()
    for name in ("../x", "/etc/x", "a/../../x", "", ".", "a//b", "-x/..", "a\0b"):
        with pytest.raises(ModelRefused, match="not accepted"):
            link.ask("put", name=name, bytes=0)
    for op in ("__init__", "_answer", "path", "system"):
        with pytest.raises(ModelRefused, match="unknown operation"):
            link.ask(op)


def test_a_closed_link_leaves_no_process(place: ToyPlace) -> None:
    process = place.connected()._process
    place.close()
    assert process.poll() == 0


def test_this_machines_file_runtimes_are_measured_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_agent(tmp_path, monkeypatch)
    monkeypatch.setattr("nasvit.devices.remote.write_bundle", lambda folder: path)
    device = LocalAgent(spec=parse_spec("cpu/toy"), runtime=Toy(), threads=1, reference_ms=None)
    sent: list[str] = []
    monkeypatch.setattr(Link, "put", lambda *_, **__: sent.append("file"))
    try:
        stats = device.measure(Net(), input_shape=(2, 3, 8, 8))
        assert stats.batch_size == 2 and stats.reference_ms == device.reference_ms and sent == []
    finally:
        device.close()
    gc.collect()
