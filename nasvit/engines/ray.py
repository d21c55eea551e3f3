"""The engine of a cluster: Ray actors, on a cluster named by RAY_ADDRESS or on a local one started for this run.

The only file of the engines that imports ray, and only when the engine is made: the import costs half a second, a local start four.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nasvit.engines import parcels
from nasvit.engines.base import (
    ENGINES,
    NO_LIMITS,
    Engine,
    JobLimits,
    Node,
    NoRoomError,
    OverLimitError,
    WorkerError,
    portable,
    resident_mb,
    told,
)
from nasvit.engines.ray_access import HELP, check_reachable, check_start, check_token, running_cluster
from nasvit.errors import ConfigError, NasvitError

OBJECT_STORE_BYTES = 100 * 1024**2
LOOK_SECONDS = 2.0
"""So often a running function is looked at; by a thread for each worker, so that a thousand of them must not ask often."""
GENTLY_SECONDS = 5.0
"""A worker that is no longer needed may take so long to clean up behind itself."""
STARTS = 3
"""So many starts of an actor that fail in a row, and a job is failed with their reason."""
ROOM_SECONDS = 600.0
"""So long without room for a single worker, and jobs are failed. A cluster that grows has had its time."""


@ENGINES.register("ray")
class RayEngine(Engine):
    """Workers on a Ray cluster, a running one or one that is started on this machine.

    `workers` actors that stay, one CPU and `gpus` of a GPU each. `address`: "auto", "host:port" or "ray://host:port" of a running cluster;
    None: RAY_ADDRESS, else a local one. Nodes may come and go: `workers` is the most that are used, jobs go to those that have room, and an
    actor that is lost with its node is started anew where there is room. Raises ConfigError for a cluster that others can reach and that is
    joined without a token.
    """

    def __init__(self, workers: int, *, limits: JobLimits = NO_LIMITS, address: str | None = None, gpus: float = 0.0) -> None:
        check_start(address, gpus=gpus)
        address = running_cluster(address)
        self.elsewhere = address is not None
        self.workers, self.limits = workers, limits
        self._ray, self._started = _connected(address, workers=workers)
        self._parcels: dict[str, Any] = {}
        # a second thread of the actor tells its memory while the first one works
        self._ray.method(concurrency_group="watch")(_Actor.resident_mb)
        # of a cluster, each worker takes its share; a local one is there for the workers alone
        self._share: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus} if self.elsewhere else {"num_cpus": 0, "num_gpus": gpus}
        if self.elsewhere and limits.memory_mb is not None:
            self._share["memory"] = int(1e6 * limits.memory_mb)
        self._actor = self._ray.remote(max_restarts=0, concurrency_groups={"watch": 1}, **self._share)(_Actor)
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._open, self._cancelled = True, False
        self._slots = [_Slot() for _ in range(workers)]
        self._alone_since = time.monotonic()  # when there was last room for a worker
        self._threads = [threading.Thread(target=self._serve, args=(slot,), daemon=True, name=f"nasvit-ray-{number}")
                         for number, slot in enumerate(self._slots)]
        self._begun = False  # with the first job

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            payload = pickle.dumps((fn, args))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise WorkerError(f"{told(fn)} and its arguments must be picklable to run in another process: {error}") from error
        with self._changed:
            if not self._open:
                raise RuntimeError("the engine is shut down")
            self._jobs.append(_Job(told(fn), payload, future))
            self._changed.notify()
            if not self._begun:
                self._begun, self._alone_since = True, time.monotonic()
                for thread in self._threads:
                    thread.start()
        return future

    def send(self, name: str, value: Any) -> None:
        """Through the object store: it reaches a node once, when the first worker there asks for it.

        Raises ConfigError where it does not fit.
        """
        try:
            self._parcels[name] = self._ray.put(value)
        except self._ray.exceptions.RayError as error:
            raise ConfigError(f"the cluster's object store cannot take the {name} ({_last_line(error)}); start the nodes with a larger "
                              "--object-store-memory") from error

    def nodes(self) -> tuple[Node, ...]:
        ready = [slot for slot in self._slots if slot.node]
        return tuple(Node(name=name, workers=sum(s.node == name for s in ready), busy=sum(s.node == name and s.busy for s in ready))
                     for name in sorted({slot.node for slot in ready}))

    def shutdown(self, *, cancel: bool) -> None:
        with self._changed:
            first, self._open = self._open, False
            self._cancelled = self._cancelled or cancel
            self._changed.notify_all()
        for thread in self._threads if self._begun else ():
            thread.join()
        if first and self._started:
            self._ray.shutdown()

    # ---- one slot ---------------------------------------------------------------------------------------------------------

    def _serve(self, slot: _Slot) -> None:
        """The life of one slot: have an actor, take a job, have it done. Only an actor that is there takes a job: where the cluster has no
        room the job goes to another."""
        while True:
            try:
                if not self._manned(slot):
                    break
                job = self._take()
            except Exception as error:  # a thread that ends here would leave jobs lying for ever; what stops one stops all that wait
                while (job := self._take(wait=False)) is not None:
                    job.future.set_exception(error if isinstance(error, NasvitError) else _broken(job.name, error))
                continue
            if job is None:
                break
            slot.busy = True
            try:
                answer = self._run(slot, job)
                if answer is not None:
                    _settle(job, answer)
            except Exception as error:  # whatever it is: a thread that ends here would leave the future open for ever
                job.future.set_exception(error if isinstance(error, (NasvitError, CancelledError)) else _broken(job.name, error))
            finally:
                slot.busy = False
        if self._cancelled:
            self._take(wait=False)  # cancels what nobody has taken
        self._drop(slot, gently=not self._cancelled)

    def _take(self, *, wait: bool = True) -> _Job | None:
        """The next job that is not cancelled; None when the engine is shut down and nothing is left, or, not to `wait`, where none is."""
        with self._changed:
            while True:
                while not self._jobs:
                    if not self._open or not wait:
                        return None
                    self._changed.wait()
                job = self._jobs.popleft()
                if self._cancelled:
                    job.future.cancel()
                if job.future.running():  # given back by a slot whose actor was gone
                    if not self._cancelled:
                        return job
                    job.future.set_exception(CancelledError())
                elif job.future.set_running_or_notify_cancel():
                    return job

    def _wanted(self) -> bool:
        with self._changed:
            return not self._cancelled and (self._open or bool(self._jobs))

    def _manned(self, slot: _Slot) -> bool:
        """Whether the slot has an actor that answers; waits for one as long as jobs may come.

        Raises WorkerError where none can be started, or there has been no room for any worker of the engine for a long time.
        """
        while slot.actor is None or not slot.node:
            if not self._wanted():
                return False
            if slot.actor is None:
                slot.actor = self._actor.remote()
                slot.ready = slot.actor.ready.remote()
            if any(s.node for s in self._slots):
                self._alone_since = time.monotonic()
            elif time.monotonic() - self._alone_since > ROOM_SECONDS:
                self._alone_since = time.monotonic()
                raise NoRoomError(f"the Ray cluster has had no room for a worker for {ROOM_SECONDS:g} s: each asks for {self._share}, and "
                                  f"there is {self._ray.cluster_resources()}; start nodes, or ask for less")
            try:
                if self._ray.wait([slot.ready], timeout=LOOK_SECONDS)[0]:
                    slot.node = self._name_of(str(self._ray.get(slot.ready)))
                    slot.failures = 0
            except self._ray.exceptions.RayError as error:
                self._drop(slot)
                slot.failures += 1
                if slot.failures >= STARTS and not any(s.node for s in self._slots):
                    slot.failures = 0
                    raise NoRoomError("Ray cannot start a worker; is this nasvit installed on every node? "
                                      f"({_last_line(error)})") from error
                time.sleep(LOOK_SECONDS)
        return True

    def _name_of(self, node: str) -> str:
        """The node's address and the beginning of its id, for nodes that share an address."""
        address = next((known["NodeManagerAddress"] for known in self._ray.nodes() if known["NodeID"] == node), "node")
        return f"{address}-{node[:4]}"

    def _run(self, slot: _Slot, job: _Job) -> bytes | None:
        """The answer of the slot's actor; None where it was gone before the job was begun, which then goes to another slot.

        Raises WorkerError where the actor dies, OverLimitError where the job passes a limit.
        """
        actor, begun_with = slot.actor, False
        try:
            self._awaited(slot, actor.ready.remote(), job=None)
            begun_with = True
            return self._awaited(slot, actor.answer.remote(job.payload, dict(self._parcels)), job=job)  # type: ignore[no-any-return]
        except self._ray.exceptions.RayError as error:
            self._drop(slot)
            if not begun_with:
                with self._changed:
                    self._jobs.appendleft(job)
                    self._changed.notify()
                return None
            raise WorkerError(f"the Ray worker running {job.name} died ({type(error).__name__}); another takes its place. "
                              "Was the memory exhausted, or a node lost?") from error

    def _awaited(self, slot: _Slot, answer: Any, *, job: _Job | None) -> Any:
        begun = time.monotonic()
        while not self._ray.wait([answer], timeout=LOOK_SECONDS)[0]:
            if self._cancelled:
                self._drop(slot)
                raise CancelledError
            broken = None if job is None else self.limits.broken(seconds=time.monotonic() - begun, memory_mb=self._memory_mb(slot.actor))
            if broken is not None and job is not None:
                self._drop(slot)
                raise OverLimitError(f"{job.name} was ended, because {broken}")
        return self._ray.get(answer)

    def _memory_mb(self, actor: Any) -> float:
        if self.limits.memory_mb is None:
            return 0.0
        told_mb = actor.resident_mb.remote()
        done, _ = self._ray.wait([told_mb], timeout=2 * LOOK_SECONDS)
        return float(self._ray.get(told_mb)) if done else 0.0  # a worker too busy to tell is asked again

    def _drop(self, slot: _Slot, *, gently: bool = False) -> None:
        """End the slot's actor; another is started before the next job. Gently: it may clean up behind itself, which a kill prevents."""
        actor, slot.actor, slot.node = slot.actor, None, ""
        if actor is None:
            return
        if gently:
            with suppress(self._ray.exceptions.RayError):
                self._ray.wait([actor.__ray_terminate__.remote()], timeout=GENTLY_SECONDS)
        self._ray.kill(actor, no_restart=True)


