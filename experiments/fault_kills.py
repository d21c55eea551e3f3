"""SIGKILL at random instants of a search whose trials last about a second: of its driver, of a worker, of a node of its cluster.

    python experiments/fault_kills.py --engine processes --times 100
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import stand_in
from fault_search import Row, begin, search

from nasvit.results.record import read
from nasvit.search.progress import counts

VICTIMS = {"inline": ("driver",), "processes": ("driver", "worker"), "ray": ("driver", "worker", "node")}
NODES = 2
MOST = 5
"""Fewer workers and nodes than this are killed before the driver is, in one session."""
GONE_SECONDS = 15
"""After so long nothing of a killed search may run."""


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


def command(pid: int) -> str:
    """The command line of a process, empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def kill(*pids: int) -> bool:
    """SIGKILL; whether the first was still there."""
    there = [False]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            there.append(True)
    return any(there)


class Cluster:
    """A real cluster on this machine: a head without workers and `NODES` nodes of one core, each its own `ray start`, with a token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(token_hex(32))
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # where the workers find stand_in
        self.environment = {"PYTHONPATH": paths, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
                            "RAY_USAGE_STATS_ENABLED": "0"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.head = self._start("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")
        self._answers(port)
        self.nodes = [self._node() for _ in range(NODES)]

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        ray = str(Path(sys.executable).with_name("ray"))
        with (self.folder / "cluster.log").open("ab") as log:
            return subprocess.Popen([ray, "start", "--block", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000", *arguments],
                                    env={**os.environ, **self.environment}, stdout=log, stderr=log, start_new_session=True)

    def _node(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def _answers(self, port: int) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            time.sleep(0.2)
        raise TimeoutError((self.folder / "cluster.log").read_text()[-2000:])

    def workers(self) -> list[int]:
        """Processes that work for a search now."""
        titles = {pid: command(pid) for node in self.nodes for pid in family(node.pid)}
        return [pid for pid, title in titles.items() if title.startswith("ray::") and "IDLE" not in title and "Agent" not in title]

    def lose(self, index: int) -> bool:
        """SIGKILL of everything on a node, as when its power goes."""
        node = self.nodes[index]
        return kill(node.pid, *family(node.pid))

    def mend(self) -> None:
        """A new node in the place of each that is gone."""
        for index, node in enumerate(self.nodes):
            if node.poll() is not None:
                self.nodes[index] = self._node()

    def close(self) -> None:
        for process in (*self.nodes, self.head):
            kill(process.pid, *family(process.pid))
            process.wait()


@contextlib.contextmanager
def cluster_for(engine: str) -> Iterator[Cluster | None]:
    """A cluster where the engine needs one."""
    if engine != "ray":
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()


@dataclass
class Found:
    """What the kills have shown so far."""

    kills: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    duplicates: int = 0
    left: int = 0
    missed: int = 0
    stuck: int = 0
    runs: int = 0
    first_s: list[float] = field(default_factory=list)

    def rows(self) -> list[Row]:
        ordered = sorted(self.first_s)
        seconds = [round(ordered[int(share * (len(ordered) - 1))], 1) for share in (0.5, 0.9, 1)] if ordered else []
        return [("kills", sum(self.kills.values())), *((f"  of a {name}", n) for name, n in sorted(self.kills.items())),
                ("finished trials lost", self.lost), ("duplicates", self.duplicates), ("processes left", self.left),
                ("sessions without any progress", self.stuck), ("runs", self.runs), ("runs that missed their budget", self.missed),
                ("from resume to first new trial, s: median, 90 %, max", ", ".join(map(str, seconds)) or "-")]


def kills(engine: str, *, times: int, seed: int, budget: int) -> list[Row]:
    """Search, kill some workers and nodes and then the driver, resume, until the budget is spent; again until there were so many kills."""
    rng, found = random.Random(seed), Found()
    with cluster_for(engine) as cluster:
        while found.kills.total() < times:
            with tempfile.TemporaryDirectory() as folder:
                out, known = Path(folder) / "run", 0
                while found.kills.total() < times and known < budget:
                    known = _session(out, engine, rng=rng, found=found, budget=budget, cluster=cluster)
                search(out, stand_in.nothing, resume=(out / "env.json").exists(), engine="inline", budget=budget)
                found.missed += counts(read(out / "records.jsonl")).evaluated != budget
                found.runs += 1
            print(", ".join(f"{name.strip()}: {figure}" for name, figure in found.rows()), file=sys.stderr, flush=True)
    return found.rows()


def _session(out: Path, engine: str, *, rng: random.Random, found: Found, budget: int, cluster: Cluster | None) -> int:
    """Begin or resume, kill, and hold what is on disk against what was; the number of trials evaluated so far."""
    before = read(out / "records.jsonl", mend=True)
    resume, begun = (out / "env.json").exists(), time.time()
    place = {"ray_address": cluster.address} if cluster else {}
    process = begin(out, resume=resume, engine=engine, budget=budget, environment=cluster.environment if cluster else None, **place)
    if not _wait(process, out, more_than=len(before)) and process.poll() is None:
        found.stuck += 1
    time.sleep(rng.uniform(0, 2.5))
    for _ in range(rng.randrange(MOST) if len(VICTIMS[engine]) > 1 else 0):
        if process.poll() is None:
            _kill_one(rng.choice(VICTIMS[engine][1:]), process.pid, rng=rng, found=found, cluster=cluster)
            found.stuck += not _wait(process, out, more_than=_lines(out)) and process.poll() is None  # the search goes on without it
            if cluster:
                cluster.mend()
            time.sleep(rng.uniform(0, 1))
    workers = family(process.pid) + (cluster.workers() if cluster else [])
    found.kills["driver"] += kill(process.pid) if process.poll() is None else 0
    process.wait()
    found.left += _left(workers)
    if cluster:
        cluster.mend()
    after = read(out / "records.jsonl", mend=True)
    if resume and len(after) > len(before):
        found.first_s.append(after[len(before)].started - begun)
    found.lost += after[: len(before)] != before
    keys = [(r.trial, r.rung) for r in after]
    found.duplicates += len(keys) - len(set(keys)) + len({r.trial for r in after}) - len({r.arch_id for r in after})
    return counts(after).evaluated


def _kill_one(victim: str, driver: int, *, rng: random.Random, found: Found, cluster: Cluster | None) -> None:
    if victim == "node" and cluster is not None:
        found.kills["node"] += cluster.lose(rng.randrange(NODES))
        return
    workers = cluster.workers() if cluster else [pid for pid in family(driver) if "spawn_main" in command(pid)]
    if workers:
        found.kills["worker"] += kill(rng.choice(workers))


def _lines(out: Path) -> int:
    path = out / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _wait(process: subprocess.Popen[bytes], out: Path, *, more_than: int, limit: float = 120) -> bool:
    """Whether more records than so many appear while the process lives."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        if _lines(out) > more_than:
            return True
        time.sleep(0.02)
    return False


def _left(pids: list[int]) -> int:
    end = time.monotonic() + GONE_SECONDS
    while time.monotonic() < end and any(alive(p) and "IDLE" not in command(p) for p in pids):
        time.sleep(0.05)
    return sum(alive(p) and "IDLE" not in command(p) for p in pids)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="processes", choices=VICTIMS)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--budget", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for what, figure in kills(given.engine, times=given.times, seed=given.seed, budget=given.budget):
        print(f"{what:<55} {figure}")


if __name__ == "__main__":
    main()
