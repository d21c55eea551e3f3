"""The engine of a cluster: Ray actors, on a cluster named by RAY_ADDRESS or on a local one started for this run.

The only file that imports ray, and only when the engine is made: the import costs half a second, a local start four.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from nasvit.engines.base import ENGINES, NO_LIMITS, Engine, JobLimits, OverLimitError, WorkerError, portable, resident_mb, told
from nasvit.errors import ConfigError, NasvitError

OBJECT_STORE_BYTES = 100 * 1024**2
CONNECT_SECONDS = 10.0
LOOK_SECONDS = 0.5
"""So often a running function is looked at."""


@ENGINES.register("ray")
class RayEngine(Engine):
    """`workers` actors that stay, one CPU and `gpus` of a GPU each. `address`: "auto", "host:port" or "ray://host:port" of a running
    cluster; None: RAY_ADDRESS, else a local one. Nodes may come and go: an actor that is lost with its node is started anew."""

    def __init__(self, workers: int, *, limits: JobLimits = NO_LIMITS, address: str | None = None, gpus: float = 0.0) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        if address:
            _reachable(address)
        else:
            _require_token()
        self._ray = _import()
        self.workers, self.limits = workers, limits
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open, self._cancelled = True, False
        self._actors: dict[int, Any] = {}
        self._started = not self._ray.is_initialized()
        if self._started:
            options: dict[str, Any] = {"address": address} if address else {
                "address": "local", "num_cpus": workers, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            self._ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
        # a second thread of the actor tells its memory while the first one works
        self._ray.method(concurrency_group="watch")(_Actor.resident_mb)
        share = 1 if address else 0  # of a cluster's cores; a local one is there for the workers alone
        self._actor = self._ray.remote(num_cpus=share, num_gpus=gpus, max_restarts=0, concurrency_groups={"watch": 1})(_Actor)
        self._threads = [threading.Thread(target=self._serve, args=(slot,), daemon=True, name=f"nasvit-ray-{slot}")
                         for slot in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            payload = pickle.dumps((fn, args))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise WorkerError(f"{told(fn)} and its arguments must be picklable to run in another process: {error}") from error
        with self._lock:
            if not self._open:
                raise RuntimeError("the engine is shut down")
            self._jobs.put(_Job(told(fn), payload, future))
        return future

    def shutdown(self, *, cancel: bool) -> None:
        with self._lock:
            first, self._open = self._open, False
            if first:
                for _ in self._threads:
                    self._jobs.put(None)
            self._cancelled = self._cancelled or cancel
        for thread in self._threads:
            thread.join()
        if first and self._started:
            self._ray.shutdown()

    def _serve(self, slot: int) -> None:
        """The life of one slot: take a job, have its actor do it, replace the actor where it died."""
        while (job := self._jobs.get()) is not None:
            if self._cancelled:
                job.future.cancel()
            if job.future.set_running_or_notify_cancel():
                try:
                    self._settle(job, self._run(slot, job))
                except Exception as error:  # whatever it is: a thread that ends here would leave the future open for ever
                    job.future.set_exception(error if isinstance(error, (NasvitError, CancelledError))
                                             else WorkerError(f"Ray could not run {job.name} ({type(error).__name__}: {error})"))
        self._drop(slot)

    def _run(self, slot: int, job: _Job) -> bytes:
        """The answer of the slot's actor. Raises WorkerError where the actor dies, OverLimitError where the job passes a limit."""
        if slot not in self._actors:
            self._actors[slot] = self._actor.remote()
        actor, exceptions = self._actors[slot], self._ray.exceptions
        try:
            ready = actor.ready.remote()
            while not self._ray.wait([ready], timeout=LOOK_SECONDS)[0]:  # a cluster may have no room yet: that is not the job's time
                self._stop_if_cancelled(slot)
            self._ray.get(ready)
            answer, begun = actor.answer.remote(job.payload), time.monotonic()
            while not self._ray.wait([answer], timeout=LOOK_SECONDS)[0]:
                self._stop_if_cancelled(slot)
                broken = self.limits.broken(seconds=time.monotonic() - begun, memory_mb=self._memory_mb(actor))
                if broken is not None:
                    self._drop(slot)
                    raise OverLimitError(f"{job.name} was ended, because {broken}")
            return self._ray.get(answer)  # type: ignore[no-any-return]
        except exceptions.RayError as error:
            self._drop(slot)
            raise WorkerError(f"the Ray worker running {job.name} died ({type(error).__name__}); another takes its place. "
                              "Was the memory exhausted, or a node lost?") from error

    def _memory_mb(self, actor: Any) -> float:
        if self.limits.memory_mb is None:
            return 0.0
        told_mb = actor.resident_mb.remote()
        done, _ = self._ray.wait([told_mb], timeout=2 * LOOK_SECONDS)
        return float(self._ray.get(told_mb)) if done else 0.0  # a worker too busy to tell is asked again

    def _stop_if_cancelled(self, slot: int) -> None:
        if self._cancelled:
            self._drop(slot)
            raise CancelledError

    def _drop(self, slot: int) -> None:
        """End the slot's actor; the next job starts another."""
        actor = self._actors.pop(slot, None)
        if actor is not None:
            self._ray.kill(actor, no_restart=True)

    def _settle(self, job: _Job, answer: bytes) -> None:
        ok, value = pickle.loads(answer)
        if ok:
            job.future.set_result(value)
        else:
            job.future.set_exception(value)


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    payload: bytes
    future: Future[Any]


class _Actor:
    """In the worker: does one job after the other with one torch thread, as each owns one CPU."""

    def ready(self) -> bool:
        """Whether it lives."""
        return True

    def answer(self, payload: bytes) -> bytes:
        """(True, result) or (False, exception), pickled: an exception keeps its type this way."""
        try:
            fn, args = pickle.loads(payload)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)
            return pickle.dumps((True, fn(*args)))
        except Exception as error:  # handed to the caller in the future
            return pickle.dumps((False, portable(error)))

    def resident_mb(self) -> float:
        """Memory of this worker in MB."""
        return resident_mb(os.getpid())


def _import() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray asks for this choice with a warning otherwise
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"the engine ray needs the package ray ({error}); install it, or use the engine processes") from error
    return ray


def _reachable(address: str) -> None:
    """A clear error in seconds; Ray itself waits for a minute or more."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not host or not port.isdigit():
        raise ConfigError(f"a Ray address is host:port, not {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address} within {CONNECT_SECONDS:g} s ({error}); "
                          "start one with `ray start --head`, or unset RAY_ADDRESS for a local one") from error


def _require_token() -> None:
    """Ray's control service listens on every address and runs what it is sent: a local cluster asks for a token of its own."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="nasvit-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "token"
    path.touch(mode=0o600)
    path.write_text(token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
