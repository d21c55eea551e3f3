"""Workers on other machines: what a job needs goes along with it, what it made comes back, and latencies are measured beside the driver.

* One process measures, alone, for the whole run: all latencies of a device come from one place, the one whose fingerprint the run recorded.
  It works on the driver's machine, where it shares the machine lock with whatever trains there; the cluster's other machines only train.
* The data set travels once to each node, weights of a checkpoint with their job, new ones back with its record. No file system is shared.
"""

from __future__ import annotations

import atexit
import platform
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nasvit.data import packed
from nasvit.engines import Engine, Node, NoRoomError, parcels
from nasvit.errors import StorageError
from nasvit.results.record import TrialRecord
from nasvit.search.evaluate import Evaluate, Job, Settings, dataset, device, in_two_steps, parcel_of
from nasvit.whole_file import whole

FILES = "run files"
"""The parcel with what a run directory holds before the first trial that jobs read: the dense model of a pruning."""
DENSE = "dense"
MEASURED_AHEAD = 1
"""So many jobs more than there are workers: one is being measured while every worker trains."""


class Elsewhere:
    """`engine` with its workers on other machines, for a driver that has the run directory `out`. `measuring`: one worker on this machine.

    gpus: what each worker has of one, which is then where it trains.
    """

    def __init__(self, engine: Engine, *, measuring: Engine, settings: Settings, gpus: float = 0.0) -> None:
        self.engine, self.measuring = engine, measuring
        self.workers = engine.workers + MEASURED_AHEAD
        self.out = Path(settings.run)
        self.train_on = "cuda" if gpus else device(settings).torch_device
        engine.send(parcel_of(settings), packed(dataset(settings)))
        engine.send(FILES, {path.relative_to(self.out).as_posix(): path.read_bytes()
                            for path in (self.out / "prune.json", *sorted((self.out / DENSE).rglob("*"))) if path.is_file()})

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """As an engine's. A new trial is measured here before it is trained there; what is no Job is done here."""
        if not (args and isinstance(args[0], Job)):
            return self.measuring.submit(fn, *args)
        job, outer = args[0], Future[Any]()
        outer.set_running_or_notify_cancel()
        if job.earlier is None and not job.truth and in_two_steps(fn):
            measured = self.measuring.submit(fn, replace(job, only_gate=True))
            _then(measured, outer, lambda record: self._train(fn, replace(job, gated=record), outer)
                  if record.status == "complete" else outer.set_result(record))
        else:
            self._train(fn, job, outer)
        return outer

    def nodes(self) -> tuple[Node, ...]:
        """The engine's."""
        return self.engine.nodes()

    def shutdown(self, *, cancel: bool) -> None:
        """End both; measuring first, whose results become jobs of the other."""
        self.measuring.shutdown(cancel=cancel)
        self.engine.shutdown(cancel=cancel)

    def _train(self, fn: Evaluate, job: Job, outer: Future[Any]) -> None:
        weights = None
        if job.earlier is not None and job.earlier.checkpoint is not None and (self.out / job.earlier.checkpoint).is_file():
            weights = (self.out / job.earlier.checkpoint).read_bytes()
        there = replace(job, settings=replace(job.settings, train_on=self.train_on))
        _then(self.engine.submit(at_worker, fn, there, weights), outer, lambda found: outer.set_result(self._home(*found)))

    def _home(self, record: TrialRecord, weights: bytes | None) -> TrialRecord:
        if record.checkpoint is not None and weights is not None:
            write_bytes(self.out / record.checkpoint, weights)
        return record


def _then(inner: Future[Any], outer: Future[Any], go_on: Callable[[Any], object]) -> None:
    """With the result of `inner`, go on; whatever goes wrong becomes the error of `outer`."""
    def landed(future: Future[Any]) -> None:
        try:
            go_on(future.result())
        except CancelledError:
            outer.set_exception(CancelledError())
        except Exception as error:  # the future carries it to whoever asked
            outer.set_exception(error)

    inner.add_done_callback(landed)


def write_bytes(path: Path, data: bytes) -> None:
    """The file whole and synced, or not at all. Raises StorageError naming path and cause."""
    try:
        with whole(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; free some space and resume the run") from None


# ---- in the worker ------------------------------------------------------------------------------------------------------


def at_worker(fn: Evaluate, job: Job, weights: bytes | None) -> tuple[TrialRecord, bytes | None]:
    """Do the job in a folder of this worker's own. weights: of its earlier checkpoint; returned beside the record are the new ones."""
    here = _folder(job.settings.run)
    names = [job.earlier.checkpoint] if job.earlier is not None and job.earlier.checkpoint is not None else []
    try:
        if names and weights is not None:
            write_bytes(here / names[0], weights)
        record = fn(replace(job, settings=replace(job.settings, run=str(here))))
        if record.checkpoint is None:
            return record, None
        names.append(record.checkpoint)
        return record, (here / record.checkpoint).read_bytes()
    except StorageError as error:  # this worker's disk, and not the run's
        raise NoRoomError(f"on {platform.node()}: {error}") from error
    finally:
        for name in names:
            (here / name).unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _folder(run: str) -> Path:
    """This process's stand-in for the run directory, with the files that were sent."""
    here = Path(tempfile.mkdtemp(prefix="nasvit-worker-"))
    atexit.register(shutil.rmtree, here, ignore_errors=True)
    for name, data in (parcels.fetched(FILES) or {}).items():
        write_bytes(here / name, data)
    return here