@dataclass(slots=True)
class _Slot:
    """One worker's place. node: where its actor is; empty while it has none that answers."""

    actor: Any = None
    ready: Any = None
    node: str = ""
    busy: bool = False
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    payload: bytes
    future: Future[Any]


class _Actor:
    """In the worker: does one job after the other with one torch thread, as each owns one CPU."""

    def __init__(self) -> None:
        self._sent: dict[str, Any] = {}
        self._known: dict[str, Any] = {}
        parcels.use(self._fetch)

    def _fetch(self, name: str) -> Any:
        import ray

        if name in self._sent and name not in self._known:
            self._known[name] = ray.get(self._sent[name])
        return self._known.get(name)

    def ready(self) -> str:
        """The id of the node where it lives."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def answer(self, payload: bytes, sent: dict[str, Any]) -> bytes:
        """(True, result) or (False, exception), pickled: an exception keeps its type this way. sent: where parcels are in the store."""
        self._sent = sent
        try:
            fn, args = pickle.loads(payload)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)
            return pickle.dumps((True, fn(*args)))
        except Exception as error:  # handed to the caller in the future
            return pickle.dumps((False, portable(error)))

    def resident_mb(self) -> float:
        """Memory of this worker in MB."""
        return resident_mb(os.getpid())


def _settle(job: _Job, answer: bytes) -> None:
    ok, value = pickle.loads(answer)
    if ok:
        job.future.set_result(value)
    else:
        job.future.set_exception(value)


def _broken(name: str, error: Exception) -> WorkerError:
    return WorkerError(f"Ray could not run {name} ({type(error).__name__}: {error})")


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:300]


def _connected(address: str | None, *, workers: int) -> tuple[Any, bool]:
    """ray, connected, and whether it was here that it was connected. Raises ConfigError where it cannot be, or must not be."""
    if address not in (None, "auto"):
        check_reachable(address)
        check_token(address)
    ray = _import()
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"address": address} if address else {
        "address": "local", "num_cpus": workers, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
        if address == "auto":
            check_token(ray.get_runtime_context().gcs_address)
    except ConfigError:
        ray.shutdown()
        raise
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(f"the Ray cluster at {address} does not take this process's token ({_last_line(error)}); {HELP}") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        which = f"at {address}" if address else "of this machine"
        hint = f"; it may ask for another token than this process has: {HELP}" if address else ""  # Ray names the token in its log alone
        raise ConfigError(f"the Ray cluster {which} cannot be used: {_last_line(error)}{hint}") from error
    return ray, True


def _import() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray asks for this choice with a warning otherwise
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"the engine ray needs the package ray ({error}); install it, or use the engine processes") from error
    return ray
