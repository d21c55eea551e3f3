"""A real sshd on 127.0.0.1, for those who measure on a device behind ssh and have none at hand."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass
class Server:
    """A running sshd and how to reach it: spec is a device, known_hosts what its client trusts, home whose files the target has."""

    process: subprocess.Popen[bytes]
    spec: str
    home: Path
    known_hosts: Path


def missing() -> str | None:
    """Why there can be no server here, None where there can."""
    return "needs ssh and sshd (Debian: openssh-server)" if SSHD is None or shutil.which("ssh") is None else None


@contextmanager
def ssh_server(folder: Path, *, python: str = sys.executable) -> Iterator[Server]:
    """Keys, settings and a home of its own in the folder; a key logs in without a password, and the target runs `python`.

    Raises RuntimeError where there is no sshd, and with its words where it does not start.
    """
    if (why := missing()) is not None:
        raise RuntimeError(why)
    assert SSHD is not None
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    for name in ("host", "user"):
        (folder / name).unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config, known, client = folder / "sshd_config", folder / "known_hosts", folder / "ssh_config"
    config.write_text(f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
                      f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
                      f"SetEnv HOME={home} NASVIT_LOCK={folder / 'lock'} OMP_NUM_THREADS=1\n")
    known.write_text(f"[127.0.0.1]:{port} {' '.join((folder / 'host.pub').read_text().split()[:2])}\n")
    client.write_text(f"Host *\n  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n"
                      "  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _await_port(port, process)
        where = f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
        yield Server(process, f"{where}/onnxruntime?python={python}&config={client}", home, known)
    finally:
        process.kill()
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    process.kill()
    words = process.stderr.read().decode()[-500:] if process.stderr else ""
    raise RuntimeError(f"sshd does not start here: {words}")
