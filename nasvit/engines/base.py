"""The contract of an engine: it runs functions somewhere and gives futures; the search does not know where."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nasvit.errors import ConfigError, NasvitError
from nasvit.registry import Registry


class WorkerError(NasvitError):
    """The place where a function ran is gone, or its result could not be brought back; the function is not at fault."""


class NoRoomError(WorkerError):
    """The function was never run, or its worker had no room for what it needs: another time, or elsewhere, it may."""


class OverLimitError(WorkerError):
    """The function took more time or memory than a job may; its worker was ended. Trying again would end the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """What one function may take. seconds: wall time from its start in a worker. memory_mb: resident memory of its worker, in MB
    (10^6 bytes), whatever it held before included. None: no limit. Raises ConfigError for a number that is not above 0."""

    seconds: float | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_mb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"the limit {name} of a job must be a number above 0, not {value!r}")

    def broken(self, *, seconds: float, memory_mb: float) -> str | None:
        """In words, which limit is passed; None where none is."""
        if self.seconds is not None and seconds > self.seconds:
            return f"it ran for more than {self.seconds:g} s"
        if self.memory_mb is not None and memory_mb > self.memory_mb:
            return f"its worker held {memory_mb:.0f} MB, more than {self.memory_mb:.0f} MB"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of a cluster: how many workers it has, and how many of them are at work."""

    name: str
    workers: int
    busy: int


class Engine(ABC):
    """Runs functions of modules, with arguments that can be pickled. A context manager: leaving it shuts it down.

    A future holds the function's result or its exception, of the same type. A worker that dies fails only its own future,
    with WorkerError, and is replaced; one whose function passes the engine's `limits` is ended, with OverLimitError.
    """

    workers: int
    """How many functions run at the same time."""
    elsewhere: bool = False
    """Whether workers may be on other machines: these share neither files nor the processor with the caller."""

    @abstractmethod
    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Run `fn(*args)` as soon as a worker is free. Raises RuntimeError after `shutdown`."""

    @abstractmethod
    def shutdown(self, *, cancel: bool) -> None:
        """End the workers. With `cancel`, at once: what has not finished is cancelled; else after everything submitted. May be repeated."""

    def warm(self, module: str) -> None:
        """Start all workers now, each importing `module`, and not with their first jobs. What fails here fails there again, and is told.

        The first begins work soonest: each yields the processor to those before it, and all to the caller's own imports.
        """
        for place in range(self.workers):
            self.submit(imported, module, min(19, 5 * (1 + place)))

    def send(self, name: str, value: Any) -> None:
        """Have `value` ready for workers under this name (`parcels.fetched`), once on each node. Before the jobs that ask for it.

        Workers of this machine need no parcels: nothing is sent to them.
        """
        return None

    def nodes(self) -> tuple[Node, ...]:
        """The machines that workers are on just now; none where all are on this one."""
        return ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown(cancel=error is not None)


NO_LIMITS = JobLimits()
ENGINES: Registry[type[Engine]] = Registry("engine")


def make_engine(name: str, *, workers: int, limits: JobLimits = NO_LIMITS, **place: Any) -> Engine:
    """The engine of this name; `place` is what it alone takes, such as ray's address and gpus. Raises ConfigError for an unknown
    name, fewer than one worker, or limits that it cannot hold."""
    make: Any = ENGINES[name]
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers must be a whole number from 1, not {workers!r}")
    return make(workers, limits=limits, **place)  # type: ignore[no-any-return]


def resident_mb(pid: int | None) -> float:
    """Memory of a process in MB (10^6 bytes); 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, IndexError, ValueError):
        return 0.0


def imported(module: str, niceness: int) -> None:
    """In a worker: have the module there, imported at a lower priority: by a thread that ends with it, because on Linux priority is a
    thread's, and a process without rights cannot raise its own again."""
    with ThreadPoolExecutor(1, initializer=_yielding, initargs=(niceness,)) as thread:
        thread.submit(import_module, module).result()


def _yielding(niceness: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError):  # as it is, then
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def portable(error: Exception) -> Exception:
    """The error as it can leave a worker: itself with its traceback as a note, or its text where it cannot be pickled."""
    trace = "".join(traceback.format_exception(error))
    error.add_note(f"in the worker:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # exceptions of foreign types can fail in any way while they are read back
        return WorkerError(f"{type(error).__name__}: {error}\nin the worker:\n{trace}")
    return error


def told(fn: Callable[..., Any]) -> str:
    """The function's name for a message."""
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"
