"""What `nasvit list` lists: the names that experiments, spaces and options accept, each with a line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from nasvit.errors import ConfigError
from nasvit.registry import Registry, unknown

Rows = list[tuple[str, str]]


def listing(kind: str) -> Rows:
    """(name, one line) of everything of a kind. Raises ConfigError for an unknown kind."""
    if kind not in _MAKERS:
        raise ConfigError(unknown("list", kind, list(KINDS)))
    return _MAKERS[kind]()


def _described(registry: Registry[Any]) -> Rows:
    rows = []
    for name in registry:
        item = registry[name]
        text = inspect.getdoc(item) or ""
        rows.append((name, text.split("\n")[0]))
    return rows


def _mixers() -> Rows:
    from nasvit.models.mixers import MIXERS, parameters_of

    return [(name, f"{text} Parameters: {', '.join(parameters_of(name)) or 'none'}.") for name, text in _described(MIXERS)]


def _spaces() -> Rows:
    from nasvit.space import SearchSpace, shipped

    spaces = [SearchSpace.load(path) for path in shipped().values()]
    return [(s.name, f"{s.file.description} {s.size():.1e} architectures, {s.file.sizes[0]} to {s.file.sizes[-1]} px.") for s in spaces]


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

    rows = []
    for name, text in _described(RUNTIMES):
        runtime = RUNTIMES[name]()
        reason = runtime.missing()
        rows.append((name, f"{text} On {' and '.join(runtime.devices)}. " + (f"Here: {runtime.version()}." if reason is None
                                                                           else f"Not here: {reason}.")))
    return rows


def _data() -> Rows:
    from nasvit.data import KINDS as DATA_KINDS

    return [(name, DATA_KINDS[name]().accepts) for name in DATA_KINDS]


def _proxies() -> Rows:
    from nasvit.proxies import PROXIES
    from nasvit.proxies.zero_cost import ZERO_COST

    return _described(PROXIES) + _described(ZERO_COST)


def _objectives() -> Rows:
    from nasvit.results.objectives import OBJECTIVES

    return [(o.name, f"{o.label}, {o.direction}d") for o in OBJECTIVES.values()]


_MAKERS: dict[str, Callable[[], Rows]] = {"mixers": _mixers, "spaces": _spaces, "samplers": _samplers, "engines": _engines,
                                          "devices": _devices, "runtimes": _runtimes, "data": _data, "proxies": _proxies,
                                          "objectives": _objectives}
KINDS = tuple(_MAKERS)
