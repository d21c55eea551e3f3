"""`--storage` with real PostgreSQL and MySQL (MariaDB) servers, which the tests start on 127.0.0.1 where their programs are found."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import pytest
from optuna.trial import TrialState

from nasvit.errors import ConfigError
from nasvit.results.record import TrialRecord, latest, read
from nasvit.search import Snapshot, mirror, run
from nasvit.search.mirror import Mirror
from tests.integration.test_search import experiment, quick_evaluate
from tests.unit.search.fakes import SmallSpace
from tests.unit.search.test_mirror import NAMES, trial

pytestmark = pytest.mark.slow
PASSWORD = "s3cret/with signs"
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", *sorted(glob.glob("/usr/lib/postgresql/*/bin"))])


@dataclass
class Server:
    """A database server of this test. url: with the password; command: starts it; greet: raises until it answers; begin: what is done
    once, when it does."""

    port: int
    url: str
    command: list[str]
    log: Path
    user: str | None
    greet: Callable[[], object]
    process: subprocess.Popen[bytes] | None = None
    begin: Callable[[], None] = field(default=lambda: None)

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=subprocess.STDOUT, user=self.user, start_new_session=True)
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # drivers raise what they like
                self.greet()
                return
            time.sleep(0.1)
        raise RuntimeError(f"the server does not start: {self.log.read_text()[-1000:]}")

    def kill(self) -> None:
        """At once, with all its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name, path=PLACES))), None)
    if found is None:
        pytest.skip(f"needs a database server: no {' or '.join(names)} on PATH (Debian: postgresql, mariadb-server)")
    return found


