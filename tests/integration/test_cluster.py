"""A search on a real cluster of `ray start` processes, whose nodes share no run directory with the driver; nodes go and come."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.scaling import Cluster
from nasvit.results.record import latest, read
from tests.conftest import ROOT
from tests.integration.cluster_tasks import MEETING

pytestmark = pytest.mark.slow
LIMIT = 240.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Cluster(port=port) as made:
        made.environment[MEETING] = str(tmp_path_factory.mktemp("meeting"))
        made.add()
        made.add()
        yield made


def begin(cluster: Cluster, out: Path, *, real: bool, **values: Any) -> subprocess.Popen[str]:
    given = {"space": "catm_only", "sampler": "random", "engine": "ray", "ray_address": cluster.address, "workers": 2, "rungs": [2, 4],
             "truth": 0.0, **values}
    command = [sys.executable, "-m", "tests.integration.cluster_tasks", str(out), json.dumps(given), "real" if real else "traced"]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **cluster.environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def test_the_driver_has_everything_and_one_process_measures_while_nodes_go_and_come(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "run"
    driver = begin(cluster, out, real=False, budget=24)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and driver.poll() is None and not (
            (out / "records.jsonl").exists() and (out / "records.jsonl").read_bytes().count(b"\n") >= 12):
        time.sleep(0.05)
    os.killpg(cluster.nodes[1].pid, signal.SIGKILL)  # a node is lost, after both had trained
    cluster.add()  # and another one comes
    text, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 0, text
    summary = json.loads(text.split("SUMMARY ")[1])
    records = read(out / "records.jsonl")
    assert summary["evaluated"] == 24 == len({r.arch_id for r in records if r.status == "complete"}) and summary["failed"] == 0
    first = [r for r in records if r.rung == 1]
    assert len({r.details["measured_by"] for r in first}) == 1
    assert len({r.details["trained_by"] for r in records}) >= 3 and text.count("NODE ") >= 2
    assert all(r.details["run"] != str(out) and r.details["images"] > 0 and r.details["train_on"] == "cpu" for r in records)
    for record in latest(records).values():
        assert record.checkpoint is not None
        assert (out / record.checkpoint).read_text() == "".join(f"rung {n + 1}\n" for n in range(record.rung))


def test_a_real_search_measures_and_trains(cluster: Cluster, tmp_path: Path) -> None:
    driver = begin(cluster, tmp_path / "run", real=True, budget=2)
    text, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 0, text
    records = read(tmp_path / "run" / "records.jsonl")
    fingerprint = json.loads((tmp_path / "run" / "env.json").read_text())["fingerprint"]
    done = [r for r in records if r.status == "complete"]
    assert len({r.trial for r in done}) == 2 and {r.fingerprint for r in done} == {fingerprint}
    assert all(r.latency and r.seconds["train"] > 0 and r.seconds["total"] >= r.seconds["train"] + r.seconds["measure"] for r in done)


def test_a_wrong_token_is_refused_in_words(cluster: Cluster, tmp_path: Path) -> None:
    code = (f"from nasvit.engines import make_engine\nfrom nasvit.errors import ConfigError\n"
            f"try:\n    make_engine('ray', workers=1, address={cluster.address!r})\n"
            f"except ConfigError as error:\n    print('REFUSED', error)")
    (tmp_path / "token").write_text("0" * 64)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False,
                          env={**os.environ, **cluster.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    assert "REFUSED" in done.stdout and "ray get-auth-token" in done.stdout, done.stdout + done.stderr
