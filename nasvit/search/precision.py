"""The end of a search whose device does not compute in float32: what the networks of its front score in that precision.

Each is asked from its checkpoint, in the device's runtime on this machine, on the same validation images as float32 beside it. The
figures stand in precision.json; a network without one stands there with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nasvit.data.augment import Normaliser
from nasvit.devices import machine_lock, open_device
from nasvit.errors import NasvitError, RunError
from nasvit.models.deploy import deploy
from nasvit.results.front import pareto
from nasvit.results.record import TrialRecord
from nasvit.runtimes import Runtime
from nasvit.runtimes.accuracy import RuntimeAccuracy, quantised_accuracy, spread
from nasvit.search.directory import write_json
from nasvit.search.evaluate import Settings, dataset, trained
from nasvit.whole_file import read_json


def told(precisions: Mapping[str, str], *, pruning: bool = False) -> tuple[str, ...]:
    """One line for each device that computes in another precision, before anything is spent. Of a pruning the result alone is asked."""
    asked = "the result scores" if pruning else "those of the front score"
    return tuple(f"{latency} is of {precision}, and networks are trained and ranked by their accuracy in fp32; what {asked} in {precision} "
                 "is measured at the end" for latency, precision in precisions.items())


def measure_front(records: Sequence[TrialRecord], *, settings: Settings, names: Sequence[str], precisions: Mapping[str, str], path: Path,
                  told: Callable[[str], object] = lambda text: None) -> dict[str, Any]:
    """Write precision.json for the front of `names` and return what summary.json says of it: figures by the latency's name.

    precisions: the precision by the latency's name. What the file has already, at the same rung, is not computed again. told hears how
    far it is.
    """
    front, began = pareto(records, names), time.monotonic()
    points = {(p["latency"], p["trial"], p["rung"]): p for p in read_json(path).get("points", []) if "accuracy" in p}
    specs = {"latency_ms": settings.device, **{f"latency_ms@{name}": spec for name, (spec, _, _) in settings.others.items()}}
    found = {}
    for latency, precision in precisions.items():
        target = open_device(specs[latency], threads=1)  # it is not reached: its runtime computes here
        keys = [(latency, record.trial, record.rung) for record in front]
        for number, (key, record) in enumerate(zip(keys, front, strict=True), start=1):
            if key in points:
                continue
            told(f"accuracy in {precision}: network {number} of {len(front)} of the front")
            points[key] = {"latency": latency, "precision": precision, "device": str(target.spec), "elsewhere": target.spec.remote,
                           "trial": record.trial, "arch_id": record.arch_id, "rung": record.rung,
                           **_figures(record, settings=settings, runtime=target.runtime, threads=target.threads)}
            write_json(path, {"points": list(points.values())})
        found[latency] = {"precision": precision, **_summed([points[key] for key in keys])}
    return {**found, "seconds": time.monotonic() - began}


def _figures(record: TrialRecord, *, settings: Settings, runtime: Runtime, threads: int) -> dict[str, Any]:
    """The accuracies of one network, or the reason why there are none."""
    try:
        found = _accuracy(record, settings=settings, runtime=runtime, threads=threads)
    except NasvitError as error:
        return {"reason": str(error)[:500]}
    return {"accuracy": found.runtime, "accuracy_fp32": found.eager, "same_class": found.same, "images": found.images}


def _accuracy(record: TrialRecord, *, settings: Settings, runtime: Runtime, threads: int) -> RuntimeAccuracy:
    if not record.has_arch:
        raise RunError("a pruned network's accuracy is measured in float32 alone")
    module = trained(record, settings)
    data = dataset(settings)
    chosen = spread(len(data.val))
    with machine_lock.training():  # computing is work too: it would disturb another run's measurement
        images = Normaliser.of(data.mean, data.std, device="cpu")(data.val.images[chosen])
        return quantised_accuracy(deploy(module), runtime=runtime, images=images, labels=data.val.labels[chosen], threads=threads)


def _summed(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """networks with an accuracy of their own, how many have none, and the most that one lost against float32 on the same images."""
    done = [p for p in points if "accuracy" in p]
    return {"networks": len(done), "missing": len(points) - len(done),
            **({"largest_loss": max(p["accuracy_fp32"] - p["accuracy"] for p in done)} if done else {})}
