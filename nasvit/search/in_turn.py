"""A list of jobs through an engine: as many at a time as there are workers, each result as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Protocol


class Submits(Protocol):
    """What is needed of an engine."""

    workers: int

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]: ...


def in_turn(engine: Submits, fn: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], Future[Any]]]:
    """Each job's arguments with its finished future. `jobs` is asked for the next one when a worker is free for it, and may end early."""
    waiting = iter(jobs)
    flying: dict[Future[Any], tuple[Any, ...]] = {}
    while True:
        while len(flying) < engine.workers and (job := next(waiting, None)) is not None:
            flying[engine.submit(fn, *job)] = job
        if not flying:
            return
        for future in wait(flying, return_when=FIRST_COMPLETED).done:
            yield flying.pop(future), future
