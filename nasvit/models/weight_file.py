"""Weights on disk: safetensors, written whole or not at all, with a checksum that finds every flipped bit. Never a pickle.

The header's metadata holds `crc32` (8 hex): the CRC-32 of the header without that entry, as canonical JSON, and then of all data. It
stands in the metadata, so every reader of safetensors reads the file as it is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nasvit.errors import CheckpointError, StorageError
from nasvit.whole_file import whole

CRC, UNKNOWN = "crc32", "00000000"
MAX_HEADER = 100_000_000
"""What safetensors itself accepts, in bytes."""
CHUNK = 1 << 20


def write_weights(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """The file in its place once it is whole and synced. Raises StorageError naming path and cause."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        with whole(path) as temporary:
            save_file(plain, temporary, metadata={**(metadata or {}), CRC: UNKNOWN})
            _seal(temporary)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; free some space and resume the run") from None
    except SafetensorError as error:  # its own words for what the system said
        raise StorageError(f"cannot write {path}: {error}; free some space and resume the run") from None


def read_weights(path: Path, *, sealed: bool = True) -> dict[str, Tensor]:
    """The tensors by name. Raises CheckpointError for a file that is absent, none of safetensors', or not as it was written.

    sealed: refuse a file without a checksum, which nasvit did not write.
    """
    verify(path, sealed=sealed)
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from None


def verify(path: Path, *, sealed: bool = True) -> None:
    """Hold a file against its checksum; raises CheckpointError naming the file."""
    try:
        with path.open("rb") as file:
            header = _header(file)
            metadata = header.get("__metadata__")
            written = metadata.get(CRC) if isinstance(metadata, dict) else None
            if written is None:
                if sealed:
                    raise _damaged(path, "it has no checksum")
                return
            found = _checksum(header, file)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if written != found:
        raise _damaged(path, "the checksum does not match")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as weights: {why[:300]}; remove it, and make the weights again")


def _header(file: IO[bytes]) -> dict[str, Any]:
    """The JSON header; the file then stands at the first byte of the data. Raises ValueError."""
    size = int.from_bytes(file.read(8), "little")
    if not 0 < size <= MAX_HEADER:
        raise ValueError("the header is damaged")
    header = json.loads(file.read(size).decode())
    if not isinstance(header, dict):
        raise ValueError("the header is damaged")
    return header


def _checksum(header: dict[str, Any], data: IO[bytes]) -> str:
    others = {name: value for name, value in header["__metadata__"].items() if name != CRC}
    crc = zlib.crc32(json.dumps({**header, "__metadata__": others}, sort_keys=True, separators=(",", ":")).encode())
    while chunk := data.read(CHUNK):
        crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def _seal(path: Path) -> None:
    """Put the checksum in its place."""
    with path.open("r+b") as file:
        checksum = _checksum(_header(file), file)
        file.seek(8)
        place = 8 + file.read(MAX_HEADER).index(f'"{CRC}":"{UNKNOWN}"'.encode()) + len(CRC) + 4
        file.seek(place)
        file.write(checksum.encode())
