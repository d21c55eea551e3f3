"""What a driver sends to each node of a cluster once, and a worker finds by name: data sets, the dense model of a pruning.

A worker without an engine that sends has none, and reads from its own disk instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_fetch: Callable[[str], Any] | None = None


def use(fetch: Callable[[str], Any] | None) -> None:
    """In a worker: how a parcel comes here, by its name; `fetch` gives None for a name that was never sent."""
    global _fetch
    _fetch = fetch


def fetched(name: str) -> Any:
    """The parcel of this name, or None where there is none. Its arrays may be read-only memory that all workers of a node share."""
    return None if _fetch is None else _fetch(name)
