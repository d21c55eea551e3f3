"""What a search costs beside its evaluations, and where it stops scaling; prints the tables of reports/published/scaling.md.

    python experiments/scaling.py simulated [--sampler random] [--workers 1000] [--trials 10000]
    python experiments/scaling.py overhead  [--trials 200]
    python experiments/scaling.py nodes     [--trials 24] [--seconds 1.0]

simulated: the real driver on workers that only a clock is made of. The cost of a trial is the CPU time of the driver's own thread, so that
what else the machine does counts nothing. overhead: 200 trials of an objective that does nothing, in the real engines. nodes: a real
cluster of two `ray start` processes on this machine, one worker on each, against one worker; the objective sleeps, because two workers that
compute would share this machine's cores.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from nasvit.engines import make_engine
from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord
from nasvit.search.evaluate import Job, Settings
from nasvit.search.loop import Loop
from nasvit.space import SearchSpace

ROOT = Path(__file__).resolve().parent.parent
RUNGS = (60, 120, 240)


def nothing(job: Job) -> TrialRecord:
    """A record at once, or after the seconds that the recipe says; its values follow from the architecture."""
    time.sleep(float(job.settings.recipe.get("sleep", 0.0)))
    return record_of(job)


def record_of(job: Job) -> TrialRecord:
    """As wide as a real one: a latency with its interval, versions, seconds, details."""
    size, luck = int(job.arch.id[:4], 16) / 65536, int(job.arch.id[4:8], 16) / 65536
    latency = {"median_ms": 0.5 + size, "ci_low_ms": 0.49 + size, "ci_high_ms": 0.51 + size, "runs": 40, "verdict": "steady"}
    return TrialRecord(trial=job.trial, status="complete", rung=job.rung, arch=job.arch.to_dict(), arch_id=job.arch.id, params=job.params,
                       objectives={"accuracy": 0.4 + 0.2 * size + 0.1 * luck + 0.05 * job.rung, "latency_ms": 0.5 + size, "macs_g": size,
                                   "params_m": size}, latency=latency, seconds={"train": 0.0, "measure": 0.0, "wait": 0.0, "total": 0.0},
                       versions=job.settings.versions, started=time.time(), details={"loss": luck, "val_loss": luck, "steps": 60})


class Clockwork:
    """Workers without substance: jobs last as long as a random number says, in a time of its own that only jumps.

    A thread ends the earliest job when all workers have one, or the driver has given out all it has.
    """

    def __init__(self, workers: int, *, seed: int) -> None:
        self.workers, self._rng, self._now, self._number = workers, random.Random(seed), 0.0, 0
        self._jobs: list[tuple[float, int, Future[TrialRecord], Callable[[Job], TrialRecord], Job]] = []
        self._changed, self._open = threading.Condition(), True
        self._thread = threading.Thread(target=self._turn, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[[Job], TrialRecord], /, *args: Job) -> Future[TrialRecord]:
        future: Future[TrialRecord] = Future()
        with self._changed:
            self._number += 1
            heapq.heappush(self._jobs, (self._now + self._rng.expovariate(1.0), self._number, future, fn, *args))
            self._changed.notify()
        return future

    def shutdown(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _turn(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._jobs) >= self.workers or not self._open, timeout=0.002)
                if not self._open:
                    return
                if not self._jobs:
                    continue
                self._now, _, future, fn, job = heapq.heappop(self._jobs)
            future.set_result(fn(job))


def loop_of(out: Path, *, engine: Any, sampler: str, trials: int, sleep: float = 0.0, evaluate: Any = nothing,
            space: SearchSpace | None = None, progress: Any = None) -> Loop:
    """A search of the shipped space without anything measured or trained."""
    experiment = Experiment(space="hybrid_tiny", sampler=sampler, budget=trials, rungs=RUNGS, engine="processes", workers=engine.workers)
    settings = Settings(run=str(out), data="digits", device="cpu", reference_ms=1.0, image_size=(16, 16), seed=0, rungs=RUNGS,
                        recipe={"sleep": sleep}, versions={"nasvit": "x", "torch": "x", "python": "x"})
    return Loop(experiment, settings=settings, space=space or SearchSpace.load("hybrid_tiny"), engine=engine, path=out / "records.jsonl",
                evaluate=evaluate, progress=progress)


def simulated(*, sampler: str, workers: int, trials: int) -> list[dict[str, Any]]:
    """Rows of (trials so far, driver's CPU ms a trial since the last row, memory a record)."""
    rows: list[dict[str, Any]] = []
    marks = sorted({min(trials, n) for n in (100, 300, 1000, 2000, 3000, 5000, 7000, 10_000, trials)})
    with tempfile.TemporaryDirectory() as folder:
        engine = Clockwork(workers, seed=0)
        loop = loop_of(Path(folder), engine=engine, sampler=sampler, trials=trials, evaluate=record_of, progress=lambda snapshot: None)
        state = {"cpu": time.thread_time(), "trials": 0, "records": 0, "rss": resident()}

        def settled(record: TrialRecord) -> None:
            done = loop.tally.counts.evaluated
            if done >= next((m for m in marks if m > state["trials"]), 1 << 60):
                row(done)

        def row(done: int) -> None:
            cpu, rss, number = time.thread_time(), resident(), len(loop.records)
            trials_since, records_since = max(1, done - state["trials"]), max(1, number - state["records"])
            rows.append({"trials": done, "records": number, "ms a trial": round(1e3 * (cpu - state["cpu"]) / trials_since, 2),
                         "kB a record": round((rss - state["rss"]) / 1e3 / records_since, 1), "resident MB": round(rss / 1e6)})
            print(rows[-1], file=sys.stderr, flush=True)
            state.update(cpu=cpu, trials=done, records=number, rss=rss)

        begun, loop.settled = time.thread_time(), settled
        loop.run()
        total = time.thread_time() - begun
        engine.shutdown()
        rows.append({"trials": "all", "records": len(loop.records), "ms a trial": round(1e3 * total / trials, 2),
                     "kB a record": "", "resident MB": round(resident() / 1e6)})
        size = (Path(folder) / "records.jsonl").stat().st_size / len(loop.records)
        print(f"{sampler}: {size / 1e3:.1f} kB of disk a record; {total:.1f} s of the driver", file=sys.stderr)
    return rows


def resident() -> float:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def timed(engine: Any, *, trials: int, sleep: float = 0.0, sampler: str = "random") -> float:
    """Seconds of a search from its first job to its last record; the workers are up before."""
    space = SearchSpace.load("hybrid_tiny")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "warm").mkdir()
        loop_of(Path(folder) / "warm", engine=engine, sampler=sampler, trials=2 * engine.workers, space=space).run()
        loop, begun = loop_of(Path(folder), engine=engine, sampler=sampler, trials=trials, sleep=sleep, space=space), time.monotonic()
        stopped = loop.run()
        wall = time.monotonic() - begun
    if stopped != "budget":
        raise SystemExit(f"the search did not reach its budget: {stopped}")
    return wall


