"""The engine of one machine: spawned worker processes that stay, each with one torch thread.

One thread of the driver serves one worker over one pipe, so that a worker's death concerns its own future alone
(concurrent.futures.ProcessPoolExecutor gives up all of them).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from nasvit.engines.base import ENGINES, NO_LIMITS, Engine, JobLimits, NoRoomError, OverLimitError, WorkerError, portable, resident_mb, told
from nasvit.errors import ConfigError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
JOIN_SECONDS, STARTED_SECONDS = 5.0, 5.0
LOOK_SECONDS = 0.25
"""So often a function with limits is looked at."""

_starting = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    payload: bytes
    future: Future[Any]


@dataclass(frozen=True, slots=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection


@ENGINES.register("processes")
class ProcessEngine(Engine):
    """Worker processes of this machine, started when first needed and kept."""

    def __init__(self, workers: int, *, limits: JobLimits = NO_LIMITS) -> None:
        if limits.memory_mb is not None and not resident_mb(os.getpid()):
            raise ConfigError("this system does not tell the memory of a process, so memory_mb cannot be held; leave it away")
        self.workers = workers
        self.limits = limits
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = True
        self._cancelled = False
        self._running: dict[int, _Worker] = {}
        self._threads = [threading.Thread(target=self._serve, args=(slot,), daemon=True, name=f"nasvit-worker-{slot}")
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

    def warm(self, module: str) -> None:
        super().warm(module)
        end = time.monotonic() + STARTED_SECONDS
        while len(self._running) < self.workers and time.monotonic() < end:
            time.sleep(0.005)  # while processes start, the environment is theirs: the driver must not import torch with it

    def shutdown(self, *, cancel: bool) -> None:
        with self._lock:
            if self._open:
                self._open = False
                for _ in self._threads:
                    self._jobs.put(None)
            self._cancelled = self._cancelled or cancel
            if self._cancelled:
                for worker in self._running.values():
                    worker.process.kill()
        for thread in self._threads:
            thread.join()

    def _serve(self, slot: int) -> None:
        """The life of one slot: take a job, have a worker do it, replace the worker where it died."""
        while (job := self._jobs.get()) is not None:
            if self._cancelled:
                job.future.cancel()
            if job.future.set_running_or_notify_cancel():
                self._run(slot, job)
        with self._lock:
            worker = self._running.pop(slot, None)
        if worker is not None:
            worker.pipe.close()  # the worker reads the end of the pipe, and leaves
            worker.process.join(JOIN_SECONDS)
            worker.process.kill()
            worker.process.join()

    def _run(self, slot: int, job: _Job) -> None:
        try:
            worker = self._worker(slot)
            answer = _exchange(worker, job, self.limits) if worker is not None else None
        except OverLimitError as error:
            assert worker is not None
            worker.process.kill()
            self._bury(slot, worker)
            job.future.set_exception(error)
            return
        except Exception as error:  # whatever it is: a thread that ends here would leave the future open for ever
            job.future.set_exception(NoRoomError(f"a worker process could not be started ({type(error).__name__}: {error})"))
            return
        if answer is not None:
            _settle(job, answer)
            return
        if worker is not None:
            self._bury(slot, worker)
        if self._cancelled or worker is None:
            job.future.set_exception(CancelledError())
        else:
            job.future.set_exception(WorkerError(f"the worker process running {job.name} died ({_cause(worker.process.exitcode)}); "
                                                 "a new one takes its place. Was the memory exhausted?"))

    def _bury(self, slot: int, worker: _Worker) -> None:
        """Forget a worker that has died, or was just killed."""
        with self._lock:
            self._running.pop(slot, None)
        worker.pipe.close()
        worker.process.join()

    def _worker(self, slot: int) -> _Worker | None:
        """The slot's worker, started where there is none; None once the engine is cancelled."""
        with self._lock:
            known = self._running.get(slot)
        if known is not None and known.process.is_alive():
            return known
        started = _start()
        with self._lock:
            if not self._cancelled:
                self._running[slot] = started
                return started
        started.process.kill()
        started.process.join()
        return None


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    with _starting, _one_thread_environment(), _interrupts_blocked():
        process.start()
    theirs.close()  # so that the worker's death is the end of the pipe
    return _Worker(process, ours)


@contextlib.contextmanager
def _one_thread_environment() -> Iterator[None]:
    """A child inherits the environment: its torch is limited before it can be imported."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A child inherits the signal mask: Ctrl-C cannot meet it before it has said that it ignores Ctrl-C."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exchange(worker: _Worker, job: _Job, limits: JobLimits) -> bytes | None:
    """Send a job and wait for the answer; None where the worker died. Raises OverLimitError where it passes a limit."""
    try:
        worker.pipe.send_bytes(job.payload)
        begun = time.monotonic()
        while not wait([worker.pipe, worker.process.sentinel], timeout=None if limits == NO_LIMITS else LOOK_SECONDS):
            broken = limits.broken(seconds=time.monotonic() - begun, memory_mb=resident_mb(worker.process.pid))
            if broken is not None:
                raise OverLimitError(f"{job.name} was ended, because {broken}")
        return worker.pipe.recv_bytes() if worker.pipe.poll() else None
    except (EOFError, OSError):
        return None


def _settle(job: _Job, answer: bytes) -> None:
    try:
        ok, value = pickle.loads(answer)
    except Exception as error:  # an answer of foreign types can fail in any way while it is read
        ok, value = False, WorkerError(f"the result of {job.name} could not be brought back: {error!r}")
    if ok:
        job.future.set_result(value)
    else:
        job.future.set_exception(value)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


# ---- in the worker --------------------------------------------------------------------------------------------------


def _work(pipe: Connection) -> None:
    """Do jobs until the driver closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_leave_with_the_driver, daemon=True).start()
    while True:
        try:
            payload = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        pipe.send_bytes(_answer(payload))


def _leave_with_the_driver() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)  # the driver was killed: nobody waits for the job under way


def _answer(payload: bytes) -> bytes:
    try:
        fn, args = pickle.loads(payload)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        return pickle.dumps((True, fn(*args)))
    except Exception as error:  # handed to the caller in the future
        return pickle.dumps((False, portable(error)))
