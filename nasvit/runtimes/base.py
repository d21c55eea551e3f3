"""The contract of a runtime: a module goes in, something callable on a tensor comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from nasvit.registry import Registry


class Runtime(ABC):
    """Prepares a module for inference. Abstract; every runtime is final, keeps no state and has a name in RUNTIMES."""

    @abstractmethod
    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        """A callable that maps a tensor of the example's shape to what the module returns in eval mode.

        The module is in eval mode on the example's device; it may be used by the callable, and stays as it was.
        Raises MeasurementError where this runtime cannot run the module.
        """

    @abstractmethod
    def version(self) -> str:
        """What runs it, with its version; part of the device's fingerprint."""


RUNTIMES: Registry[type[Runtime]] = Registry("runtime")
