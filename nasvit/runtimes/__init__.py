"""Runtimes: what executes a network. A new one is one file and one line here."""

from nasvit.runtimes import eager  # noqa: F401 (importing registers)
from nasvit.runtimes.base import RUNTIMES, Runtime

__all__ = ["RUNTIMES", "Runtime"]
