"""The machine lock between real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nasvit.devices.lock import MachineLock
from nasvit.errors import ConfigError, MeasurementError

TRAINER = """
import json, sys, time
from nasvit.devices.lock import machine_lock
steps = []
open(sys.argv[1] + ".ready", "w").close()
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    with machine_lock.training():
        start = time.monotonic()
        time.sleep(0.004)
        steps.append((start, time.monotonic()))
open(sys.argv[1], "w").write(json.dumps(steps))
"""


@pytest.fixture
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "machine.lock"
    monkeypatch.setenv("NASVIT_LOCK", str(path))
    return path


def trainer(out: Path, *, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TRAINER, str(out), str(seconds)])


def await_files(*paths: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(p.exists() for p in paths):
        assert time.monotonic() < deadline, "the trainers did not start"
        time.sleep(0.01)


def test_no_training_step_runs_while_another_process_measures(lock_file: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"steps{i}.json" for i in range(2)]
    processes = [trainer(out, seconds=1.5) for out in outs]
    await_files(*(o.with_name(o.name + ".ready") for o in outs))
    lock, held = MachineLock(), []
    for _ in range(8):
        asked = time.monotonic()
        with lock.measuring():
            start = time.monotonic()
            time.sleep(0.03)
            held.append((asked, start, time.monotonic()))
        time.sleep(0.03)
    assert [p.wait(timeout=60) for p in processes] == [0, 0]
    steps = [tuple(s) for out in outs for s in json.loads(out.read_text())]
    assert len(steps) > 20
    assert not [(s, h) for s in steps for h in held if s[0] < h[2] and h[1] < s[1]]
    # never starved: a trainer begins at most the step it had already been let into after the measurer asked
    begun = [sum(asked < s[0] < start for s in steps) for asked, start, _ in held]
    assert max(begun) <= 4


def test_a_killed_process_releases_the_lock(lock_file: Path, tmp_path: Path) -> None:
    code = ("import sys, time\nfrom nasvit.devices.lock import machine_lock\nwith machine_lock.measuring():\n"
            "    open(sys.argv[1], 'w').close()\n    time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "in")])
    await_files(tmp_path / "in")
    process.kill()
    process.wait()
    with MachineLock().measuring():
        pass


def test_a_forked_child_does_not_hold_what_its_parent_releases(lock_file: Path) -> None:
    lock = MachineLock()
    with lock.training():
        pass
    child = os.fork()
    if child == 0:
        with lock.measuring():  # with the parent's open file it would not exclude the parent
            time.sleep(0.3)
        os._exit(0)
    time.sleep(0.1)
    start = time.monotonic()
    with lock.training():
        waited = time.monotonic() - start
    os.waitpid(child, 0)
    assert waited > 0.1


def test_nested_use_is_free_but_measuring_inside_a_step_is_refused(lock_file: Path) -> None:
    lock = MachineLock()
    with lock.measuring(), lock.training(), lock.measuring():
        pass
    with lock.training(), pytest.raises(MeasurementError, match="inside a training step"), lock.measuring():
        pass


def test_an_exception_in_a_step_releases_the_lock(lock_file: Path) -> None:
    lock = MachineLock()
    with pytest.raises(ZeroDivisionError), lock.training():
        _ = 1 / 0
    with lock.measuring():
        pass


def test_every_user_may_open_the_lock_files(lock_file: Path) -> None:
    before = os.umask(0o077)
    try:
        with MachineLock().training():
            pass
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in lock_file.parent.glob("machine.lock*")} == {0o666}


def test_a_lock_that_cannot_be_opened_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "absent" / "lock"))
    with pytest.raises(ConfigError, match="NASVIT_LOCK"), MachineLock().training():
        pass
