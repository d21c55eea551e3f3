"""The agent as one file: a zip of the few modules it needs, which any Python from 3.8 on runs. The same bytes every time."""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import lru_cache
from pathlib import Path

import nasvit
from nasvit.whole_file import whole

MODULES = ("nasvit/errors.py", "nasvit/devices/agent.py", "nasvit/devices/timing.py", "nasvit/devices/machine.py",
           "nasvit/devices/lock.py", "nasvit/runtimes/sessions.py")
MAIN = "from nasvit.devices.agent import main\n\nmain()\n"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


@lru_cache(maxsize=1)
def bundle() -> bytes:
    """The zip. The packages' own __init__ files stay out: they would ask for torch."""
    files = {name: source(name) for name in MODULES}
    packages = {f"{folder}/__init__.py": b"" for name in MODULES for folder in _folders(name)}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted({**packages, **files, "__main__.py": MAIN.encode()}.items()):
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def source(name: str) -> bytes:
    """The text of a module of this package."""
    return (Path(nasvit.__file__).resolve().parent.parent / name).read_bytes()


def _folders(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def bundle_id() -> str:
    """12 hex digits of the bundle's SHA-256."""
    return hashlib.sha256(bundle()).hexdigest()[:12]


def write_bundle(folder: Path) -> Path:
    """The bundle as a file in `folder`, written whole or not at all."""
    path = folder / f"agent-{bundle_id()}.pyz"
    if not path.exists():
        with whole(path) as temporary:
            temporary.write_bytes(bundle())
    return path
