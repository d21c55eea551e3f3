"""TrialRecord: one evaluation, one line. The records are the truth of a run; everything else is computed from them.

File format: one JSON object a line, `{"crc": "xxxxxxxx", "record": {...}}`, where crc is CRC-32 of the record's
canonical JSON. A line is appended whole and fsynced. On opening a torn last line is dropped (a power cut); any other
damaged line is a RunError naming file and line.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any, Literal, NoReturn

from nasvit.arch import Arch
from nasvit.errors import NasvitError, RunError, StorageError
from nasvit.results.objectives import fault
from nasvit.whole_file import whole
from nasvit.yaml_file import writable

Status = Literal["complete", "rejected", "failed"]
STATUSES = ("complete", "rejected", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One evaluation of one network at one rung. A trial promoted to rung 2 has two records with one `trial` number.

    trial: 0-based number in the run. rung: 0 nothing was trained, 1 the cheapest training, and so on.
    status: complete, rejected (a limit was passed; before training), failed (with the reason).
    arch: the full Arch as a dict, or None for a named baseline, which has a `label` such as "timm:levit_128s".
    objectives: name with unit to value, e.g. {"accuracy": 0.97, "latency_ms": 1.2, "macs_g": 0.004, "params_m": 0.1}.
    latency: LatencyStats as a dict, or None. params: what the sampler was asked (path to value).
    seconds: {"train": .., "measure": .., "wait": .., "total": ..}; measuring is counting and timing, waiting is for the machine lock.
    details: losses, epochs, anything worth keeping.
    started: seconds since the epoch. checkpoint: path relative to the run directory.
    """

    trial: int
    status: Status
    rung: int
    arch: dict[str, Any] | None
    arch_id: str
    label: str | None = None
    objectives: dict[str, float] = field(default_factory=dict)
    latency: dict[str, Any] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    seed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    started: float = 0.0
    checkpoint: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise RunError(f"record status must be one of {', '.join(STATUSES)}, not {self.status!r}")
        for name, value in self.objectives.items():
            wrong = fault(name, value)
            if wrong is not None:
                raise RunError(f"trial {self.trial}: {wrong}")

    @property
    def has_arch(self) -> bool:
        """Whether the network is described by an Arch: not for a named baseline, nor for a pruned model that a Plan describes."""
        return self.arch is not None and "source" not in self.arch

    def _repr_html_(self) -> str:
        """In a notebook: which it is and what it scored; `.network()` draws itself."""
        status = f"{self.status} at rung {self.rung}" + (f": {self.reason}" if self.reason else "")
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.objectives.items())
        return f"<div><b>trial {self.trial}, {escape(self.label or self.arch_id)}</b><br>{escape(status)}<br>{escape(figures)}</div>"

    def network(self) -> Arch:
        """The Arch of the record; raises RunError where it holds none (see `has_arch`)."""
        if self.arch is None or not self.has_arch:
            what = ("is a named baseline and has no Arch; take a trial of the search" if self.arch is None else
                    "is a pruned model, and its record holds a Plan; measure, export and show take that, and where a network of an Arch "
                    "was pruned nasvit.load(RUN).arch('trial:N') gives the Arch")
            raise RunError(f"{self.label or self.arch_id} {what}")
        return Arch.from_dict(self.arch)


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_line(record: TrialRecord) -> str:
    """One line of a record file, with its newline."""
    try:
        text = _canonical(asdict(record))
    except ValueError as error:  # a number that is not finite
        raise RunError(f"trial {record.trial} cannot be written: {error}") from None
    return f'{{"crc":"{zlib.crc32(text.encode()):08x}","record":{text}}}\n'


def from_line(line: str) -> TrialRecord:
    """The inverse of `to_line`; raises RunError on anything damaged."""
    try:
        outer = json.loads(line, parse_constant=_no_constant)
        raw = outer["record"]
        crc = outer["crc"]
        text = _canonical(raw)  # refuses infinity, which 1e999 is
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"not a record ({type(error).__name__})") from None
    if not isinstance(raw, dict) or f"{zlib.crc32(text.encode()):08x}" != crc:
        raise RunError("the checksum does not match")
    known = {f.name for f in fields(TrialRecord)}
    if set(raw) - known:
        raise RunError(f"unknown fields {sorted(set(raw) - known)}: written by a newer nasvit?")
    missing = [name for name in ("trial", "status", "rung", "arch", "arch_id") if name not in raw]
    wrong = [f"{name} {str(value)[:60]!r}" for name, value in raw.items() if not _KINDS[name](value)]
    if missing or wrong:
        raise RunError(f"not a record (missing: {', '.join(missing) or 'nothing'}; not possible: {', '.join(wrong) or 'nothing'})")
    return TrialRecord(**raw)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is below nothing


