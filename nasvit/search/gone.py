"""A device that goes away in the middle of a search on several: which, and what is left to search by.

The records say it: a failed one holds in its details the latency whose device failed, so that a resumed search knows, too. A device that
is gone stays gone in its run: its column is empty from then on. The last one left never goes this way: its loss ends the search.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nasvit.devices import DeviceFault
from nasvit.errors import DeviceLostError
from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord

FAULTY = "device_of"
"""In a failed record's details: the name of the latency (latency_ms, latency_ms@NAME) whose device was at fault."""


BLAMELESS, UNSETTLED = {"cause": "machine"}, {"cause": "noise"}
"""In a failed record's details: the network is not to blame, its machine was at its end or not there; or too noisy to measure it.
A resumed search forgets it."""


def blameless(record: TrialRecord) -> bool:
    """Whether a failed record says nothing of its network."""
    return unsettled(record) or _says(record, BLAMELESS)


def unsettled(record: TrialRecord) -> bool:
    """Whether it failed because no stable latency was to be had at that moment."""
    return _says(record, UNSETTLED)


def without_machine(records: Sequence[TrialRecord]) -> bool:
    """Whether all failed for want of a machine. Noise is none of that: it passes."""
    return all(_says(record, BLAMELESS) for record in records)


def _says(record: TrialRecord, cause: Mapping[str, str]) -> bool:
    return record.status == "failed" and cause.items() <= record.details.items()


@contextmanager
def blamed(latency: str) -> Iterator[None]:
    """The fault of a device inside carries the name of the latency that it was to measure."""
    try:
        yield
    except (DeviceFault, DeviceLostError) as error:
        error.latency = latency
        raise


def lost(record: TrialRecord) -> str | None:
    """The latency whose device was lost in this trial, "" where the record does not say which; None where none was."""
    return str(record.details.get(FAULTY, "")) if (record.reason or "").startswith(DeviceLostError.__name__) else None


def gone_of(records: Sequence[TrialRecord], experiment: Experiment) -> dict[str, TrialRecord]:
    """The latencies whose devices have left the search, in that order, each with the record that says why."""
    gone: dict[str, TrialRecord] = {}
    for record in records:
        name = lost(record)
        if name and name not in gone and _spared(name, gone, experiment):
            gone[name] = record
    return gone


def _spared(name: str, gone: Collection[str], experiment: Experiment) -> bool:
    """Whether a search can do without this latency's device, too: another one is left, an objective beside the accuracy, and whatever
    measures the peak memory where that is asked for."""
    latencies = {"latency_ms", *(f"latency_ms@{other}" for other in experiment.others)}
    if name not in latencies or not latencies - {name, *gone}:
        return False
    if name == "latency_ms" and "peak_memory_mb" in (*experiment.objectives, *experiment.limits):
        return False
    return len(without(experiment, (name, *gone)).objectives) > 1


def without(experiment: Experiment, gone: Collection[str]) -> Experiment:
    """The experiment with neither objective nor limit on the latencies that are gone."""
    return experiment.model_copy(update={"objectives": tuple(name for name in experiment.objectives if name not in gone),
                                         "limits": {name: value for name, value in experiment.limits.items() if name not in gone}})


def left(experiment: Experiment, gone: Collection[str]) -> Experiment:
    """The experiment on the devices that are left, its first among them."""
    kept = {name: spec for name, spec in experiment.devices.items() if f"latency_ms@{name}" not in gone}
    return without(experiment, gone).model_copy(update={"devices": kept})


def told(name: str, record: TrialRecord, experiment: Experiment) -> str:
    """What the user is told when a device leaves."""
    device = name.partition("@")[2] or next(iter(experiment.devices), experiment.device)
    limit = f", and its limit of {experiment.limits[name]:g} ms is held no more" if name in experiment.limits else ""
    twin = "; a random baseline is not searched, which this device would measure" if (
        name == "latency_ms" and "random" in experiment.baselines) else ""
    return (f"the device {device} is gone since trial {record.trial}: the search goes on without it, {name} stays empty from here "
            f"on{limit}{twin} ({record.reason})")


def summed(gone: Mapping[str, TrialRecord], experiment: Experiment) -> dict[str, Any]:
    """What summary.json says of the devices that are gone."""
    return {name: {"trial": record.trial, "reason": told(name, record, experiment)} for name, record in gone.items()}
