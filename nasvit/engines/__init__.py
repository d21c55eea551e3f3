"""Engines: where evaluations run. A new one is one file and one line here."""

from nasvit.engines import inline, processes, ray  # noqa: F401 (importing registers)
from nasvit.engines.base import ENGINES, Engine, JobLimits, Node, NoRoomError, OverLimitError, WorkerError, make_engine, resident_mb

__all__ = ["ENGINES", "Engine", "JobLimits", "NoRoomError", "Node", "OverLimitError", "WorkerError", "make_engine", "resident_mb"]
