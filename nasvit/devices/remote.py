"""Devices behind the agent: file runtimes on this machine (in a process of their own, because some crash), by ssh, and by adb."""

from __future__ import annotations

import base64
import itertools
import os
import subprocess
import tempfile
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from nasvit.devices import machine, timing
from nasvit.devices.base import DEVICES, Device, Prepared, example
from nasvit.devices.bundle import bundle, write_bundle
from nasvit.devices.calibration import cache_folder
from nasvit.devices.form import inference_form
from nasvit.devices.local import MEMORY_SHARE, fingerprint_of, torch_threads
from nasvit.devices.lock import machine_lock
from nasvit.devices.memory import peak_bytes
from nasvit.devices.reference import VERSION, make_reference
from nasvit.devices.replies import sound_attempt, sound_facts, sound_peak, sound_rounds, sound_seconds
from nasvit.devices.spec import DeviceSpec
from nasvit.devices.transport import (
    LOCK_TIMEOUT_S,
    START_TIMEOUT_S,
    AgentCrash,
    DeviceFault,
    Link,
    adb_install,
    ssh_base,
    ssh_install,
)
from nasvit.errors import DeviceLostError, MeasurementError
from nasvit.runtimes import FileRuntime, Runtime

TRIES = 3
"""So many faults in a row, and a device is quarantined."""
FEWEST_RUNS = 10
"""Of a network whose runs are so long that time is the bound: to warm up, and for its peak memory."""
MEMORY_TIMEOUT_S = 100.0
PEAK_STEP_MB = 0.1
"""The growth of a process is told in pages, after the allocator has used up what the reference network left free: the same network's
differs by some pages from one process to the next, and one that fits into what was left gives 0."""


