from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest

from nasvit.engines import ENGINES, Engine, JobLimits, NoRoomError, OverLimitError, WorkerError, make_engine
from nasvit.engines.ray import RayEngine
from nasvit.errors import ConfigError, TrainingError
from tests.conformance import engine_tasks as tasks

LIMIT = 60.0
NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "ray" else ()) for name in ENGINES.names()]
APART = [p for p in NAMES if p.values[0] != "inline"]


@pytest.fixture(scope="module", params=NAMES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with make_engine(request.param, workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def apart(engine: Engine) -> Engine:
    """An engine whose functions run in other processes."""
    if engine.submit(tasks.pid).result(LIMIT) == os.getpid():
        pytest.skip("this engine runs in the caller's process")
    return engine


def test_a_future_holds_the_result(engine: Engine) -> None:
    assert [f.result(LIMIT) for f in [engine.submit(tasks.add, i, 1) for i in range(10)]] == list(range(1, 11))


@pytest.mark.parametrize("name", NAMES)
def test_a_warmed_worker_has_the_module_before_a_job_asks_for_it(name: str) -> None:
    with make_engine(name, workers=2) as engine:
        engine.warm("colorsys")
        futures = [engine.submit(tasks.knows_after, 0.3, "colorsys") for _ in range(4)]  # long enough for both workers to have some
        assert all(future.result(LIMIT) for future in futures)


def test_a_module_that_cannot_be_imported_fails_no_job(engine: Engine) -> None:
    engine.warm("nasvit.no_such_module")
    assert engine.submit(tasks.add, 1, 1).result(LIMIT) == 2


def test_what_is_sent_after_the_workers_began_reaches_them(engine: Engine) -> None:
    if not isinstance(engine, RayEngine):
        pytest.skip("workers of this machine need no parcels")
    assert engine.submit(tasks.parcel, "late").result(LIMIT) is None
    engine.send("late", [1, 2])
    assert engine.submit(tasks.parcel, "late").result(LIMIT) == [1, 2]


def test_an_exception_keeps_its_type_and_text(engine: Engine) -> None:
    future = engine.submit(tasks.refuse, "loss is not finite")
    with pytest.raises(TrainingError, match="loss is not finite") as error:
        future.result(LIMIT)
    assert type(error.value) is TrainingError


def test_a_failure_leaves_the_others_alone(engine: Engine) -> None:
    bad, good = engine.submit(tasks.refuse, "x"), engine.submit(tasks.add, 1, 1)
    assert isinstance(bad.exception(LIMIT), TrainingError) and good.result(LIMIT) == 2


def test_results_belong_to_their_futures_whatever_the_order_of_ending(engine: Engine) -> None:
    futures = {engine.submit(tasks.sleep_then, (7 - i) * 0.02, i): i for i in range(8)}
    wait(futures, LIMIT)
    assert all(future.result() == i for future, i in futures.items())


def test_an_exception_that_cannot_travel_still_tells_its_text(apart: Engine) -> None:
    error = apart.submit(tasks.raise_awkward).exception(LIMIT)
    assert error is not None and "code 7" in str(error)


def test_two_functions_run_at_the_same_time(apart: Engine) -> None:
    wait([apart.submit(tasks.sleep_then, 0.5, i) for i in range(2)], LIMIT)  # both workers are up
    start = time.monotonic()
    wait([apart.submit(tasks.sleep_then, 1.5, i) for i in range(2)], LIMIT)
    assert time.monotonic() - start < 2.7


def test_a_dead_worker_fails_only_its_own_future_and_is_replaced(apart: Engine) -> None:
    beside, dead = apart.submit(tasks.sleep_then, 1.0, "alive"), apart.submit(tasks.die)
    with pytest.raises(WorkerError, match="die"):
        dead.result(LIMIT)
    assert beside.result(LIMIT) == "alive"
    assert [f.result(LIMIT) for f in [apart.submit(tasks.add, i, i) for i in range(4)]] == [0, 2, 4, 6]


def test_a_worker_has_one_torch_thread(apart: Engine) -> None:
    assert apart.submit(tasks.threads).result(LIMIT) == ("1", 1)


@pytest.mark.parametrize("name", APART)
def test_a_function_past_a_limit_is_ended_and_the_next_one_runs(name: str) -> None:
    with make_engine(name, workers=1, limits=JobLimits(seconds=1.0, memory_mb=900)) as engine:
        assert engine.submit(tasks.add, 1, 1).result(LIMIT) == 2
        start = time.monotonic()
        with pytest.raises(OverLimitError, match="more than 1 s"):
            engine.submit(tasks.sleep_then, 60, 0).result(LIMIT)
        assert time.monotonic() - start < 1 + 5
        assert engine.submit(tasks.add, 2, 2).result(LIMIT) == 4
    with make_engine(name, workers=1, limits=JobLimits(memory_mb=900)) as engine:
        with pytest.raises(OverLimitError, match="more than 900 MB"):
            engine.submit(tasks.swell, 1000).result(LIMIT)
        assert engine.submit(tasks.add, 3, 3).result(LIMIT) == 6


def test_the_inline_engine_refuses_limits() -> None:
    with pytest.raises(ConfigError, match="inline cannot end"):
        make_engine("inline", workers=1, limits=JobLimits(seconds=1.0))


@pytest.mark.parametrize("name", NAMES)
def test_a_shut_down_engine_refuses(name: str) -> None:
    engine = make_engine(name, workers=1)
    engine.shutdown(cancel=False)
    engine.shutdown(cancel=True)
    with pytest.raises(RuntimeError, match="shut down"):
        engine.submit(tasks.add, 1, 1)


@pytest.mark.parametrize("name", APART)
def test_shutdown_without_cancel_finishes_everything(name: str, tmp_path: Path) -> None:
    engine = make_engine(name, workers=1)
    futures = [engine.submit(tasks.touch, str(tmp_path / str(i))) for i in range(3)]
    engine.shutdown(cancel=False)
    assert all(f.done() for f in futures) and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", APART)
def test_shutdown_with_cancel_ends_at_once_and_cancels_all(name: str) -> None:
    engine = make_engine(name, workers=1)
    engine.submit(tasks.add, 1, 1).result(LIMIT)
    futures = [engine.submit(tasks.sleep_then, 300, i) for i in range(3)]
    time.sleep(0.5)
    start = time.monotonic()
    engine.shutdown(cancel=True)
    assert time.monotonic() - start < 15
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(LIMIT)


@pytest.mark.slow
def test_what_no_node_has_room_for_fails_with_what_is_asked_and_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasvit.engines.ray.ROOM_SECONDS", 3.0)
    with pytest.raises(ConfigError, match=r"a share of a GPU for each worker .1. is a cluster's to give, and there is none"):
        make_engine("ray", workers=2, gpus=1.0)
    with make_engine("ray", workers=1):
        for module in ("ray", "ray_access"):  # the local one, as if others had begun it
            monkeypatch.setattr(f"nasvit.engines.{module}.running_cluster", lambda address: "auto")
        with make_engine("ray", workers=2, gpus=1.0) as engine:
            errors = [f.exception(LIMIT) for f in [engine.submit(tasks.add, 1, 1) for _ in range(3)]]
    assert all(isinstance(e, NoRoomError) and "no room" in str(e) and "'num_gpus': 1.0" in str(e) for e in errors)


def test_make_engine_refuses_an_unknown_name_and_no_workers() -> None:
    with pytest.raises(ConfigError, match="did you mean 'processes'"):
        make_engine("process", workers=1)
    with pytest.raises(ConfigError, match="from 1"):
        make_engine("inline", workers=0)


def test_what_cannot_be_pickled_is_refused_at_submit() -> None:
    with make_engine("processes", workers=1) as engine, pytest.raises(WorkerError, match="picklable"):
        engine.submit(lambda: 1)


def test_a_result_that_cannot_be_pickled_is_an_error_not_a_hang() -> None:
    with make_engine("processes", workers=1) as engine:
        error = engine.submit(tasks.give_lambda).exception(LIMIT)
        assert isinstance(error, (WorkerError, pickle.PicklingError, AttributeError)) and engine.submit(tasks.add, 1, 1).result(LIMIT) == 2


def test_workers_stay_between_functions() -> None:
    with make_engine("processes", workers=1) as engine:
        assert len({engine.submit(tasks.pid).result(LIMIT) for _ in range(3)}) == 1


DRIVER = """
import sys, time
from nasvit.engines import make_engine
from tests.conformance import engine_tasks as tasks
if __name__ == "__main__":
    engine = make_engine("processes", workers=2)
    print(*[f.result() for f in [engine.submit(tasks.pid), engine.submit(tasks.pid)]], flush=True)
    jobs = [engine.submit(tasks.sleep_then, 300, 0) for _ in range(2)]
    try:
        print("ready", flush=True)
        jobs[0].result()
    except KeyboardInterrupt:
        engine.shutdown(cancel=True)
        print("ended", flush=True)
"""


@pytest.mark.parametrize(("end", "says"), [(signal.SIGINT, "ended"), (signal.SIGKILL, "")])
def test_an_interrupted_or_killed_driver_leaves_no_worker_and_no_traceback(tmp_path: Path, end: signal.Signals, says: str) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                              start_new_session=True)
    assert driver.stdout is not None
    pids = [int(p) for p in driver.stdout.readline().split()]
    assert driver.stdout.readline().strip() == "ready"
    if end is signal.SIGINT:
        os.killpg(driver.pid, end)  # as a terminal does: driver and workers alike
    else:
        os.kill(driver.pid, end)
    out, errors = driver.communicate(timeout=LIMIT)
    assert out.strip() == says and "Traceback" not in errors
    limit = time.monotonic() + 10
    while any(_alive(p) for p in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(_alive(p) for p in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
