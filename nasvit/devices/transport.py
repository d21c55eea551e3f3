"""Talking to an agent: one process (the agent, or ssh or adb leading to it), one line each way, with limits on time and size.

Commands are argument lists. What reaches a shell of the target is a fixed text with the agent's hash and the quoted path of a Python
interpreter in it; hosts, users, ports and serials have passed the patterns of spec.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from nasvit.devices.bundle import bundle_id
from nasvit.devices.spec import DeviceSpec
from nasvit.errors import MeasurementError

MOST_REPLY = 8_000_000
"""Bytes of a reply's line: 5 repeats of 80 pairs with 20 reference calls beside each are 0.3 MB."""
START_TIMEOUT_S, REPLY_TIMEOUT_S, LOCK_TIMEOUT_S, END_TIMEOUT_S = 60.0, 120.0, 900.0, 10.0
SLOWEST_BYTES_PER_S = 50_000
ANDROID_FOLDER = "/data/local/tmp"
SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3", "ForwardAgent=no",
               "ForwardX11=no", "ClearAllForwardings=yes", "ControlMaster=auto", "ControlPersist=60")


class DeviceFault(MeasurementError):
    """The device hung, went away, or answered nonsense. Three in a row, and it is quarantined. latency: as of a DeviceLostError."""

    latency = ""


class AgentCrash(DeviceFault):
    """The agent's process ended: mostly a runtime that died on a network."""


class ModelRefused(MeasurementError):
    """The device is well, and cannot do this with this network."""


class Link:
    """A running agent. `ask` is the only way to it; after a DeviceFault the link is closed for good."""

    def __init__(self, argv: Sequence[str], *, name: str, env: dict[str, str] | None = None) -> None:
        self.name, self._buffer, self._number = name, b"", 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the link)
        try:
            self._process = subprocess.Popen(list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                                             start_new_session=True, env=env)
        except OSError as error:
            raise DeviceFault(f"{name}: cannot start {argv[0]} ({error.strerror}); install it, or use another device") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)

    def ask(self, op: str, *, timeout_s: float | None = None, extra_s: float = 0.0, payload: bytes = b"", **fields: Any) -> dict[str, Any]:
        """The agent's reply. extra_s: what the work itself may take, beyond the time in which a device that is well answers.

        Raises ModelRefused for what it cannot do, DeviceFault where no sound reply comes in time.
        """
        self._number += 1
        limit = (REPLY_TIMEOUT_S if timeout_s is None else timeout_s) + extra_s
        deadline = time.monotonic() + limit
        request = json.dumps({"id": self._number, "op": op, **fields}).encode() + b"\n"
        try:
            self._write(request + payload, deadline=deadline)
            line = self._read_line(deadline=deadline)
        except TimeoutError:
            self._fail(f"no answer to {op!r} in {limit:.0f} s")
        reply = self._parsed(line)
        if reply.get("id") != self._number or not isinstance(reply.get("ok"), bool):
            self._fail(f"the answer to {op!r} is not of this protocol")
        if not reply["ok"]:
            raise ModelRefused(f"{self.name}: {str(reply.get('error'))[:2000]}")
        return reply

    def put(self, path: Path, *, name: str) -> None:
        """Send a file; it is checked by the hash of what arrived."""
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        reply = self.ask("put", payload=data, name=name, bytes=len(data), extra_s=len(data) / SLOWEST_BYTES_PER_S)
        if reply.get("sha256") != digest:
            self._fail(f"the file {name} arrived with another hash ({str(reply.get('sha256'))[:64]!r}, not {digest})")

    def close(self) -> None:
        """End the agent: it ends by itself when nobody writes to it any more, else it is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=END_TIMEOUT_S)  # it tidies up behind itself
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._errors.close()

    def _write(self, data: bytes, *, deadline: float) -> None:
        view = memoryview(data)
        while view:
            _, ready, _ = select.select([], [self._to], [], _left(deadline))
            if not ready:
                raise TimeoutError
            try:
                view = view[os.write(self._to, view[: 1 << 16]):]
            except BlockingIOError:
                continue
            except OSError:
                self._ended()

    def _read_line(self, *, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > MOST_REPLY:
                self._fail(f"an answer is longer than {MOST_REPLY} bytes")
            ready, _, _ = select.select([self._from], [], [], _left(deadline))
            if not ready:
                raise TimeoutError
            chunk = os.read(self._from, 1 << 16)
            if not chunk:
                self._ended()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            self._fail(f"an answer is not JSON: {line[:100]!r}")
        if not isinstance(reply, dict):
            self._fail(f"an answer is not a JSON object: {line[:100]!r}")
        return reply

    def _ended(self) -> NoReturn:
        """The other side is gone: say how."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        last = self._last_words()
        self.close()
        number = -code if code is not None and code < 0 else code - 128 if code is not None and 128 < code < 160 else None
        if number is not None:
            with suppress(ValueError):
                raise AgentCrash(f"{self.name}: the process that runs the model was ended by {signal.Signals(number).name}{last}")
        raise AgentCrash(f"{self.name}: the process that runs the model ended with {code}{last}")

    def _fail(self, what: str) -> NoReturn:
        last = self._last_words()
        self.close()
        raise DeviceFault(f"{self.name}: {what}{last}")

    def _last_words(self) -> str:
        """The end of what the process wrote to stderr."""
        with suppress(OSError, ValueError):
            size = self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, size - 1000))
            text = " ".join(self._errors.read().decode(errors="replace").split())[-400:]
            return f" ({text})" if text else ""
        return ""


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


