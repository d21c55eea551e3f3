"""What a search survives: each fault with the figure that shows it.

    python experiments/faults.py kills --engine processes --kills 100     # SIGKILL at random instants, resumed each time
    python experiments/faults.py records --times 1000                     # truncations and byte flips of records and checkpoints
    python experiments/faults.py disk                                     # no space left at every write of a search
    python experiments/faults.py metrics | jobs | clock | seeds

Every search is a real one (its own process where something is killed) with stand-in evaluations (experiments/stand_in.py).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import stand_in

from nasvit.errors import NasvitError, RunError
from nasvit.experiment import Experiment
from nasvit.results.front import pareto
from nasvit.results.record import TrialRecord, read, repair
from nasvit.search import run
from nasvit.search.progress import counts

HERE = Path(__file__).resolve().parent
NAMES = ["accuracy", "latency_ms"]


def experiment(**values: Any) -> Experiment:
    """A short search: random sampler, two rungs."""
    return Experiment(**{"space": str(HERE.parent / "search_spaces" / "hybrid_tiny.yaml"), "sampler": "random", "rungs": (2, 4),
                         "budget": 10, "workers": 2, **values})


def search(out: Path, evaluate: Callable[[Any], TrialRecord], *, resume: bool = False, **values: Any) -> dict[str, Any]:
    """The search in this process, on a given scale, so that nothing is calibrated."""
    return run(experiment(**values), out=out, resume=resume, evaluate=evaluate, reference_ms=1.0)


def begin(out: Path, *, resume: bool, **values: Any) -> subprocess.Popen[bytes]:
    """The search in a process group of its own."""
    code = (f"import sys; sys.path.insert(0, {str(HERE)!r})\nimport faults, stand_in\nfrom pathlib import Path\n"
            f"if __name__ == '__main__': faults.search(Path({str(out)!r}), stand_in.about_a_second, resume={resume}, **{values!r})")
    script = out.parent / "driver.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.DEVNULL,
                            stderr=(out.parent / "log").open("ab"), start_new_session=True)


def family(pid: int) -> list[int]:
    """Living descendants of a process."""
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                children = [int(p) for p in (task / "children").read_text().split()]
                found += children
                queue += children
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def kills(engine: str, *, times: int, seed: int, budget: int) -> list[tuple[str, Any]]:
    """SIGKILL at random instants: in a half of the sessions first of a worker, always of the driver; resumed until the budget is spent."""
    rng = random.Random(seed)
    figures = {"kills": 0, "finished trials lost": 0, "duplicates": 0, "processes left": 0, "runs that missed their budget": 0}
    first_s: list[float] = []
    while figures["kills"] < times:
        with tempfile.TemporaryDirectory() as folder:
            out, known = Path(folder) / "run", 0
            while figures["kills"] < times and known < budget:
                known = _session(out, engine, rng=rng, figures=figures, first_s=first_s, budget=budget)
            search(out, stand_in.nothing, resume=True, engine="inline", budget=budget)
            figures["runs that missed their budget"] += counts(read(out / "records.jsonl")).evaluated != budget
    usual = round(sorted(first_s)[len(first_s) // 2], 1) if first_s else None
    return [*figures.items(), ("seconds from resuming to the first new record, median (a trial takes 1)", usual)]


def _session(out: Path, engine: str, *, rng: random.Random, figures: dict[str, int], first_s: list[float], budget: int) -> int:
    """Begin or resume, kill, and hold what is on disk against what was; the number of trials evaluated so far."""
    before = read(out / "records.jsonl", mend=True)
    resume, begun = (out / "env.json").exists(), time.monotonic()
    process = begin(out, resume=resume, engine=engine, budget=budget)
    if _wait(process, out, more_than=len(before)) and resume:
        first_s.append(time.monotonic() - begun)
    time.sleep(rng.uniform(0, 3))
    children = family(process.pid)
    if children and rng.random() < 0.5:
        seen = len(read(out / "records.jsonl"))
        figures["kills"] += _kill(rng.choice(children))
        _wait(process, out, more_than=seen)  # the search goes on without it
        time.sleep(rng.uniform(0, 1))
        children = family(process.pid)
    figures["kills"] += _kill(process.pid)
    process.wait()
    figures["processes left"] += _left(children)
    after = read(out / "records.jsonl", mend=True)
    figures["finished trials lost"] += after[: len(before)] != before
    keys = [(r.trial, r.rung) for r in after]
    figures["duplicates"] += len(keys) - len(set(keys)) + len({r.trial for r in after}) - len({r.arch_id for r in after})
    return counts(after).evaluated


def _kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _wait(process: subprocess.Popen[bytes], out: Path, *, more_than: int, limit: float = 90) -> bool:
    """Whether so many records appear while the process lives."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        path = out / "records.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") > more_than:
            return True
        time.sleep(0.02)
    return False