def _of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


def _text(value: Any) -> bool:
    return isinstance(value, str) and writable(value)


def _plain(value: Any) -> bool:
    return isinstance(value, bool) or _finite(value) or _text(value)


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _latency(value: Any) -> bool:
    return isinstance(value, dict) and all(_finite(v) if name.endswith("_ms") else v is None or _plain(v) for name, v in value.items())


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")
_CHECKPOINT = re.compile(r"checkpoints/[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_KINDS: dict[str, Callable[[Any], bool]] = {
    "trial": lambda v: _whole(v) and v >= 0, "status": lambda v: v in STATUSES, "rung": lambda v: _whole(v) and 0 <= v < 1000,
    "arch": _or_none(lambda v: isinstance(v, dict)), "arch_id": lambda v: isinstance(v, str) and _ID.fullmatch(v) is not None,
    "label": _or_none(_text), "objectives": _of(_finite), "latency": _or_none(_latency), "params": _of(_plain),
    "reason": _or_none(_text), "seed": _whole,
    "seconds": _of(_finite), "fingerprint": _text, "versions": _of(_text), "started": _finite,
    "checkpoint": _or_none(lambda v: isinstance(v, str) and _CHECKPOINT.fullmatch(v) is not None),
    "details": lambda v: isinstance(v, dict)}
"""What each field may hold in a file: names that become parts of paths by an allow-list, everything else by its type."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def append(path: Path, record: TrialRecord) -> None:
    """Append one line and fsync it: when this returns, the record survives a power cut."""
    data = to_line(record).encode()
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, data)
            if written != len(data):  # a full disk writes part of a line: take it back, so that the file stays whole
                raise OSError(28, "No space left on device")
            os.fsync(descriptor)
            if new:
                _sync_folder(path.parent)
        except OSError as error:
            os.ftruncate(descriptor, before)
            raise StorageError(f"cannot append to {path}: {error.strerror}; free some space and resume the run") from None
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """A new file's name survives a power cut only with its folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, *, mend: bool = False) -> list[TrialRecord]:
    """All records of a file, oldest first; an absent file has none.

    A torn last line (no newline at its end) is left out, and cut off the file if `mend`. Any other damage raises
    RunError naming file and line.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data) and mend:
        with path.open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
    records = []
    for number, raw in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            records.append(from_line(raw.decode()))
        except (NasvitError, UnicodeDecodeError) as error:
            raise RunError(f"{path}, line {number}: {error}; `nasvit repair` keeps all intact records") from None
    return records


def repair(path: Path) -> tuple[int, list[int]]:
    """Keep the intact lines of a damaged record file: (records kept, line numbers that were damaged, a torn last line included).

    The file is replaced whole; the damaged lines go, as they are, behind those already in `<name>.damaged` beside it. A file without
    damage is not touched. Raises RunError where there is no file, or nothing can be written.
    """
    if not path.is_file():
        raise RunError(f"there are no records at {path} to repair")
    good, bad = [], {}
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):  # not splitlines, which cuts at other characters too
        try:
            from_line(raw.decode())
            good.append(raw + b"\n")
        except (NasvitError, UnicodeDecodeError):
            bad[number] = raw + b"\n"
    if bad and bad[max(bad)] == b"\n" and max(bad) == len(good) + len(bad):
        del bad[max(bad)]  # nothing stands behind the last newline
    if bad:
        try:
            with path.with_name(path.name + ".damaged").open("ab") as aside:
                aside.writelines(bad.values())
                os.fsync(aside.fileno())
            with whole(path) as temporary:
                temporary.write_bytes(b"".join(good))
            _sync_folder(path.parent)
        except OSError as error:
            raise RunError(f"cannot repair {path}: {error.strerror}") from None
    return len(good), list(bad)


def latest(records: Iterable[TrialRecord]) -> dict[int, TrialRecord]:
    """Trial number to its record of the highest rung (the last one written, where two have the same).

    A promotion that failed does not undo the rung below: a trial counts as failed only if nothing of it is complete.
    """
    best: dict[int, TrialRecord] = {}
    for record in records:
        known = best.get(record.trial)
        if known is None or (record.status == "complete", record.rung) >= (known.status == "complete", known.rung):
            best[record.trial] = record
    return best
