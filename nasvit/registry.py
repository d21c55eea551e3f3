"""Names to objects. A duplicate is an error; an unknown name is an error that proposes the nearest.

Other packages add names through entry points: a registry with a `group` loads those of its group when it is first read, and no others.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from nasvit.errors import ConfigError

T = TypeVar("T")

OWN = "nasvit"
"""Where a name comes from that this package itself registers."""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
"""What a name of another package looks like: it stands in space files, device specs and records."""


class PackageWarning(UserWarning):
    """A name that another package offers and that cannot be had; an error for whoever asks for it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A name that cannot be had: the package or packages that offer it, and why."""

    package: str
    reason: str


def unknown(kind: str, given: str, accepted: list[str]) -> str:
    """The text of an error about an unknown name: what was given, what is accepted, what was probably meant."""
    close = get_close_matches(given, accepted, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {given!r}{hint} (accepted: {', '.join(accepted)})"


class Registry(Generic[T]):
    """A table of one kind of thing, filled by the decorator `register(name)` and, with a `group`, by entry points of that group.

    check: says what is wrong with an object of another package, None if nothing is.
    """

    def __init__(self, kind: str, *, group: str | None = None, check: Callable[[Any], str | None] | None = None) -> None:
        self.kind, self.group = kind, group
        self._check = check
        self._items: dict[str, T] = {}
        self._origin: dict[str, str] = {}
        self._refused: dict[str, Refused] = {}
        self._read = False
        self._lock = threading.RLock()  # an object being loaded may read the registry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter the object under `name`; a name taken twice is a bug of ours, hence ValueError."""

        def enter(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            self._origin[name] = str(getattr(item, "__module__", OWN)).partition(".")[0]
            return item

        return enter

    def __getitem__(self, name: str) -> T:
        """The object called `name`. Raises ConfigError naming the accepted ones, or the package that offers it and why it cannot be had."""
        reason = self.refusal(name)
        if reason is not None:
            raise ConfigError(reason)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """All names that can be had, sorted."""
        self._discover()
        return sorted(self._items)

    def refusal(self, name: str) -> str | None:
        """Why `name` cannot be had, as the text of an error; None if it can."""
        self._discover(asked=name)
        if name in self._items:
            return None
        if name in self._refused:
            return self._told(name)
        return unknown(self.kind, name, self.names())

    def origin(self, name: str) -> str:
        """Where a name comes from: nasvit, or a package and its version."""
        self._discover()
        return self._origin[name]

    def refused(self) -> dict[str, Refused]:
        """The names that packages offer and that cannot be had, and why."""
        self._discover()
        return dict(sorted(self._refused.items()))

    def _told(self, name: str) -> str:
        refused = self._refused[name]
        return f"{self.kind} {name!r} of {refused.package} cannot be had: {refused.reason}"

    def _discover(self, *, asked: str | None = None) -> None:
        """Load the entry points of the group, once. What fails is remembered under its name, and a warning where it is not asked for."""
        with self._lock:
            if self._read or self.group is None:
                return
            self._read = True
            from importlib.metadata import entry_points  # 0.1 s

            for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, str(point.value))):
                self._load(point)
            for name in self._refused:
                if name != asked:
                    warnings.warn(self._told(name), PackageWarning, stacklevel=4)

    def _load(self, point: Any) -> None:
        name = str(point.name)
        package = OWN if point.dist is None else f"{point.dist.name} {point.dist.version}"
        rival = self._origin.get(name) if name in self._items else self._refused[name].package if name in self._refused else None
        if rival is not None:
            self._refuse(name, f"{rival} and {package}", "the name is taken twice; uninstall or rename one of them")
        elif not NAME.fullmatch(name):
            self._refuse(name, package, "a name has up to 32 letters, digits and underscores, and begins with a letter")
        else:
            try:
                item = point.load()
            except Exception as error:  # code of others: whatever it raises must not take the rest with it
                self._refuse(name, package, f"{point.value} does not load ({type(error).__name__}: {str(error)[:300]}); "
                                            f"mend, upgrade or uninstall the package")
                return
            wrong = self._check(item) if self._check else None
            if wrong is not None:
                self._refuse(name, package, f"{point.value} {wrong}")
                return
            self._items[name], self._origin[name] = item, package

    def _refuse(self, name: str, package: str, reason: str) -> None:
        self._items.pop(name, None)  # of two that claim one name neither is guessed
        self._refused[name] = Refused(package, reason)


def subclass_of(base: type) -> Callable[[Any], str | None]:
    """A `check`: the object must be a class derived from `base`, with all its methods."""

    def check(item: Any) -> str | None:
        if not isinstance(item, type) or not issubclass(item, base):
            return f"is no subclass of {base.__module__}.{base.__qualname__}"
        lacking = sorted(getattr(item, "__abstractmethods__", ()))
        return f"lacks {', '.join(lacking)}, which {base.__module__}.{base.__qualname__} asks for" if lacking else None

    return check


def function(item: Any) -> str | None:
    """A `check`: the object must be callable."""
    return None if callable(item) else "is no function"
