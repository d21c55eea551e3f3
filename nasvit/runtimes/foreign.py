"""Runtimes whose packages demand other versions than nasvit's: they live in an environment of their own."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nasvit.runtimes import converters
from nasvit.runtimes.base import FileRuntime, in_environment


class ForeignRuntime(FileRuntime):
    """A file runtime in another environment. Abstract: one that is final says its packages.

    The setting `python` names that environment's interpreter, else the variable NASVIT_<NAME>_PYTHON does, else it is this process's.
    The environment needs torch of nasvit's version beside the runtime.
    """

    accepted: ClassVar = {"python": ()}
    packages: ClassVar[tuple[str, ...]]
    """What the environment must have, the first one's version being the runtime's."""

    @property
    @abstractmethod
    def install(self) -> str:
        """The command that makes an environment for it."""

    @property
    def variable(self) -> str:
        """The environment variable that names the interpreter."""
        return f"NASVIT_{self.name.upper()}_PYTHON"

    @property
    def interpreter(self) -> str:
        return self.setting("python") or os.environ.get(self.variable) or sys.executable

    def write(self, module: nn.Module, example: Tensor, path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="nasvit-convert-") as folder:
            program = Path(folder) / "program.pt2"
            torch.export.save(torch.export.export(_plain(module), (example,)), program)
            in_environment(self.interpreter, str(Path(converters.__file__)), self.name, str(program), str(path),
                           what=f"{self.name} cannot take {type(module).__name__} for an input of shape {tuple(example.shape)}")

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        if self.interpreter == sys.executable:
            return super().prepare(module, example)
        folder = tempfile.TemporaryDirectory(prefix="nasvit-runtime-")
        path = self.export(module, example, Path(folder.name) / "model")

        def call(image: Tensor, _keep: object = folder) -> Tensor | tuple[Tensor, ...]:
            (arrays,) = self.run_file(path, [image.detach().numpy()], threads=torch.get_num_threads())
            outputs = tuple(torch.from_numpy(array) for array in arrays)
            return outputs[0] if len(outputs) == 1 else outputs

        return call

    def version(self) -> str:
        found = _versions(self.interpreter, self.packages)
        return f"{self.packages[0]} {found[0]}" if found else f"{self.packages[0]} absent"

    def missing(self) -> str | None:
        if _versions(self.interpreter, self.packages) is not None:
            return None
        return (f"{self.interpreter} has not all of {', '.join(self.packages)}; make an environment with `{self.install}` and name its "
                f"interpreter by ?python=PATH or {self.variable}")


def _plain(module: nn.Module) -> nn.Module:
    """A copy with every tensor laid out as its shape says: of convolutions whose weights are channels-last ExecuTorch 1.5 refuses to take
    any, and LiteRT's converter computes something else (Slide-Swin: 6e-3 of the largest logit)."""
    copied = copy.deepcopy(module)
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.contiguous()
    return copied


@lru_cache
def _versions(interpreter: str, packages: tuple[str, ...]) -> tuple[str, ...] | None:
    """The versions of these packages in another environment, None where one is absent, or the interpreter itself."""
    ask = "import sys; from importlib.metadata import version; print(*[version(p) for p in sys.argv[1:]])"
    try:
        done = subprocess.run([interpreter, "-c", ask, *packages], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return tuple(done.stdout.split()) if done.returncode == 0 else None
