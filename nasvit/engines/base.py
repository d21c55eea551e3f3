"""The contract of an engine: it runs functions somewhere and gives futures; the search does not know where."""

from __future__ import annotations

import pickle
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from nasvit.errors import ConfigError, NasvitError
from nasvit.registry import Registry


class WorkerError(NasvitError):
    """The place where a function ran is gone, or its result could not be brought back; the function is not at fault."""


class Engine(ABC):
    """Runs functions of modules, with arguments that can be pickled. A context manager: leaving it shuts it down.

    A future holds the function's result or its exception, of the same type. A worker that dies fails only its own future,
    with WorkerError, and is replaced.
    """

    workers: int
    """How many functions run at the same time."""

    @abstractmethod
    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Run `fn(*args)` as soon as a worker is free. Raises RuntimeError after `shutdown`."""

    @abstractmethod
    def shutdown(self, *, cancel: bool) -> None:
        """End the workers. With `cancel`, at once: what has not finished is cancelled; else after everything submitted. May be repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown(cancel=error is not None)


ENGINES: Registry[Callable[[int], Engine]] = Registry("engine")


def make_engine(name: str, *, workers: int) -> Engine:
    """The engine of this name. Raises ConfigError for an unknown name, or fewer than one worker."""
    make = ENGINES[name]
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers must be a whole number from 1, not {workers!r}")
    return make(workers)


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
