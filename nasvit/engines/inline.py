"""The engine without workers: the caller runs the function itself. For debugging, and for one core."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from importlib import import_module
from typing import Any

from nasvit.engines.base import ENGINES, NO_LIMITS, Engine, JobLimits
from nasvit.errors import ConfigError


@ENGINES.register("inline")
class InlineEngine(Engine):
    """The search's own process does one evaluation after the other.

    `submit` returns when the function has ended; KeyboardInterrupt goes to the caller. Always one worker. Nobody watches the caller's own
    process: limits are refused with ConfigError.
    """

    def __init__(self, workers: int = 1, *, limits: JobLimits = NO_LIMITS) -> None:
        if limits != NO_LIMITS:
            raise ConfigError("the engine inline cannot end a function that takes too long or too much memory, because it is the "
                              "search's own process; use the engine processes, or leave the limit away")
        self.workers = 1
        self._open = True

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        if not self._open:
            raise RuntimeError("the engine is shut down")
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            result = fn(*args)
        except Exception as error:  # handed to the caller in the future, as every engine does
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def warm(self, module: str) -> None:
        """The caller is the worker, and its imports yield to nobody's."""
        self.submit(import_module, module)

    def shutdown(self, *, cancel: bool) -> None:
        self._open = False
