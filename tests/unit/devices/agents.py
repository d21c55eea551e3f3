"""A runtime that runs from a file without any library, and agents that misbehave: the real agent with a word changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from torch import Tensor, nn

from nasvit.devices import bundle as bundles
from nasvit.devices.remote import AgentDevice
from nasvit.devices.spec import parse_spec
from nasvit.devices.transport import Link
from nasvit.runtimes import FileRuntime

SESSIONS = '''
import json, os, signal, time
import numpy as np


class Session:
    version = "toy 1.0"

    def __init__(self, path):
        with open(path) as file:
            self.behaviour = json.load(file)["behaviour"]
        self.held = []

    def run(self, arrays):
        if self.behaviour == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.behaviour == "hang":
            time.sleep(3600)
        if self.behaviour == "raise":
            raise RuntimeError("no kernel for sort")
        if self.behaviour == "print":
            os.write(1, b"a runtime that talks\\n")
        if self.behaviour == "large" and not self.held:
            self.held.append(np.ones(8_000_000))
        if self.behaviour == "tires" and self.held:
            time.sleep(3600)
        if self.behaviour == "tires":
            self.held.append(1)
        end = time.perf_counter() + {"slow": 0.0008, "long": 0.2}.get(self.behaviour, 0.0004)
        while time.perf_counter() < end:
            pass
        return [2 * arrays[0]]


def open_session(runtime, path, *, threads, settings):
    assert runtime == "toy"
    return Session(path)
'''


class Toy(FileRuntime):
    """Exports a module's `behaviour` and doubles its input."""

    name = "toy"
    suffix = ".json"

    def write(self, module: nn.Module, example: Tensor, path: Path) -> None:
        path.write_text(json.dumps({"behaviour": getattr(module, "behaviour", "well")}))

    def version(self) -> str:
        return "toy 1.0"

    def missing(self) -> str | None:
        return None


class Net(nn.Module):
    """A module that behaves so once it is exported."""

    def __init__(self, behaviour: str = "well") -> None:
        super().__init__()
        self.behaviour = behaviour

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class ToyPlace(AgentDevice):
    """An agent in a process of this machine, spoken to as if it were far away."""

    alone_on_host = False
    argv: list[str]
    started = 0

    def start(self) -> Link:
        self.started += 1
        return Link(self.argv, name=self.name)


def write_agent(folder: Path, monkeypatch: pytest.MonkeyPatch, *, change: tuple[str, str, str] | None = None) -> Path:
    """The agent's file with the toy runtime in it, and one text of one module changed."""
    real = bundles.source

    def source(name: str) -> bytes:
        text = SESSIONS if name.endswith("sessions.py") else real(name).decode()
        if change is not None and name == change[0]:
            assert text.count(change[1]) == 1, change[1]
            text = text.replace(change[1], change[2])
        return text.encode()

    monkeypatch.setattr(bundles, "source", source)
    bundles.bundle.cache_clear()
    try:
        return bundles.write_bundle(folder)
    finally:
        monkeypatch.setattr(bundles, "source", real)
        bundles.bundle.cache_clear()


def toy_place(folder: Path, monkeypatch: pytest.MonkeyPatch, *, change: tuple[str, str, str] | None = None) -> ToyPlace:
    """A device behind such an agent."""
    device = ToyPlace(spec=parse_spec("ssh://toy/toy"), runtime=Toy(), threads=1, reference_ms=1.0)
    device.argv = [sys.executable, str(write_agent(folder, monkeypatch, change=change))]
    return device
