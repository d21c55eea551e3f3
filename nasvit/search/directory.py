"""The run directory as the search writes it: environment, drift between sessions, summary. Every file is renamed into place."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import nasvit
from nasvit.allowance import usable_cores, usable_mb
from nasvit.errors import ConfigError, RunError, StorageError
from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord
from nasvit.search.progress import counts
from nasvit.whole_file import read_json, whole

RECORDS = "records.jsonl"
MUST_AGREE = ("seed", "objectives", "limits", "rungs", "recipe", "choices", "criterion")
"""Settings of the experiment on which records depend, so that a resumed run must have the same; the last two only a pruning has."""


def write(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    try:
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """`write` as indented JSON."""
    write(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def earlier(out: Path, *, resume: bool) -> dict[str, Any]:
    """env.json of the run that is resumed, empty for a new one; raises RunError where it lacks what a session is held against."""
    path = out / "env.json"
    if not resume or not path.exists():
        return {}
    before = read_json(path)
    shapes: dict[str, Any] = {"fingerprint": str, "reference_ms": int | float, "device": dict, "data": dict, "space": dict}
    missing = [name for name, shape in shapes.items() if not isinstance(before.get(name), shape)]
    missing += [f"{part}.{name}" for part, name in (("data", "fingerprint"), ("data", "image_size"), ("space", "name"))
                if part not in missing and name not in before.get(part, {})]
    if missing:
        raise RunError(f"{path} is damaged: it does not say {', '.join(missing)}, without which its records could not be told from those "
                       "of another device or other data; restore it, or choose another --out")
    return before


@contextmanager
def claimed(out: Path, *, resume: bool | None = None) -> Iterator[None]:
    """Own the run directory (made if absent); raises RunError while another search works in it, and with `resume` (None: whatever is
    there) as `check_new_or_resumed`. A killed owner leaves nothing behind."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise RunError(f"cannot use {out} as a run directory: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another search is working in {out}; wait for it, or choose another --out") from None
        except OSError as error:
            raise RunError(f"{out} cannot be locked ({error.strerror}), so that a second search there would go unnoticed; choose an --out "
                           "on a file system with locks") from None
        try:
            if resume is not None:
                check_new_or_resumed(out, resume=resume)
            yield
        finally:
            if [path.name for path in out.iterdir()] == [".lock"]:  # nothing came of it: leave no trace
                (out / ".lock").unlink()
                out.rmdir()


def check_new_or_resumed(out: Path, *, resume: bool) -> None:
    """Raises ConfigError where a run would be overwritten, or where there is none to resume."""
    if not resume and os.path.exists(out / RECORDS):  # False, where Path's raises, for a folder that may not be looked into
        raise ConfigError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    if resume and not os.path.exists(out / "env.json"):
        raise ConfigError(f"there is no run in {out} to resume; give the --out of one that has begun, or leave --resume away to begin one "
                          "there")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"nasvit": nasvit.__version__, "python": platform.python_version()}
    return {**found, **{name: metadata.version(name) for name in ("torch", "optuna", "timm")}}


def _release(version: str, name: str) -> str:
    """What of a version matters to results: of Python's not the last number, which only mends."""
    return version.rpartition(".")[0] if name == "python" else version


def host() -> dict[str, Any]:
    """The machine of the driver: cpu, system, and the cores and memory (memory_gb) that the driver may use of it."""
    from nasvit.devices.machine import cpu_model  # torch stands behind it, and a command looks at a directory before it imports that

    return {"cpu": cpu_model(), "cores": usable_cores(), "memory_gb": round(usable_mb() / 1e3, 1), "system": platform.platform()}


def drift(before: Mapping[str, Any], now: Mapping[str, Any], *, old: Experiment, new: Experiment,
          spaces: tuple[str, str] = ("", "")) -> list[str]:
    """What differs between the sessions of a run, each in words; empty where records of both can stand in one file.

    before, now: what env.json said and would say. spaces: the texts of both, of a run that has a space.yaml.
    """
    found = []
    if spaces[0] != spaces[1] or before["data"]["image_size"] != now["data"]["image_size"]:
        was_size, is_size = ("x".join(map(str, env["data"]["image_size"])) for env in (before, now))
        found.append(f"space (was {before['space']['name']} at {was_size} px, is {now['space']['name']} at {is_size} px, or its text has "
                     "changed)")
    for what, a, b in (("data", before["data"]["fingerprint"], now["data"]["fingerprint"]),
                       ("device", before["fingerprint"], now["fingerprint"])):
        if a != b:
            found.append(f"{what} (fingerprint was {a}, is {b})")
    a, b = ({key: env["data"].get(key) for key in ("mean", "std")} for env in (before, now))
    if a != b:
        found.append(f"normalisation of the images (was {_in_words(a)}, is {_in_words(b)})")
    was, now_is = ({name: _release(str(env.get(name, "?")), name) for name in versions()} for env in (before, now))
    found += [f"version of {name} (was {was[name]}, is {now_is[name]})" for name in was if was[name] != now_is[name]]
    for name in MUST_AGREE:
        was_set, is_set = (getattr(experiment, name, None) for experiment in (old, new))
        if was_set != is_set:
            between = " ≤ " if name == "limits" else " "
            found.append(f"{name} (was {_in_words(was_set, between=between)}, is {_in_words(is_set, between=between)})")
    return found


def _in_words(value: Any, *, between: str = " ") -> str:
    """A setting as a sentence says it: `latency_ms ≤ 8, macs_g ≤ 0.3`; `none` where there is nothing. between: a name and its value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}{between}{_in_words(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value)) or "none"
    if isinstance(value, float):
        return f"{value:.12g}"  # two that differ read differently
    return "none" if value is None else str(value)


def check_objectives(records: Sequence[TrialRecord], names: Sequence[str]) -> None:
    """Raises RunError where complete records lack an objective: what a resumed search asks for, its earlier trials must have."""
    for record in records:
        missing = [name for name in names if record.status == "complete" and record.rung >= 1 and name not in record.objectives]
        if missing:
            raise RunError(f"trial {record.trial} was recorded without {', '.join(missing)}, so it cannot stand on one front with further "
                           "trials; choose the objectives that the run began with, or another --out")


def summary(records: Sequence[TrialRecord], experiment: Experiment, *, stopped_because: str, seconds: float, before: Mapping[str, Any],
            sessions: int) -> dict[str, Any]:
    """The figures of a run. train, measure (counting and timing) and wait (for the machine, while another worker
    measures) are sums over the workers; overhead_share is what the three leave of worker_seconds, each session's seconds times its workers.

    seconds: of this session. before: the summary of those before it.
    """
    done = counts(records)
    total = {key: sum(r.seconds.get(key, 0.0) for r in records) for key in ("train", "measure", "wait")}
    busy = sum(total.values())
    wall = float(before.get("wall_seconds", 0.0))
    workers = float(before.get("worker_seconds", wall * int(before.get("workers", 1)))) + seconds * experiment.workers
    share = 1 - busy / workers if workers > 0 else 0.0
    return {"budget": experiment.budget, "evaluated": done.evaluated, "rejected": done.rejected, "failed": done.failed,
            "stopped_because": stopped_because, "wall_seconds": wall + seconds, "worker_seconds": workers, "train_seconds": total["train"],
            "measure_seconds": total["measure"], "wait_seconds": total["wait"], "overhead_share": max(0.0, share),
            "workers": experiment.workers, "sampler": experiment.sampler, "engine": experiment.engine,
            "rungs": list(experiment.rungs or ()), "objectives": list(experiment.objectives), "limits": dict(experiment.limits),
            "sessions": sessions}