class AgentDevice(Device):
    """A device behind an agent. Abstract: a place says how its agent is started."""

    torch_device = "cpu"
    alone_on_host: ClassVar[bool]
    """Whether the target is this machine, whose lock is held here; else the agent holds its own machine's."""

    def __init__(self, *, spec: DeviceSpec, runtime: Runtime, threads: int, reference_ms: float | None) -> None:
        super().__init__(spec=spec, runtime=runtime, threads=threads, reference_ms=reference_ms)
        self.name = str(spec)
        self.faults: list[str] = []  # in a row
        self._link: Link | None = None
        self._facts: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        self._version = ""
        self._held = 0
        self._numbers = itertools.count()
        self._reference_files: tempfile.TemporaryDirectory[str] | None = None

    @abstractmethod
    def start(self) -> Link:
        """A new agent. Raises DeviceFault where there is no way to the device."""

    # ---- identity -------------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        if not self._version:
            self.connected()
        return {"kind": "cpu", "cpu": self._facts["cpu"], "cores": self._facts["cores"], "machine": self._facts["machine"],
                "torch": torch.__version__, "threads": self.threads, "runtime": self.spec.runtime, "settings": self.settings_facts(),
                "runtime_version": self._version, "reference": VERSION, "form": self.runtime.form,
                "exported_by": self.runtime.version(),
                "keeps_freed_memory": self._facts["keeps_freed_memory"]}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self._identity())

    def describe(self) -> dict[str, Any]:
        identity = self._identity()
        with self.fault_counted():
            self._state = sound_facts(self.connected().ask("state", timeout_s=START_TIMEOUT_S).get("state"), name=self.name)
        return {**identity, "place": self.spec.where, "fingerprint": fingerprint_of(identity), **self.scale_facts(), **self._state,
                "system": self._facts["system"], "python": self._facts["python"]}

    # ---- the agent ------------------------------------------------------------------------------------------------------

    def connected(self) -> Link:
        """The running agent with the reference network open; started where there is none. Raises DeviceLostError in quarantine."""
        if len(self.faults) >= TRIES:
            raise DeviceLostError(f"{self.name} is in quarantine after {TRIES} faults in a row, the last: {self.faults[-1]}; see "
                                  "`nasvit devices check`")
        if self._link is None:
            with self.fault_counted():
                link = self.start()
                try:
                    self._facts, self._version = self._introduced(link), self._open_reference(link)
                except BaseException:  # without its reference network it is no device
                    link.close()
                    raise
                self._link = link
        return self._link

    def _introduced(self, link: Link) -> dict[str, Any]:
        hello = link.ask("hello", timeout_s=START_TIMEOUT_S)
        facts = sound_facts({**hello.get("facts", {}), "keeps_freed_memory": hello.get("keeps_freed_memory")}, name=self.name)
        missing = {"cpu", "cores", "machine", "system", "python"} - set(facts)
        if missing:
            raise DeviceFault(f"{self.name}: it does not say its {', '.join(sorted(missing))}")
        return facts

    def close(self) -> None:
        """End the agent."""
        if self._link is not None:
            self._link.close()
            self._link = None

    @contextmanager
    def fault_counted(self) -> Iterator[None]:
        """A DeviceFault inside closes the agent and counts; the third in a row becomes a DeviceLostError. An interruption closes it, too:
        its next answer would be to what was asked before."""
        try:
            yield
        except DeviceFault as fault:
            self.close()
            self.faults.append(str(fault))
            if len(self.faults) >= TRIES:
                raise DeviceLostError(f"{self.name} is in quarantine from now on, after {TRIES} faults in a row, the last: "
                                      f"{fault}") from fault
            raise
        except Exception:
            raise
        except BaseException:
            self.close()
            raise

    def _open_reference(self, link: Link) -> str:
        module, image = make_reference()
        if self._reference_files is None:
            files = tempfile.TemporaryDirectory(prefix="nasvit-reference-")
            with machine_lock.training():  # exporting is work
                self._exported_reference = self._exported(module, image, folder=Path(files.name))
            self._reference_files = files
        request = self._sent(link, "reference", self._exported_reference, image)
        return str(link.ask("open", **request).get("version"))[:100]

    # ---- measuring ------------------------------------------------------------------------------------------------------

    @contextmanager
    def prepared(self, module: nn.Module, *, input_shape: tuple[int, ...]) -> Iterator[Prepared]:
        key = f"m{next(self._numbers)}"
        with tempfile.TemporaryDirectory(prefix="nasvit-export-") as folder:
            with machine_lock.training():  # exporting is work too: it would disturb another worker's measurement
                link = self.connected()
                form = inference_form(module)
                image = example(form, shape=input_shape)
                self._check_memory(link, form, image)
                path = self._exported(form, image, folder=Path(folder))
                request, first_s = self._opened(link, key, path, image)
            try:
                yield Prepared(device=self, batch_size=input_shape[0],
                               attempt=lambda repeats: self._attempt(key, repeats, first_s=first_s),
                               peak=lambda: self._peak(request, first_s=first_s), peak_step_mb=PEAK_STEP_MB)
            finally:
                self._forget(key)

    def outputs(self, module: nn.Module, *, image: Tensor) -> list[np.ndarray]:
        """What the device computes for this input: to be held against eager's."""
        key = f"m{next(self._numbers)}"
        with tempfile.TemporaryDirectory(prefix="nasvit-export-") as folder:
            link = self.connected()
            self._opened(link, key, self._exported(module, image, folder=Path(folder)), image)
        with self.fault_counted():
            reply = link.ask("run", key=key)
            try:
                return [np.frombuffer(base64.b64decode(o["data"], validate=True), dtype=np.dtype(str(o["dtype"]))).reshape(o["shape"])
                        for o in reply["outputs"]]
            except (KeyError, TypeError, ValueError) as error:
                raise DeviceFault(f"{self.name}: the outputs cannot be read ({error})") from None

    def rounds(self, seconds: float) -> list[float]:
        link = self.connected()
        with self.fault_counted():
            begun = time.monotonic()
            reply = link.ask("rounds", key="reference", threads=self.threads, seconds=seconds)
            found = sound_rounds(reply.get("rounds_ms"), elapsed_s=time.monotonic() - begun, name=self.name)
        self.faults.clear()
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        outside = machine_lock.measuring() if self.alone_on_host else nullcontext()
        with outside:
            if self._held or self.alone_on_host:
                yield
                return
            with self.fault_counted():
                link = self.connected()
                link.ask("hold", timeout_s=LOCK_TIMEOUT_S)
            self._held += 1
            try:
                yield
            finally:
                self._held -= 1
                if self._link is link:  # a link that broke has released it
                    with self.fault_counted():
                        link.ask("release")

    def _attempt(self, key: str, repeats: int, *, first_s: float) -> timing.Attempt:
        """first_s: what the network's first run took. One that takes long is no device that hangs."""
        link = self.connected()
        with self.fault_counted():
            begun = time.monotonic()
            reply = link.ask("attempt", candidate=key, reference="reference", threads=self.threads, repeats=repeats,
                             extra_s=(FEWEST_RUNS + repeats * timing.LEAST_PAIRS) * first_s)
            found = sound_attempt(reply.get("attempt"), repeats=repeats, elapsed_s=time.monotonic() - begun, name=self.name)
            self._state = sound_facts(reply.get("state"), name=self.name)
        self.faults.clear()
        return found

    def _check_memory(self, link: Link, form: nn.Module, image: Tensor) -> None:
        """Refuse a network whose tensors alone need more than the device, or this machine, which exports it, has free: before it is
        exported, sent and opened. Raises MeasurementError."""
        with self.fault_counted():
            free = sound_facts(link.ask("state").get("state"), name=self.name).get("available_mb")
        known = [mb for mb in (free, machine.available_mb()) if isinstance(mb, float)]
        peak_bytes(form, image, limit=MEMORY_SHARE * min(known) * 1e6 if known else None)

    def _peak(self, request: dict[str, Any], *, first_s: float) -> float:
        link = self.connected()
        with self.fault_counted():
            state = sound_facts(link.ask("state").get("state"), name=self.name)
            free = state.get("available_mb")
            _, image = make_reference()
            before = self._request("reference", self._exported_reference, image, received=not self.alone_on_host)
            limit_s = MEMORY_TIMEOUT_S + FEWEST_RUNS * first_s
            reply = link.ask("memory", **request, before=[before], limit_mb=MEMORY_SHARE * free if isinstance(free, float) else None,
                             limit_s=limit_s, extra_s=limit_s)
            return sound_peak(reply.get("peak_mb"), name=self.name)

    # ---- models on their way ----------------------------------------------------------------------------------------------

    def _exported(self, module: nn.Module, image: Tensor, *, folder: Path) -> Path:
        """The module's file for this runtime, with its input beside it."""
        assert isinstance(self.runtime, FileRuntime)
        with torch_threads(self.threads):  # a compiler writes code for as many threads as there are
            path = self.runtime.export(module, image, folder / "model")
        image.contiguous().numpy().tofile(folder / "input.bin")
        return path

    def _opened(self, link: Link, key: str, path: Path, image: Tensor) -> tuple[dict[str, Any], float]:
        """Open it there: the request, and the seconds of the first run. A crash is the network's fault where the device is well without it,
        else the device's."""
        with self.fault_counted():
            try:
                request = self._sent(link, key, path, image)
                begun = time.monotonic()
                reply = link.ask("open", **request)
                return request, sound_seconds(reply.get("first_s"), elapsed_s=time.monotonic() - begun, name=self.name)
            except AgentCrash as crash:
                fault = crash
        self.close()
        self.connected()  # a fault here counts
        raise MeasurementError(f"the runtime {self.spec.runtime} does not survive this network: {fault}")

    def _sent(self, link: Link, key: str, path: Path, image: Tensor) -> dict[str, Any]:
        if self.alone_on_host:
            return self._request(key, path, image, received=False)
        for file in sorted(p for p in path.parent.rglob("*") if p.is_file()):
            link.put(file, name=f"{key}/{file.relative_to(path.parent).as_posix()}")
        return self._request(key, path, image, received=True)

    def _request(self, key: str, path: Path, image: Tensor, *, received: bool) -> dict[str, Any]:
        folder = key if received else str(path.parent)
        dtype = str(image.dtype).removeprefix("torch.")
        return {"key": key, "runtime": self.spec.runtime, "path": f"{folder}/{path.name}", "received": received, "threads": self.threads,
                "settings": dict(self.spec.settings),
                "inputs": [{"path": f"{folder}/input.bin", "shape": list(image.shape), "dtype": dtype}]}

    def _forget(self, key: str) -> None:
        if self._link is not None:
            with suppress(DeviceLostError, DeviceFault), self.fault_counted():
                self._link.ask("close", key=key, files=None if self.alone_on_host else key)