# ---- the ways to a target ---------------------------------------------------------------------------------------------------


def ssh_base(spec: DeviceSpec, *, control: Path) -> list[str]:
    """`ssh` up to the host; control: a private folder for the shared connection."""
    options = [word for option in (*SSH_OPTIONS, f"ControlPath={control}/%C") for word in ("-o", option)]
    config, port, user = (["-F", spec.config] if spec.config else [], ["-p", str(spec.port)] if spec.port else [],
                          ["-l", spec.user] if spec.user else [])
    return ["ssh", *config, *options, *port, *user, "--", spec.host.strip("[]")]


def ssh_install(spec: DeviceSpec, data: bytes, *, control: Path) -> list[str]:
    """Copy the agent (`cat`, because not every server has sftp); the command that runs it."""
    folder, file = 'd="${XDG_CACHE_HOME:-$HOME/.cache}/nasvit"', f'"$d/agent-{bundle_id()}.pyz"'
    copy = f'{folder}; umask 077; mkdir -p "$d" && cat > {file}.$$ && mv {file}.$$ {file}'
    base = ssh_base(spec, control=control)
    _done([*base, f"sh -c {shlex.quote(copy)}"], name=spec.where, data=data)
    return [*base, f"sh -c {shlex.quote(f'{folder}; {shlex.quote(spec.python)} {file}; exit $?')}"]


def adb_install(spec: DeviceSpec, bundle: Path) -> list[str]:
    """Push the agent; the command that runs it (without a terminal, so that bytes stay as they are)."""
    path = f"{ANDROID_FOLDER}/nasvit-agent-{bundle_id()}.pyz"
    _done(["adb", "-s", spec.serial, "push", str(bundle), path], name=spec.where)
    return ["adb", "-s", spec.serial, "shell", "-T", f"TMPDIR={ANDROID_FOLDER} {shlex.quote(spec.python)} {path}; exit $?"]


def _done(argv: Sequence[str], *, name: str, data: bytes = b"") -> None:
    """Run a command to its end; raises DeviceFault with its last words where it fails."""
    with tempfile.TemporaryFile() as errors:  # no pipe: ssh's shared connection stays in the background and would hold it open
        try:
            done = subprocess.run(list(argv), input=data, stdout=subprocess.DEVNULL, stderr=errors, timeout=START_TIMEOUT_S, check=False)
        except FileNotFoundError:
            raise DeviceFault(f"{name}: there is no {argv[0]} on this machine; install it, or use another device") from None
        except subprocess.TimeoutExpired:
            raise DeviceFault(f"{name}: {argv[0]} did not end in {START_TIMEOUT_S:.0f} s; check that the device is on and "
                              "reachable") from None
        if done.returncode:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 1000))
            text = " ".join(errors.read().decode(errors="replace").split())[-400:]
            raise DeviceFault(f"{name}: {argv[0]} ended with {done.returncode} ({text}); the same by hand should work without a "
                              "password or a question")
