"""The machine lock: while a latency is measured on a machine, no training step runs there (DESIGN section 5).

Two files locked by flock(2), so the kernel releases what a killed process held. `gate` is shared by training steps and
exclusive to a measurer. `turnstile` is passed by everyone on the way to the gate and kept by a measurer while it waits:
steps that overlap can then not keep it out for ever.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nasvit.errors import ConfigError, MeasurementError


def lock_path() -> Path:
    """$NASVIT_LOCK, else one file in /tmp, the same for every user. Not $TMPDIR, which may be each user's or each job's own."""
    return Path(os.environ.get("NASVIT_LOCK") or "/tmp/nasvit-machine.lock")


def _open(path: Path) -> int:
    with suppress(FileNotFoundError):
        # without O_CREAT and for reading only: a file of another user in a sticky folder may be refused otherwise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    with suppress(PermissionError):  # created by someone else in between: it is theirs to open up
        os.fchmod(descriptor, 0o666)  # the umask had its say above
    return descriptor


class _Held(threading.local):
    """The descriptors of one thread: flock belongs to an open file, so threads must not share one."""

    pid = -1
    path: Path | None = None
    turnstile = -1
    gate = -1
    mode: str | None = None  # "training", "measuring" or None


class MachineLock:
    """`with lock.training():` around one step, `with lock.measuring():` around one measurement. See the file's top."""

    def __init__(self) -> None:
        self._held = _Held()

    def _descriptors(self) -> _Held:
        held = self._held
        path = lock_path()
        if held.pid != os.getpid() or held.path != path:
            if held.pid != -1:  # after a fork the open files are the parent's too: closing ours releases nothing of it
                for descriptor in (held.turnstile, held.gate):
                    with suppress(OSError):
                        os.close(descriptor)
            try:
                held.turnstile, held.gate = _open(path.with_name(path.name + ".turnstile")), _open(path)
            except OSError as error:
                held.pid = -1
                raise ConfigError(f"cannot open the machine lock {path}: {error.strerror}; set NASVIT_LOCK to a file that every "
                                  "process of this machine may open") from None
            held.pid, held.path, held.mode = os.getpid(), path, None
        return held

    @contextmanager
    def training(self) -> Iterator[None]:
        """Shared: many training steps at once, none while something is measured. Nested calls do nothing."""
        with self._through("training", fcntl.LOCK_SH):
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Exclusive: alone among training steps and measurements of this machine. Nested calls do nothing.

        Raises MeasurementError inside a training step, which would wait for itself.
        """
        if self._descriptors().mode == "training":
            raise MeasurementError("a latency cannot be measured inside a training step; leave machine_lock.training() first")
        with self._through("measuring", fcntl.LOCK_EX):
            yield

    @contextmanager
    def _through(self, mode: str, operation: int) -> Iterator[None]:
        held = self._descriptors()
        if held.mode is not None:
            yield
            return
        fcntl.flock(held.turnstile, operation)
        try:
            fcntl.flock(held.gate, operation)
        finally:
            fcntl.flock(held.turnstile, fcntl.LOCK_UN)
        held.mode = mode
        try:
            yield
        finally:
            held.mode = None
            fcntl.flock(held.gate, fcntl.LOCK_UN)


machine_lock = MachineLock()
