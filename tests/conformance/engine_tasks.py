"""Functions of a module, as engines run them."""

from __future__ import annotations

import os
import signal
import sys
import time

from nasvit.engines import parcels
from nasvit.errors import TrainingError


def add(a: int, b: int) -> int:
    return a + b


def knows_after(seconds: float, module: str) -> bool:
    time.sleep(seconds)
    return module in sys.modules


def parcel(name: str) -> object:
    return parcels.fetched(name)


def sleep_then(seconds: float, value: object) -> object:
    time.sleep(seconds)
    return value


def refuse(text: str) -> None:
    raise TrainingError(text)


class Awkward(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


def raise_awkward() -> None:
    raise Awkward(code=7)


def give_lambda() -> object:
    return lambda: 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pid() -> int:
    return os.getpid()


def touch(path: str) -> None:
    with open(path, "w") as file:
        file.write("done")


def threads() -> tuple[str | None, int]:
    import torch

    return os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()


def swell(mb: int) -> None:
    block = bytearray(mb * 10**6)
    block[::4096] = b"x" * len(block[::4096])  # touched, so that it is resident
    time.sleep(60)
