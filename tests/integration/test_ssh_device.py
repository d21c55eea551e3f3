"""A device by ssh, through a server that the test starts on 127.0.0.1; and by adb, through one that really runs the agent."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from experiments.loopback_ssh import Server, missing, ssh_server
from nasvit.devices import Device, open_device
from nasvit.devices.transport import DeviceFault
from nasvit.errors import DeviceLostError, MeasurementError

pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")

SHAPE = (1, 3, 8, 8)


@pytest.fixture(autouse=True)
def _own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "lock"))
    monkeypatch.setenv("NASVIT_NOISE", "keep")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if (why := missing()) is not None:
        pytest.skip(why)
    with ssh_server(tmp_path) as made:
        yield made


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5))


def measured_twice(device: Device) -> None:
    """Two networks on one connection: figures of the target, with its facts, and nothing left behind on it."""
    one = device.measure(net(), input_shape=SHAPE)
    two = device.measure(nn.Sequential(net(), nn.Linear(5, 5)), input_shape=SHAPE)
    assert one.fingerprint == two.fingerprint == device.fingerprint and one.median_ms > 0 and two.runs >= 100
    facts = device.describe()
    assert facts["cores"] == os.cpu_count() and facts["runtime_version"].startswith("onnxruntime ")


@pytest.mark.slow
def test_ssh_the_target_needs_only_python_and_its_runtime(server: Server) -> None:
    device, here = open_device(server.spec), open_device("cpu/onnxruntime")
    try:
        measured_twice(device)
        assert device.fingerprint == here.fingerprint  # the same machine, however it is reached
        assert device.peak_memory_mb(net(), input_shape=SHAPE) >= 0
        (agent,) = (server.home / ".cache" / "nasvit").iterdir()
        assert agent.suffix == ".pyz" and agent.stat().st_mode & stat.S_IRWXO == 0
    finally:
        device.close()
        here.close()
    assert server.process.poll() is None


@pytest.mark.slow
def test_ssh_while_it_is_measured_no_training_step_runs_on_the_target(server: Server, tmp_path: Path) -> None:
    device = open_device(server.spec)
    code = "import time\nfrom nasvit.devices.lock import machine_lock\nwith machine_lock.training():\n    print(time.time())"
    try:
        device.describe()
        with device.alone():
            trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            time.sleep(5)
            released = time.time()
        out, _ = trainer.communicate(timeout=60)
        assert float(out) >= released - 0.1
    finally:
        device.close()


def test_ssh_a_server_that_goes_away_is_a_fault_and_then_a_lost_device(server: Server) -> None:
    device = open_device(server.spec)
    device.describe()
    device.close()
    server.process.kill()
    server.process.wait()
    for _ in range(2):
        with pytest.raises(DeviceFault, match="ssh ended with 255"):
            device.measure(net(), input_shape=SHAPE)
    with pytest.raises(DeviceLostError, match="quarantine"):
        device.measure(net(), input_shape=SHAPE)


def test_ssh_an_unknown_host_key_is_refused_without_a_question(server: Server) -> None:
    server.known_hosts.write_text("")
    with pytest.raises(DeviceFault, match=r"(?i)host key verification failed"):
        open_device(server.spec).describe()


def test_ssh_a_target_without_the_interpreter_says_so(server: Server) -> None:
    spec = server.spec.replace(sys.executable, "/no/such/python")
    with pytest.raises(MeasurementError, match="ended with 127"):
        open_device(spec).describe()


ADB = """#!{python}
import os, pathlib, shutil, sys
root = {root!r}
words = sys.argv[1:]
assert words[:2] == ["-s", "R58M12"], words
inside = lambda text: text.replace("/data/local/tmp", root)
if words[2] == "push":
    shutil.copy(words[3], inside(words[4]))
elif words[2:4] == ["shell", "-T"] and len(words) == 5:
    os.execvp("sh", ["sh", "-c", inside(words[4])])
else:
    sys.exit("adb: unknown " + repr(words))
"""


@pytest.mark.slow
def test_adb_measures_by_the_same_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "phone").mkdir()
    adb = tmp_path / "bin" / "adb"
    adb.write_text(ADB.format(python=sys.executable, root=str(tmp_path / "phone")))
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{adb.parent}:{os.environ['PATH']}")
    device = open_device(f"adb://R58M12/onnxruntime?python={sys.executable}")
    try:
        measured_twice(device)
    finally:
        device.close()
    assert [path.suffix for path in (tmp_path / "phone").iterdir()] == [".pyz"]


def test_adb_without_adb_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceFault, match="there is no adb on this machine"):
        open_device("adb://R58M12/onnxruntime").describe()