def _left(pids: list[int]) -> int:
    end = time.monotonic() + 10
    while time.monotonic() < end and any(alive(p) for p in pids):
        time.sleep(0.05)
    return sum(alive(p) for p in pids)


def damage(*, times: int, seed: int) -> list[tuple[str, Any]]:
    """Truncations and byte flips of a record file: what reading, mending and repairing make of them."""
    rng, traces, bad_mend, unfound, bad_repair = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        search(out, stand_in.nothing, engine="inline", budget=20)
        path = out / "records.jsonl"
        whole, records = path.read_bytes(), read(path)
        for _ in range(times):
            cut = rng.randrange(len(whole))
            path.write_bytes(whole[:cut])
            try:
                bad_mend += read(path, mend=True) != records[: whole[:cut].count(b"\n")]
            except RunError:
                bad_mend += 1
            except Exception:
                traces += 1
        for _ in range(times):
            place = rng.randrange(len(whole))
            flipped = bytearray(whole)
            flipped[place] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            line = whole[:place].count(b"\n") + 1
            try:
                found = read(path)
                unfound += found != records  # a flip outside of the checked text must change nothing
            except RunError as error:
                unfound += f"line {line}" not in str(error) and place + 1 != len(whole)
            except Exception:
                traces += 1
            try:
                kept, _ = repair(path)
                bad_repair += kept < len(records) - 2 or any(r not in records for r in read(path))
            except Exception:
                traces += 1
            path.with_name("records.jsonl.damaged").unlink(missing_ok=True)
    return [("truncations", times), ("not resumed with all whole records", bad_mend), ("byte flips", times),
            ("not found, or with the wrong line", unfound), ("repairs that lost an intact record", bad_repair), ("tracebacks", traces)]


@contextlib.contextmanager
def full_disk(folder: Path, *, at: int) -> Iterator[list[int]]:
    """The at-th write under `folder` and all later ones meet a full disk. Yields [writes so far]."""
    calls = [0]
    real_write, real_open, real_replace = os.write, io.open, Path.replace

    def spend() -> None:
        calls[0] += 1
        if calls[0] >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def inside(path: Any) -> bool:
        return not isinstance(path, int) and str(path).startswith(str(folder))

    def write(descriptor: int, data: Any) -> int:
        if inside(os.readlink(f"/proc/self/fd/{descriptor}")):
            spend()
        return real_write(descriptor, data)

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if inside(path) and set(mode) & set("wax+"):
            spend()
        return real_open(path, mode, *args, **kwargs)

    def replace(self: Path, target: Any) -> Path:
        if inside(self):
            spend()
        return real_replace(self, target)

    with mock.patch("os.write", write), mock.patch("io.open", opened), mock.patch.object(Path, "replace", replace):
        yield calls


