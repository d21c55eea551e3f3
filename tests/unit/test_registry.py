from __future__ import annotations

import importlib.metadata
import sys
import types
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import pytest

from nasvit.errors import ConfigError
from nasvit.registry import PackageWarning, Registry, function, subclass_of


@dataclass
class Point:
    """An entry point as importlib.metadata gives it."""

    name: str
    object: object
    package: str = "swirls"
    value: str = "swirls:thing"
    loads: list[str] = field(default_factory=list)

    @property
    def dist(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(name=self.package, version="1.2")

    def load(self) -> object:
        self.loads.append(self.name)
        if isinstance(self.object, Exception):
            raise self.object
        return self.object() if isinstance(self.object, types.FunctionType) and self.object.__name__ == "<lambda>" else self.object


def registry(monkeypatch: pytest.MonkeyPatch, *points: Point, check: Callable[[object], str | None] | None = None) -> Registry[object]:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [p for p in points if group == "nasvit.things"])
    made: Registry[object] = Registry("thing", group="nasvit.things", check=check)
    made.register("own")(Registry)
    return made


def test_entry_points_are_loaded_when_the_registry_is_first_read_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point("swirl", 7)
    made = registry(monkeypatch, point)
    assert point.loads == []
    assert made.names() == ["own", "swirl"] and made["swirl"] == 7 and "swirl" in made
    assert point.loads == ["swirl"]
    assert made.origin("swirl") == "swirls 1.2" and made.origin("own") == "nasvit"


def test_a_registry_without_a_group_asks_for_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: pytest.fail("asked"))
    assert Registry("thing").names() == []


def test_what_does_not_load_is_an_error_with_package_and_cause_for_who_asks_and_a_warning_for_the_others(
        monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Point("swirl", ImportError("no module named 'foo'"))
    with pytest.warns(PackageWarning, match=r"thing 'swirl' of swirls 1\.2 cannot be had: .*ImportError: no module named 'foo'"):
        assert registry(monkeypatch, broken)["own"] is Registry
    made = registry(monkeypatch, broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match=r"swirls 1\.2.*ImportError"):
            made["swirl"]
    assert "swirl" not in made and made.names() == ["own"] and made.refused()["swirl"].package == "swirls 1.2"


@pytest.mark.parametrize("rivals", [(Point("own", 1),), (Point("twice", 1), Point("twice", 2, package="other"))])
def test_a_name_taken_twice_is_refused_with_both_named(monkeypatch: pytest.MonkeyPatch, rivals: tuple[Point, ...]) -> None:
    made = registry(monkeypatch, *rivals)
    name = rivals[0].name
    with pytest.raises(ConfigError, match="taken twice") as caught:
        made[name]
    assert "swirls 1.2" in str(caught.value) and ("nasvit and" if name == "own" else "other 1.2") in str(caught.value)
    assert name not in made.names()


@pytest.mark.parametrize("name", ["", "a b", "../x", "\x1b[31m", "9", "a" * 33, "a-b", "a.b", "[bold]"])
def test_a_hostile_name_of_a_package_is_refused_and_loads_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    point = Point(name, 1)
    with pytest.warns(PackageWarning, match="begins with a letter"):
        assert registry(monkeypatch, point).names() == ["own"]
    assert point.loads == []


@pytest.mark.parametrize(("check", "item"), [(subclass_of(Registry), 3), (subclass_of(Registry), dict), (function, 3)])
def test_an_object_of_the_wrong_kind_is_refused(monkeypatch: pytest.MonkeyPatch, check: Callable[[object], str | None],
                                                item: object) -> None:
    made = registry(monkeypatch, Point("swirl", item), check=check)
    with pytest.raises(ConfigError, match=r"is no subclass of nasvit\.registry\.Registry|is no function"):
        made["swirl"]


def test_a_class_that_lacks_methods_of_its_contract_is_refused_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    made = registry(monkeypatch, Point("swirl", Hashable), check=subclass_of(Hashable))
    with pytest.raises(ConfigError, match="lacks __hash__"):
        made["swirl"]


def test_an_object_may_read_the_registry_while_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Registry[object]] = []
    point = Point("swirl", lambda: made[0]["own"])
    made.append(registry(monkeypatch, point))
    assert made[0]["swirl"] is Registry


def test_an_unknown_name_is_refused_with_the_nearest_and_those_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'swirl'\? \(accepted: own, swirl\)"):
        registry(monkeypatch, Point("swirl", 1))["swril"]


def test_the_project_asks_for_each_group_in_one_registry() -> None:
    from nasvit.data import KINDS
    from nasvit.models.mixers import MIXERS
    from nasvit.proxies.zero_cost import ZERO_COST
    from nasvit.runtimes import RUNTIMES
    from nasvit.search.samplers import SAMPLERS

    groups = {r.group for r in (KINDS, MIXERS, ZERO_COST, RUNTIMES, SAMPLERS)}
    assert groups == {f"nasvit.{name}" for name in ("mixers", "proxies", "datasets", "runtimes", "samplers")} and "optuna" in sys.modules
