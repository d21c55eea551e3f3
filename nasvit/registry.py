"""Names to objects. A duplicate is an error; an unknown name is an error that proposes the nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from nasvit.errors import ConfigError

T = TypeVar("T")


def unknown(kind: str, given: str, accepted: list[str]) -> str:
    """The text of an error about an unknown name: what was given, what is accepted, what was probably meant."""
    close = get_close_matches(given, accepted, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {given!r}{hint} (accepted: {', '.join(accepted)})"


class Registry(Generic[T]):
    """A table of one kind of thing, filled by the decorator `register(name)`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter the object under `name`; a name taken twice is a bug of ours, hence ValueError."""

        def enter(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return enter

    def __getitem__(self, name: str) -> T:
        """The object called `name`; raises ConfigError naming the accepted ones."""
        if name not in self._items:
            raise ConfigError(unknown(self.kind, name, self.names()))
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._items)
