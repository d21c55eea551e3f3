"""The contract of a runtime: a module goes in, something callable on a tensor comes out; or a file that runs elsewhere."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from nasvit.errors import ConfigError, MeasurementError, ResourceError
from nasvit.registry import Registry, subclass_of
from nasvit.runtimes import sessions
from nasvit.runtimes.sessions import Session, open_session

RUN_TIMEOUT_S = 600
EXHAUSTED = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), os.strerror(errno.ENOMEM), "can't allocate memory", "out of memory",
             "MemoryError")
"""What errors say where not the network but the machine is to blame, whichever library words them."""
MAKE_ROOM = "the machine is at its end: make room on the disk ($TMPDIR) and in memory, then do the same again"
GRAPH = 3
"""Raised where an export or a trace makes other operators, or a compiler other code, of the same network: latencies of before and after do
not compare. (3: compilers write the number of torch's threads into their code, and it is the device's.)"""


class Runtime(ABC):
    """Prepares a module for inference. Abstract; every runtime is final, keeps no state but its settings, and has a name in RUNTIMES.

    What is prepared or exported is the module as it is given, in eval mode: the caller (the device) decides on the form that is timed,
    `nasvit.models.deploy` where there is one, with nothing left at exactly zero.
    """

    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """The torch devices a module may lie on."""
    form: ClassVar[str] = f"deployed, graph {GRAPH}"
    """What of a network it runs, in the words of the fingerprint: a graph of it, unless it calls the modules."""
    accepted: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Its settings, each with the values it takes, the default first; an empty tuple takes any text."""

    def __init__(self, **settings: str) -> None:
        """Raises ConfigError for a setting or a value that the runtime does not know."""
        for key, value in settings.items():
            if key not in self.accepted:
                known = ", ".join(["threads", "noise", *self.accepted])
                raise ConfigError(f"runtime {self.name}: unknown setting {key!r} (accepted: {known})")
            if self.accepted[key] and value not in self.accepted[key]:
                raise ConfigError(f"runtime {self.name}: {key} must be one of {', '.join(self.accepted[key])}, not {value!r}")
        self.settings: dict[str, str] = dict(settings)

    def setting(self, key: str) -> str:
        """The value of a setting: what was given, else its default."""
        return self.settings.get(key, (self.accepted[key] or ("",))[0])

    @abstractmethod
    def version(self) -> str:
        """What runs it, with its version; part of the device's fingerprint."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot prepare or export here, and what would mend it; None if it can."""

    def check(self) -> None:
        """Raises ConfigError with what `missing` says. A runtime never gives way to another one."""
        reason = self.missing()
        if reason is not None:
            raise ConfigError(f"runtime {self.name} cannot be used here: {reason}")

    @abstractmethod
    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        """A callable that maps a tensor of the example's shape to what the module returns in eval mode.

        The module is in eval mode on the example's device; it may be used by the callable, and stays as it was.
        Raises ConfigError where the runtime is missing, MeasurementError where it cannot run the module.
        """


