"""One thread at a time: for an object that several threads may ask, such as a sampler in `study.optimize(n_jobs=..)`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


class OneThread:
    """A lock that the thread which holds it may take again. A copy, also one out of a pickle, is a new one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type[OneThread], tuple[()]]:
        return OneThread, ()


def one_at_a_time(method: Callable[Concatenate[Any, Given], Answer]) -> Callable[Concatenate[Any, Given], Answer]:
    """A method that holds its object's `_thread`, a OneThread, while it runs."""
    @wraps(method)
    def held(self: Any, *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        with self._thread.lock:
            return method(self, *args, **kwargs)
    return held