@final
class LocalAgent(AgentDevice):
    """This machine's CPU with a runtime in a process of its own."""

    alone_on_host = True

    def start(self) -> Link:
        assert isinstance(self.runtime, FileRuntime)
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = write_bundle(folder)
        except OSError as error:
            raise MeasurementError(f"cannot write the agent into {folder} ({error.strerror}); set NASVIT_CACHE to a folder that you may "
                                   "write") from None
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        return Link([self.runtime.interpreter, str(path)], name=self.name, env={**os.environ, **threads})


@DEVICES.register("ssh")
@final
class Ssh(AgentDevice):
    """Another machine by ssh: ssh://user@host:port/RUNTIME; it needs Python, numpy and the runtime."""

    alone_on_host = False
    _control: tempfile.TemporaryDirectory[str] | None = None
    """Of the shared connection; it goes with this process, too, where nobody closes the device."""

    def start(self) -> Link:
        if self._control is None:  # short: the path of a socket has 100 characters at most
            self._control = tempfile.TemporaryDirectory(prefix="nv-", dir="/tmp", ignore_cleanup_errors=True)
        return Link(ssh_install(self.spec, bundle(), control=Path(self._control.name)), name=self.name)

    def close(self) -> None:
        super().close()
        if self._control is not None:
            *base, separator, host = ssh_base(self.spec, control=Path(self._control.name))
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run([*base, "-O", "exit", separator, host], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, timeout=10, check=False)
            self._control.cleanup()
            self._control = None


@DEVICES.register("adb")
@final
class Adb(AgentDevice):
    """An Android device by adb: adb://SERIAL/RUNTIME?python=PATH; it needs Python, numpy and the runtime."""

    alone_on_host = False

    def start(self) -> Link:
        with tempfile.TemporaryDirectory(prefix="nasvit-agent-") as folder:
            return Link(adb_install(self.spec, write_bundle(Path(folder))), name=self.name)