class FileRuntime(Runtime):
    """A runtime that runs a file, here or on another machine that has no torch: `export` here, a session there. Abstract."""

    suffix: ClassVar[str]
    """What the name of its files ends in."""

    @abstractmethod
    def write(self, module: nn.Module, example: Tensor, path: Path) -> None:
        """Write the module, frozen to the example's shape, to `path`; files beside it begin with the same name."""

    def export(self, module: nn.Module, example: Tensor, path: Path) -> Path:
        """Write the module for inputs of exactly the example's shape; returns the file, `path` with the runtime's suffix.

        Everything that belongs to it lies beside it. Raises ConfigError where the runtime is missing, MeasurementError where it
        cannot take the module.
        """
        self.check()
        target = path if path.suffix == self.suffix else path.with_name(path.name + self.suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        if module.training:
            raise MeasurementError(f"{type(module).__name__} is in train mode; put it into eval mode before it is exported to {self.name}")
        try:
            with torch.no_grad():
                self.write(module, example, target)
        except (ConfigError, MeasurementError):
            raise
        except Exception as error:  # an exporter may fail with any exception; the user must know which network and runtime it was
            raise failed(error, what=f"{self.name} cannot take {type(module).__name__} for an input of shape "
                                     f"{tuple(example.shape)}") from error
        return target

    @property
    def interpreter(self) -> str:
        """The Python that has the runtime: this process's own, or that of another environment."""
        return sys.executable

    def open(self, path: Path, *, threads: int) -> Session:
        """A session on an exported file in this process."""
        return open_session(self.name, str(path), threads=threads, settings=self.settings)

    def run_file(self, path: Path, inputs: Sequence[np.ndarray[Any, Any]], *, threads: int) -> list[list[np.ndarray[Any, Any]]]:
        """The outputs of an exported file for each input, from a process of its own: a runtime that crashes takes nothing along.

        Raises MeasurementError with the last words of a process that failed.
        """
        with tempfile.TemporaryDirectory(prefix="nasvit-run-") as folder:
            given, made = Path(folder) / "in.npz", Path(folder) / "out.npz"
            named: dict[str, Any] = {str(index): array for index, array in enumerate(inputs)}
            np.savez(given, **named)
            request = {"runtime": self.name, "path": str(path), "threads": threads, "settings": self.settings, "inputs": str(given),
                       "outputs": str(made)}
            in_environment(self.interpreter, str(Path(sessions.__file__)), json.dumps(request), what=f"{self.name} on {path.name}")
            with np.load(made) as found:
                count = len(found.files) // len(inputs)
                return [[found[f"{i}-{j}"] for j in range(count)] for i in range(len(inputs))]

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        with tempfile.TemporaryDirectory(prefix="nasvit-runtime-") as folder:
            session = self.open(self.export(module, example, Path(folder) / "model"), threads=torch.get_num_threads())
            session.run([example.detach().numpy()])  # a runtime may read its file as late as this

        def call(image: Tensor) -> Tensor | tuple[Tensor, ...]:
            outputs = tuple(torch.from_numpy(array) for array in session.run([image.detach().numpy()]))
            return outputs[0] if len(outputs) == 1 else outputs

        return call


def in_environment(interpreter: str, *arguments: str, what: str) -> None:
    """Run a script of this package with an interpreter. Raises MeasurementError, saying what failed, with its last words."""
    try:  # -I: the script's folder has modules called as the runtimes are, and another environment has paths of its own
        done = subprocess.run([interpreter, "-I", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, timeout=RUN_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasurementError(f"{what}: {error}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace")
        text = f"{what}: the process ended with {done.returncode}: {(said.strip().splitlines()[-1:] or ['it said nothing'])[0][:400]}"
        if done.returncode == -signal.SIGKILL or any(words in said for words in EXHAUSTED):  # Linux kills where memory is at its end
            raise ResourceError(f"{text}; {MAKE_ROOM}")
        raise MeasurementError(text)


def lacking(*packages: str, extra: str) -> str | None:
    """What to install where one of these packages cannot be imported, else None."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed; pip install 'nasvit[{extra}]'" if absent else None


def package_version(package: str) -> str:
    """`name version`, or `name absent`."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} absent"


def failed(error: BaseException, *, what: str) -> MeasurementError:
    """The error to raise where a compiler or an exporter raised one: a ResourceError where the machine, not the network, is to blame."""
    text = f"{what}: {type(error).__name__}: {last_words(error)}"
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, MemoryError) or any(words in str(reason) for words in EXHAUSTED):
            return ResourceError(f"{text}; {MAKE_ROOM}")
        reason = reason.__cause__ or reason.__context__
    return MeasurementError(text)


def last_words(error: BaseException, *, most: int = 400) -> str:
    """The end of an error's message, where compilers and exporters say what it was, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " | ".join(lines[:1] + lines[1:][-3:])[:most] or "no message"


def _in_process(item: Any) -> str | None:
    """A runtime of another package runs in this process: how a file is opened on a target travels there in nasvit's own agent."""
    if isinstance(item, type) and issubclass(item, FileRuntime):
        return "is a FileRuntime; a runtime of another package runs in this process: derive it from nasvit.runtimes.Runtime"
    return subclass_of(Runtime)(item)


RUNTIMES: Registry[type[Runtime]] = Registry("runtime", group="nasvit.runtimes", check=_in_process)


def make_runtime(name: str, **settings: Any) -> Runtime:
    """The runtime of this name with these settings. Raises ConfigError for an unknown name, setting or value."""
    return RUNTIMES[name](**{key: str(value) for key, value in settings.items()})
