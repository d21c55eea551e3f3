"""Files that are there whole or not at all, whatever ends the writing, and mappings read from them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nasvit.errors import RunError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. When the block ends well it is synced and takes the place of `path`; else it is gone.

    Folders above are made. Raises OSError: what a file that cannot be written means is the caller's to say.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of a run, empty where there is no file; raises RunError where it cannot be read or is damaged."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise RunError(f"{path} is damaged: it must hold a mapping")
    return data