def overhead(*, trials: int) -> list[dict[str, Any]]:
    """Rows of seconds a trial by engine and sampler, on an objective that does nothing; half of the trials rise to further rungs."""
    rows = []
    for name, sampler in (("inline", "random"), ("processes", "random"), ("processes", "tpe"), ("ray", "random")):
        with make_engine(name, workers=1 if name == "inline" else 2) as engine:
            seconds = timed(engine, trials=trials, sampler=sampler)
        rows.append({"engine": name, "sampler": sampler, "workers": engine.workers, "seconds a trial": round(seconds / trials, 4)})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


class Cluster:
    """A cluster of `ray start` processes on loopback, with a token of its own; ended by process id.

    environment: what its drivers need. python: of another environment with a nasvit of its own, where the nodes are not to have this one's.
    """

    def __init__(self, *, port: int = 26379, cpus: int = 1, dashboard: int | None = None, python: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nasvit-cluster-", dir="/tmp"))  # short: a socket's path has 100 characters at most
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.address, self.port, self.cpus, self.dashboard = f"127.0.0.1:{port}", port, cpus, dashboard
        self.python = python or sys.executable
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
                            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        if python is None:
            self.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.nodes: list[subprocess.Popen[bytes]] = []

    def add(self) -> subprocess.Popen[bytes]:
        """A further node; the first is the head."""
        board = (["--include-dashboard", "false"] if self.dashboard is None else
                 ["--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard)])
        place = ["--address", self.address] if self.nodes else ["--head", "--port", str(self.port), "--temp-dir", str(self.folder / "ray"),
                                                                *board]
        log = self.folder / f"{len(self.nodes)}.log"
        with log.open("wb") as out:
            self.nodes.append(subprocess.Popen(
                [self.python, "-m", "ray.scripts.scripts", "start", *place, "--num-cpus", str(self.cpus), "--object-store-memory",
                 str(100 * 2**20), "--node-ip-address", "127.0.0.1", "--block", "--disable-usage-stats", "--log-color", "false"],
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **self.environment}))
        wait_for_port(self.port, process=self.nodes[0], log=self.folder / "0.log")
        return self.nodes[-1]

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.nodes):
            end_group(process)
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_for_port(port: int, *, process: subprocess.Popen[bytes], log: Path, seconds: float = 90.0) -> None:
    """Until somebody listens; raises RuntimeError with the log where nobody does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"ray start failed: {log.read_text()[-2000:]}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a node: `ray start --block` ends its children when it is told to, and what is left of its group is killed."""
    for sign, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def nodes(*, trials: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of wall seconds with one worker and with one worker on each of two nodes."""
    rows: list[dict[str, Any]] = []
    with Cluster() as cluster:
        cluster.add()
        cluster.add()
        os.environ.update(cluster.environment)
        for workers in (1, 2):
            with make_engine("ray", workers=workers, address=cluster.address) as engine:
                wall = timed(engine, trials=trials, sleep=seconds)
                places = ", ".join(f"{n.name} x{n.workers}" for n in engine.nodes())
            rows.append({"workers": workers, "nodes": places, "wall s": round(wall, 2)})
            print(rows[-1], file=sys.stderr, flush=True)
    rows[1]["share of one worker's"] = round(rows[1]["wall s"] / rows[0]["wall s"], 3)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("simulated", "overhead", "nodes"))
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seconds", type=float, default=1.0)
    given = parser.parse_args()
    if given.what == "simulated":
        rows = simulated(sampler=given.sampler, workers=given.workers, trials=given.trials or 10_000)
    elif given.what == "overhead":
        rows = overhead(trials=given.trials or 200)
    else:
        rows = nodes(trials=given.trials or 24, seconds=given.seconds)
    print(table(rows))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    from experiments import scaling  # so that the functions have a name that workers can import

    scaling.main()
