"""The engine of a cluster: Ray tasks, on a cluster named by RAY_ADDRESS or on a local one started for this run.

The only file that imports ray, and only when the engine is made: the import costs half a second, a local start four.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from secrets import token_hex
from typing import Any

from nasvit.engines.base import ENGINES, Engine, WorkerError, portable, told
from nasvit.errors import ConfigError

OBJECT_STORE_BYTES = 100 * 1024**2
CONNECT_SECONDS = 10.0


@ENGINES.register("ray")
class RayEngine(Engine):
    """`workers` tasks at a time, one CPU each. `address`: "host:port" of a running cluster; None: RAY_ADDRESS, else a local one."""

    def __init__(self, workers: int, *, address: str | None = None) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        if address:
            _reachable(address)
        else:
            _require_token()
        self._ray = _import()
        self.workers = workers
        self._lock = threading.Lock()
        self._open = True
        self._refs: dict[Future[Any], Any] = {}
        self._started = not self._ray.is_initialized()
        if self._started:
            options: dict[str, Any] = {"address": address} if address else {
                "address": "local", "num_cpus": workers, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            self._ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
        self._remote = self._ray.remote(num_cpus=1, max_retries=0)(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if not self._open:
                raise RuntimeError("the engine is shut down")
            try:
                ref = self._remote.remote(fn, *args)
            except TypeError as error:
                raise WorkerError(f"{told(fn)} and its arguments must be picklable to run in another process: {error}") from error
            self._refs[future] = ref
        future.add_done_callback(self._done)
        ref.future().add_done_callback(lambda inner: self._settle(future, inner, told(fn)))
        return future

    def shutdown(self, *, cancel: bool) -> None:
        with self._lock:
            first, self._open = self._open, False
            pending = dict(self._refs)
        if cancel:
            for future, ref in pending.items():
                self._ray.cancel(ref, force=True)
                if not future.cancel():
                    _fail(future, CancelledError())
        else:
            for future in pending:
                if not future.cancelled():
                    future.exception()
        if first and self._started:
            self._ray.shutdown()

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            ref = self._refs.pop(future, None)
        if ref is not None and future.cancelled() and self._open:
            self._ray.cancel(ref, force=True)

    def _settle(self, future: Future[Any], inner: Future[Any], name: str) -> None:
        """Carry the task's end over to our future, with the function's own exception."""
        error = inner.exception()
        if error is None:
            if not future.done():
                future.set_result(inner.result())
            return
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.RayTaskError):
            _fail(future, error.cause if isinstance(error.cause, Exception) else error)
        elif isinstance(error, exceptions.TaskCancelledError):
            _fail(future, CancelledError())
        else:
            _fail(future, WorkerError(f"the Ray worker running {name} died ({type(error).__name__}); another takes its place. "
                                      "Was the memory exhausted?"))


def _call(fn: Callable[..., Any], *args: Any) -> Any:
    """In the worker: one torch thread, as each task owns one CPU."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        return fn(*args)
    except Exception as error:  # handed to the caller in the future
        raise portable(error) from None


def _fail(future: Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


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