def disk() -> list[tuple[str, Any]]:
    """No space left at the n-th write of a search of 10 trials, for every n; then the space is freed and the run resumed."""
    unnamed, lost, unresumed, at, messages = 0, 0, 0, 0, set()
    while True:
        at += 1
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            with full_disk(Path(folder), at=at) as calls:
                try:
                    search(out, stand_in.nothing, engine="inline", budget=10)
                except NasvitError as error:
                    messages.add(str(error).rsplit(":", 1)[-1].strip())
                    unnamed += "space" not in str(error)
                except Exception:
                    unnamed += 1
            if calls[0] < at:
                break
            before = read(out / "records.jsonl", mend=True)
            try:
                search(out, stand_in.nothing, engine="inline", budget=10, resume=(out / "env.json").exists())
                after = read(out / "records.jsonl")
                lost += after[: len(before)] != before
                unresumed += counts(after).evaluated != 10
            except Exception:
                unresumed += 1
    return [("write calls tried", at - 1), ("not named as a full disk", unnamed), ("records lost", lost), ("runs not resumed", unresumed)]


def metrics() -> list[tuple[str, Any]]:
    """NaN, infinities, 1e308, negative numbers and text in each metric."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        summary = search(out, stand_in.odd, engine="processes", budget=20)
        records = read(out / "records.jsonl")
        tried = len(stand_in.METRICS) * len(stand_in.ODD)
        failed = [r for r in records if r.status == "failed"]
        on_front = [r for r in pareto(records, NAMES) if stand_in.SOUND <= r.trial < stand_in.SOUND + tried]
        return [("odd values", tried), ("failed with a reason", sum(bool(r.reason) for r in failed)), ("on the front", len(on_front)),
                ("the search ended by", summary["stopped_because"])]


def jobs() -> list[tuple[str, Any]]:
    """Trials that hang, take 3 GB or crash their process."""
    rows: list[tuple[str, Any]] = []
    for name, limits in (("hangs", {"job_minutes": 12 / 60}), ("swells", {"job_memory_gb": 1.0}), ("crashes", {})):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            summary = search(out, getattr(stand_in, name), engine="processes", budget=12, **limits)
            failed = [r for r in read(out / "records.jsonl") if r.status == "failed"]
            rows += [(f"{name}: evaluated, failed", f"{summary['evaluated']}, {len(failed)}"), ("  reason", str(failed[0].reason)[:110])]
    return rows


def clock() -> list[tuple[str, Any]]:
    """The wall clock jumps by an hour or a day between trials."""
    rng, real = random.Random(0), time.time
    with tempfile.TemporaryDirectory() as folder, mock.patch("time.time", lambda: real() + rng.choice((0, 3600, -3600, 86400, -86400))):
        out = Path(folder) / "run"
        summary = search(out, stand_in.nothing, engine="inline", budget=30)
        records = read(out / "records.jsonl")
        negative = sum(value < 0 for r in records for value in r.seconds.values())
    return [("evaluated", summary["evaluated"]), ("failed", summary["failed"]), ("negative durations", negative),
            ("wall_seconds", round(summary["wall_seconds"], 1))]


def seeds() -> list[tuple[str, Any]]:
    """The same seed, ten times."""
    found = set()
    for _ in range(10):
        with tempfile.TemporaryDirectory() as folder:
            search(Path(folder) / "run", stand_in.nothing, engine="inline", budget=10, seed=3)
            found.add(json.dumps([(r.arch_id, r.objectives["accuracy"]) for r in read(Path(folder) / "run" / "records.jsonl")]))
    return [("runs", 10), ("different outcomes", len(found) - 1)]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=["kills", "records", "disk", "metrics", "jobs", "clock", "seeds"])
    parser.add_argument("--engine", default="processes", choices=["inline", "processes", "ray"])
    parser.add_argument("--times", type=int, default=20, help="kills, or truncations and flips")
    parser.add_argument("--budget", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tables: dict[str, Callable[[], list[tuple[str, Any]]]] = {
        "kills": lambda: kills(given.engine, times=given.times, seed=given.seed, budget=given.budget),
        "records": lambda: damage(times=given.times, seed=given.seed), "disk": disk, "metrics": metrics, "jobs": jobs, "clock": clock,
        "seeds": seeds}
    for what, figure in tables[given.fault]():
        print(f"{what:<45} {figure}")


if __name__ == "__main__":
    main()
