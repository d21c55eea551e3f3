"""What `nasvit list` lists: the names that experiments, spaces and options accept, each with where it comes from and a line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from nasvit.errors import ConfigError
from nasvit.registry import OWN, Registry, unknown

Rows = list[tuple[str, str, str]]


def listing(kind: str) -> Rows:
    """(name, package, one line) of everything of a kind; also what a package offers and cannot be had. Raises ConfigError for an unknown
    kind."""
    if kind not in _MAKERS:
        raise ConfigError(unknown("list", kind, list(KINDS)))
    return _MAKERS[kind]()


def _described(registry: Registry[Any], *, line: Callable[[str, str], str] = lambda name, text: text) -> Rows:
    """`line` makes the text of a name from the first line of its object's documentation."""
    rows = []
    for name in registry:
        first = (inspect.getdoc(registry[name]) or "not described by its author").split("\n")[0]
        rows.append((name, registry.origin(name), line(name, first)))
    return rows + [(name, refused.package, f"CANNOT BE HAD: {refused.reason}") for name, refused in registry.refused().items()]


def _mixers() -> Rows:
    from nasvit.models.mixers import MIXERS, parameters_of

    return _described(MIXERS, line=lambda name, text: f"{text} Parameters: {', '.join(parameters_of(name)) or 'none'}.")


def _spaces() -> Rows:
    from nasvit.space import SearchSpace, shipped

    spaces = [SearchSpace.load(path) for path in shipped().values()]
    return [(s.name, OWN, f"{s.file.description} {s.size():.1e} architectures, {s.file.sizes[0]} to {s.file.sizes[-1]} px.")
            for s in spaces]


def _samplers() -> Rows:
    from nasvit.search.samplers import SAMPLERS

    return _described(SAMPLERS)


def _engines() -> Rows:
    from nasvit.engines import ENGINES

    return _described(ENGINES)


def _devices() -> Rows:
    from nasvit.devices import DEVICES

    return _described(DEVICES)


def _runtimes() -> Rows:
    from nasvit.runtimes import RUNTIMES

    def line(name: str, text: str) -> str:
        runtime = RUNTIMES[name]()
        reason = runtime.missing()
        here = f"Here: {runtime.version()}." if reason is None else f"Not here: {reason}."
        return f"{text} On {' and '.join(runtime.devices)}. {here}"

    return _described(RUNTIMES, line=line)


def _data() -> Rows:
    from nasvit.data import KINDS as DATA_KINDS

    return _described(DATA_KINDS, line=lambda name, text: DATA_KINDS[name]().accepts)


def _proxies() -> Rows:
    from nasvit.proxies import PROXIES
    from nasvit.proxies.zero_cost import ZERO_COST

    return _described(PROXIES) + _described(ZERO_COST)


def _objectives() -> Rows:
    from nasvit.results.objectives import OBJECTIVES

    return [(o.name, OWN, f"{o.label}, {o.direction}d") for o in OBJECTIVES.values()]


_MAKERS: dict[str, Callable[[], Rows]] = {"mixers": _mixers, "spaces": _spaces, "samplers": _samplers, "engines": _engines,
                                          "devices": _devices, "runtimes": _runtimes, "data": _data, "proxies": _proxies,
                                          "objectives": _objectives}
KINDS = tuple(_MAKERS)
