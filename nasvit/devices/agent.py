"""The agent: runs on the target, times with THE timing loop there, and answers JSON lines on stdin with JSON lines on stdout.

It travels as one file (bundle.py) and needs Python 3.8, numpy and the runtime, nothing else. It opens no port and runs no
command of its caller's: a request names an operation of `OPERATIONS` and its numbers.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any

from nasvit.devices import machine, timing
from nasvit.devices.lock import machine_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERSION = 1
MOST_LINE = 1_000_000
MOST_OUTPUT = 400_000
"""Bytes of a request line, and of outputs sent back."""
CHUNK = 1 << 20
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class Refused(Exception):
    """What the caller asked for cannot be done; the text says why."""


class Agent:
    """The state of one conversation: the folder of received files, open sessions, the machine lock."""

    def __init__(self, requests: IO[bytes]) -> None:
        self.requests = requests
        self.folder = tempfile.mkdtemp(prefix="nasvit-agent-")
        os.environ["TMPDIR"] = self.folder  # what a runtime leaves lying (ONNX Runtime: a file of its session) goes with the folder
        self.calls: dict[str, Callable[[], list[Any]]] = {}
        self.lock = ExitStack()

    def path(self, name: str) -> str:
        """Where a received file is, or will be; parts of plain characters only, so that it stays in the folder."""
        parts = name.split("/")
        if not 0 < len(parts) <= 4 or not all(PART.fullmatch(part) for part in parts):
            raise Refused(f"the file name {name!r} is not accepted")
        return os.path.join(self.folder, *parts)

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Who answers: versions and facts of the machine."""
        gc.disable()
        return {"agent": VERSION, "facts": machine.facts(), "state": machine.state(), "pid": os.getpid(),
                "keeps_freed_memory": machine.keep_freed_memory()}

    def state(self, request: dict[str, Any]) -> dict[str, Any]:
        """What may change: frequency, temperature, load."""
        return {"state": machine.state()}

    def put(self, request: dict[str, Any]) -> dict[str, Any]:
        """Receive a file: so many bytes follow the request's line. Answers with the hash of what arrived."""
        digest, chunks = hashlib.sha256(), self._payload(int(request["bytes"]))
        try:
            path = self.path(str(request["name"]))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
        except OSError as error:
            raise Refused(f"the file {request['name']} cannot be written there: {error.strerror}; make room in {self.folder}") from None
        finally:
            for _ in chunks:  # what is not read now would be taken for the next request
                pass
        return {"sha256": digest.hexdigest()}

    def _payload(self, left: int) -> Iterator[bytes]:
        """The bytes that follow a request's line."""
        while left:
            chunk = self.requests.read(min(left, CHUNK))
            if not chunk:
                raise EOFError
            left -= len(chunk)
            yield chunk

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open a model in its runtime and run it once. Models and inputs are paths of this machine, or received files."""
        call, version, first_s = _opened(self._located(request))
        self.calls[str(request["key"])] = call
        return {"version": version, "first_s": first_s}

    def _located(self, request: dict[str, Any]) -> dict[str, Any]:
        """The request with received files by their path."""
        if request.get("received"):
            inputs = [{**one, "path": self.path(str(one["path"]))} for one in request["inputs"]]
            return {**request, "path": self.path(str(request["path"])), "inputs": inputs}
        return request

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run an open model once; its outputs, base64."""
        outputs = [_array(a) for a in self._call(request["key"])()]
        if sum(len(o["data"]) for o in outputs) > MOST_OUTPUT:
            raise Refused(f"the outputs are larger than {MOST_OUTPUT} bytes")
        return {"outputs": outputs}

    def attempt(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time a candidate beside the reference: one Attempt."""
        threads = int(request["threads"])
        done = timing.attempt(self._call(request["candidate"]), self._call(request["reference"]),
                              clock=lambda call: timing.cpu_clock(call, threads=threads), repeats=int(request["repeats"]))
        return {"attempt": done.to_dict(), "state": machine.state()}

    def rounds(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time one model alone."""
        threads, seconds = int(request["threads"]), min(60.0, float(request["seconds"]))
        call = self._call(request["key"])
        return {"rounds_ms": timing.rounds(call, clock=lambda c: timing.cpu_clock(c, threads=threads), seconds=seconds)[:10_000]}

    def memory(self, request: dict[str, Any]) -> dict[str, Any]:
        """How much a fresh process grows by opening and running the model."""
        return {"peak_mb": _peak_in_a_child({**self._located(request), "before": [self._located(r) for r in request["before"]]},
                                            limit_mb=request.get("limit_mb"), limit_s=float(request["limit_s"]))}

    def hold(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the machine lock: other measurements and training steps on this machine wait."""
        self.lock.enter_context(machine_lock.measuring())
        return {}

    def release(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the machine lock back."""
        self.lock.close()
        return {}

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Forget a model and its files."""
        self.calls.pop(str(request["key"]), None)
        if request.get("files"):
            shutil.rmtree(self.path(str(request["files"])), ignore_errors=True)
        gc.collect()
        return {}

    def _call(self, key: object) -> Callable[[], list[Any]]:
        if str(key) not in self.calls:
            raise Refused(f"no model {key!r} is open")
        return self.calls[str(key)]


OPERATIONS = ("hello", "state", "put", "open", "run", "attempt", "rounds", "memory", "hold", "release", "close")


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer requests until the caller goes."""
    agent = Agent(requests)
    try:
        while True:
            line = requests.readline(MOST_LINE + 1)
            if not line or len(line) > MOST_LINE:
                return
            request = json.loads(line)
            replies.write(json.dumps({"id": request["id"], **_answer(agent, request)}).encode() + b"\n")
            replies.flush()
    except (EOFError, BrokenPipeError):
        return
    finally:
        agent.lock.close()
        shutil.rmtree(agent.folder, ignore_errors=True)


def _answer(agent: Agent, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["op"] not in OPERATIONS:
            raise Refused(f"unknown operation {request['op']!r}")
        return {"ok": True, **getattr(agent, request["op"])(request)}
    except EOFError:
        raise
    except Exception as error:  # a runtime may raise anything; the caller tells it to the user
        text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        return {"ok": False, "error": text[:2000]}


def _opened(request: dict[str, Any]) -> tuple[Callable[[], list[Any]], str, float]:
    """(a call that runs the model on its inputs, the runtime's version, seconds of the first run)"""
    import numpy as np

    from nasvit.runtimes.sessions import open_session

    arrays = [np.fromfile(one["path"], dtype=np.dtype(one["dtype"])).reshape(one["shape"]) for one in request["inputs"]]
    session = open_session(request["runtime"], request["path"], threads=int(request["threads"]), settings=dict(request["settings"]))
    begun = time.perf_counter()
    session.run(arrays)
    return (lambda: session.run(arrays)), str(session.version), time.perf_counter() - begun


def _array(value: Any) -> dict[str, Any]:
    import numpy as np

    array = np.ascontiguousarray(value)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "data": base64.b64encode(array.tobytes()).decode()}


# ---- peak memory, in a process of its own ---------------------------------------------------------------------------------


def _peak_in_a_child(request: dict[str, Any], *, limit_mb: float | None, limit_s: float) -> float:
    """MB that a fresh process grew by. It is ended where it passes a limit, before it takes the machine down."""
    child = subprocess.Popen([sys.executable, sys.argv[0], "memory"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.stdin is not None
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
        child.stdin = None
        end = time.monotonic() + limit_s
        while child.poll() is None:
            now = _resident_mb_of(child.pid)
            if limit_mb is not None and now is not None and now > limit_mb:
                raise Refused(f"the model needs over {limit_mb:.0f} MB, which is what the machine can give")
            if time.monotonic() > end:
                raise Refused(f"the model did not run within {limit_s:.0f} s")
            time.sleep(0.005)
        out, errors = child.communicate()
    finally:
        child.kill()
        child.communicate()
    if child.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise Refused(f"a process that only runs the model ended with {child.returncode}: {last[0][:500]}")
    return float(json.loads(out.strip().splitlines()[-1])["peak_mb"])


def _resident_mb_of(pid: int) -> float | None:
    for line in (machine.read(f"/proc/{pid}/status") or "").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def _memory_child() -> None:
    """Read a request, run the reference so that the runtime's own memory is there, then print by how much the model grows it."""
    replies = _private_stdout()
    request = json.loads(sys.stdin.buffer.read())
    for before in request["before"]:
        _opened(before)[0]()
    gc.collect()
    start, _ = machine.resident_mb()
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the most so far begins again
    except OSError:
        pass  # then it holds what the reference needed, too: the figure can only be too large
    call = _opened(request)[0]
    for _ in range(3):
        call()
    _, most = machine.resident_mb()
    replies.write(json.dumps({"peak_mb": max(0.0, most - start)}).encode() + b"\n")
    replies.flush()


def _private_stdout() -> IO[bytes]:
    """The stdout for replies alone: what a runtime prints goes to stderr."""
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own


def main() -> None:
    """The agent's process."""
    if not os.environ.get("NASVIT_LOCK") and not os.path.isdir("/tmp"):
        os.environ["NASVIT_LOCK"] = os.path.join(tempfile.gettempdir(), "nasvit-machine.lock")
    if sys.argv[1:] == ["memory"]:
        _memory_child()
        return
    serve(sys.stdin.buffer, _private_stdout())