def not_root(name: str) -> str | None:
    """Whom a server runs as: it refuses root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError:
        pytest.skip(f"a database server does not run as root, and there is no user {name}")


def owned(folder: Path, user: str | None) -> None:
    if user is not None:
        shutil.chown(folder, user)


def postgresql(folder: Path) -> Server:
    psycopg = pytest.importorskip("psycopg", reason="needs the extra [storage]")
    initdb, postgres, user, port = program("initdb"), program("postgres"), not_root("postgres"), free_port()
    (folder / "password").write_text(PASSWORD)
    owned(folder / "password", user)
    subprocess.run([initdb, "-D", str(folder / "data"), "-U", "watcher", "--pwfile", str(folder / "password"), "-A", "scram-sha-256"],
                   check=True, user=user, cwd=folder, capture_output=True)
    return Server(port=port, url=f"postgresql+psycopg://watcher:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres", user=user,
                  command=[postgres, "-D", str(folder / "data"), "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", str(folder)],
                  log=folder / "log", greet=lambda: psycopg.connect(
                      host="127.0.0.1", port=port, user="watcher", password=PASSWORD, dbname="postgres").close())


def mysql(folder: Path) -> Server:
    pymysql = pytest.importorskip("pymysql", reason="needs the extra [storage]")
    server, user, port = program("mariadbd", "mysqld"), not_root("mysql"), free_port()
    place = [f"--datadir={folder / 'data'}", *([f"--user={user}"] if user else [])]
    install = shutil.which("mariadb-install-db", path=PLACES)
    made = [install, "--no-defaults", "--auth-root-authentication-method=normal"] if install else [
        server, "--no-defaults", "--initialize-insecure"]
    subprocess.run([*made, *place], check=True, capture_output=True, cwd=folder)

    def as_root() -> Any:
        return pymysql.connect(host="127.0.0.1", port=port, user="root")

    def begin() -> None:
        with as_root() as connection, connection.cursor() as cursor:
            cursor.execute("create database watch")
            cursor.execute("create user watcher@'127.0.0.1' identified by %s", (PASSWORD,))
            cursor.execute("create user watcher@'localhost' identified by %s", (PASSWORD,))
            cursor.execute("grant all on watch.* to watcher@'127.0.0.1'")
            cursor.execute("grant all on watch.* to watcher@'localhost'")

    return Server(port=port, url=f"mysql+pymysql://watcher:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/watch", user=None,
                  command=[server, "--no-defaults", *place, "--bind-address=127.0.0.1", f"--port={port}",
                           f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}"], log=folder / "log", begin=begin,
                  greet=lambda: as_root().close())


@pytest.fixture(params=[postgresql, mysql], ids=lambda make: make.__name__)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="nasvit-db-", dir="/tmp"))  # short: a socket's path has 100 characters at most
    folder.chmod(0o755)
    made = None
    try:
        owned(folder, not_root("postgres" if request.param is postgresql else "mysql"))
        made = request.param(folder)
        made.start()
        made.begin()
        yield made
    finally:
        if made is not None and made.process is not None and made.process.poll() is None:
            made.kill()
        shutil.rmtree(folder, ignore_errors=True)


def opened(url: str, told: list[str], records: Sequence[TrialRecord] = ()) -> Mirror:
    return Mirror(url, name="run", objectives=NAMES, space=SmallSpace(), records=records, told=told.append)


def entries(url: str) -> list[tuple[int, int, str, list[float] | None]]:
    trials = optuna.load_study(study_name="run", storage=url).trials
    return [(t.user_attrs["trial"], t.user_attrs["rung"], t.state.name, t.values) for t in trials]


def test_a_server_has_every_trial_as_the_records_say(server: Server) -> None:
    told: list[str] = []
    first = [trial(0, accuracy=0.1 + 0.2), trial(1, status="rejected", reason="over \u03bb \U0001f6d1"),
             trial(2, status="failed", reason="no")]
    with opened(server.url, told) as copy:
        for record in first:
            copy.add(record)
    with opened(server.url, told, records=first) as copy:
        copy.add(trial(0, rung=2, accuracy=1 / 3))
    assert entries(server.url) == [(0, 1, "PRUNED", [0.1 + 0.2, 1.0]), (1, 1, "PRUNED", None), (2, 1, "FAIL", None),
                                   (0, 2, "COMPLETE", [1 / 3, 1.0])]
    assert told == []


def test_a_server_that_is_killed_gets_what_it_misses_when_it_is_back_each_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.2)
    told: list[str] = []
    with opened(server.url, told) as copy:
        copy.add(trial(0))
        until(lambda: len(copy._there) == 1)
        server.kill()
        copy.add(trial(1))
        copy.add(trial(2))
        until(lambda: bool(told))
        server.start()
        until(lambda: len(copy._there) == 3)
    assert [number for number, *_ in entries(server.url)] == [0, 1, 2]
    assert len(told) == 2 and "the storage is lost: " in told[0] and "OperationalError" in told[0] and told[1] == "the storage is back"
    assert not [text for text in told if "s3cret" in text]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "not within 30 s"
        time.sleep(0.05)


def test_a_wrong_password_or_database_is_refused_without_a_password(server: Server) -> None:
    for url in (server.url.replace("s3cret", "wr0ng"), server.url.rpartition("/")[0] + "/n0such"):
        with pytest.raises(ConfigError) as error:
            opened(url, [])
        assert "cannot be opened: OperationalError" in str(error.value)
        assert not [word for word in ("s3cret", "wr0ng", "with signs", "with%20signs") if word in str(error.value)]


def test_a_search_outlives_its_server_and_a_resumed_one_completes_the_copy(server: Server, tmp_path: Path) -> None:
    out, notes, given = tmp_path / "run", set(), {"engine": "inline", "truth": 0.0}

    def kill(snapshot: Snapshot) -> None:
        notes.update(snapshot.notes)
        if snapshot.evaluated == 3 and server.process is not None and server.process.poll() is None:
            server.kill()

    first = run(experiment(budget=6, **given), out=out, evaluate=quick_evaluate, storage=server.url, progress=kill)
    assert first["evaluated"] == 6 and any("the storage is lost: OperationalError" in note for note in notes), notes
    server.start()
    run(experiment(budget=8, **given), out=out, resume=True, evaluate=quick_evaluate, storage=server.url)
    records = latest(read(out / "records.jsonl"))
    study = optuna.load_study(study_name="run", storage=server.url)
    complete = {t.user_attrs["trial"]: t for t in study.trials if t.state == TrialState.COMPLETE}
    assert sorted(complete) == sorted(records) and len(records) == 8
    for number, record in records.items():
        assert complete[number].values == [record.objectives[name] for name in study.metric_names or ()]
        assert complete[number].params == record.params and complete[number].user_attrs["rung"] == record.rung
    assert sum(t.state == TrialState.COMPLETE for t in study.trials) == 8
    assert not [p for p in out.rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()]


def test_the_command_with_a_storage_writes_its_password_nowhere(server: Server, tmp_path: Path) -> None:
    given = ["--data", "digits", "--budget", "3", "--device", "cpu?noise=keep", "--out", str(tmp_path / "run"), "--engine", "inline"]
    done = subprocess.run([sys.executable, "-m", "nasvit.cli", "search", *given], capture_output=True, text=True, timeout=400,
                          env={**os.environ, "NASVIT_STORAGE": server.url, "NASVIT_LOCK": str(tmp_path / "lock")})
    assert done.returncode == 0, done.stderr[-1000:]
    assert "s3cret" not in done.stdout + done.stderr and "study created" not in done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()]
    assert {number for number, *_ in entries(server.url)} == set(latest(read(tmp_path / "run" / "records.jsonl")))
