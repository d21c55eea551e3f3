"""`nasvit profile`: the table of blocks of your device, from measured networks of a search space."""

from __future__ import annotations

import csv
import random
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nasvit.commands.terminal import error_console
from nasvit.errors import ConfigError

if TYPE_CHECKING:  # torch stands behind them
    from nasvit.arch import Arch
    from nasvit.devices import Device, LatencyStats
    from nasvit.latency import LatencyModel
    from nasvit.space import SearchSpace

MINUTES, NETWORKS = 4.5, 240
FIRST, BATCH = 24, 24
"""Networks drawn at random to begin with, and those of a round: every second one drawn, the others the least certain of POOL."""
POOL = 600
SKIPPED = 10
"""So many networks in a row that cannot be measured end a profile."""
CARRIED = 160
"""Networks whose latencies are carried over from known devices."""
MEASURED_LIKE = 10
SEED = 0


def profile(
    space: Annotated[str, typer.Option(help="A space file, or the name of a shipped space.")],
    device: Annotated[str, typer.Option(help="The device, as in `nasvit search`.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="The profile (default: profiles/SPACE-SIZEpx-FINGERPRINT.json); the table of "
                                                  "blocks goes beside it as CSV.")] = None,
    minutes: Annotated[float, typer.Option(min=0.05, help="At most so long.")] = MINUTES,
    networks: Annotated[int, typer.Option(min=10, help="At most so many networks.")] = NETWORKS,
    image_size: Annotated[int | None, typer.Option(help="Side of the images (default: the space's).")] = None,
    like: Annotated[list[Path] | None, typer.Option(help=f"Profile of another, known device with the same space and image size: "
                                                         f"{MEASURED_LIKE} measurements are enough then; may be repeated.")] = None,
) -> None:
    """Measure networks of a space on a device, and learn what each block costs there: a search then rejects before it measures."""
    from nasvit.devices import open_device
    from nasvit.space import SearchSpace

    if out is not None and out.suffix == ".csv":
        raise ConfigError(f"the profile is JSON, and the table of blocks beside it is {out}; give --out {out.with_suffix('.json')}")
    loaded = SearchSpace.load(space, image_size=None if image_size is None else (image_size, image_size))
    known = [_known(path, space=loaded) for path in like or ()]
    with closing(open_device(device)) as target:
        _profile(loaded, target, asked=space, device=device, out=out, minutes=minutes, networks=networks,
                 likes=dict(zip(like or (), known, strict=True)))


def _profile(loaded: SearchSpace, target: Device, *, asked: str, device: str, out: Path | None, minutes: float, networks: int,
             likes: dict[Path, LatencyModel]) -> None:
    from rich.progress import Progress

    from nasvit.errors import DeviceLostError, MeasurementError
    from nasvit.latency import LatencyModel
    from nasvit.models.build import build
    from nasvit.search.restriction import restricted, told

    side = "x".join(map(str, dict.fromkeys(loaded.image_size)))
    place = out or Path("profiles") / f"{loaded.name}-{side}px-{target.fingerprint}.json"
    partial = place.with_suffix(".partial.json")
    for path, other in likes.items():
        if other.about.get("fingerprint") == target.fingerprint:
            raise ConfigError(f"{path} is a profile of this very device ({target.fingerprint}), from which nothing has to be carried over: "
                              f"use it as it is (nasvit search --profile {shlex.quote(str(path))}), or measure anew without --like")
    _check_writable(place)
    target.calibrate()
    loaded, excluded = restricted(loaded, device=target)
    for line in told(excluded):
        typer.echo(line, err=True)
    about = {"space": loaded.name, "device": device, "fingerprint": target.fingerprint, "reference_ms": target.reference_ms,
             "image_size": list(loaded.image_size)}

    skipped: list[str] = []
    row: list[str] = []  # of those skipped, without a measured one between them
    model = LatencyModel(about=about)

    def measure(arch: Arch) -> LatencyStats | None:
        try:
            found = target.measure(build(arch, seed=SEED), input_shape=(1, arch.in_channels, *arch.image_size))
        except DeviceLostError:
            raise
        except MeasurementError as error:
            skipped.append(f"{arch.id}: {error}")
            row.append(arch.id)
            if len(row) >= SKIPPED:
                raise MeasurementError(f"{len(row)} networks in a row could not be measured, the last {skipped[-1]}") from None
            return None
        row.clear()
        return found

    def keep() -> None:
        if model.ready:
            model.save(partial)

    begun = time.monotonic()
    try:
        with Progress(console=error_console, transient=True) as bar:
            task = bar.add_task("measuring networks", total=MEASURED_LIKE if likes else networks)
            if likes:
                carried(model, list(likes.values()), loaded, measure, tick=lambda: bar.advance(task))
            else:
                learned(model, loaded, measure, networks=networks, seconds=60 * minutes, tick=lambda: bar.advance(task), keep=keep)
        model.save(place)
    except BaseException:
        keep()
        if model.ready:
            typer.echo(f"{len(model.observations)} networks are kept in {partial}, a profile like any other", err=True)
        raise
    partial.unlink(missing_ok=True)
    rows = write_table(place.with_suffix(".csv"), model, space=loaded)
    own = sum(not o.carried for o in model.observations)
    typer.echo(f"{place}: {len(model.observations)} networks{f', {own} of them measured' if likes else ''} in "
               f"{time.monotonic() - begun:.0f} s; {rows} blocks in {place.with_suffix('.csv')}")
    if skipped:
        typer.echo(f"{len(skipped)} networks could not be measured and are left out, the last {skipped[-1]}")
    typer.echo(f"nine in ten new networks are expected within {half_width(model, loaded):.1%} of what is predicted")
    words = ["nasvit", "search", "--space", asked, "--device", device, "--profile", str(place)]
    typer.echo(f"use it: {shlex.join(words)}, on images of "
               f"{'x'.join(map(str, loaded.image_size))} px")


def _check_writable(path: Path) -> None:
    """Raises ConfigError where a file cannot be written, before minutes are spent on what goes there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write into {path.parent} ({error.strerror}); give --out a file in a folder that you may write") from None
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, and the profile is a file; give --out {path / 'profile.json'}")


def _known(path: Path, *, space: SearchSpace) -> LatencyModel:
    from nasvit.latency import LatencyModel

    model = LatencyModel.load(path)
    if model.about.get("space") != space.name:
        raise ConfigError(f"{path} is a profile of the space {model.about.get('space')}, not of {space.name}")
    sizes = model.image_sizes
    if sizes != [space.image_size]:
        was = ", ".join(f"{height}x{width}" for height, width in sizes)
        here = "x".join(map(str, space.image_size))
        side = f"--image-size {sizes[0][0]}" if len(sizes) == 1 and sizes[0][0] == sizes[0][1] else "the same --image-size"
        raise ConfigError(f"{path} is a profile at {was} px and this one is to be at {here} px, whose latencies are not alike: give "
                          f"{side}, or profile the known device at {here} px")
    return model


def drawn(space: SearchSpace, count: int, *, seed: int) -> list[Arch]:
    """Different networks of the space; fewer where it has no more."""
    rng, found = random.Random(seed), {}
    for _ in range(20 * count):
        arch = space.sample(rng)
        found[arch.id] = arch
        if len(found) == min(count, space.size()):
            break
    return list(found.values())


def learned(model: LatencyModel, space: SearchSpace, measure: Callable[[Arch], LatencyStats | None], *, networks: int, seconds: float,
            tick: Callable[[], object] = lambda: None, keep: Callable[[], object] = lambda: None) -> None:
    """Measure in rounds: first at random, then half at random, half those that the model is least certain of. `measure` gives None for a
    network that it cannot measure; `keep` is called after each round."""
    tried: set[str] = set()
    ends = time.monotonic() + seconds
    pool = drawn(space, POOL + networks, seed=SEED)
    batch = pool[:FIRST]
    while batch and len(model.observations) < networks:
        for arch in batch[: networks - len(model.observations)]:
            tried.add(arch.id)
            observe(model, arch, measure(arch))
            tick()
            if time.monotonic() > ends and model.ready:
                return
        keep()
        left = [arch for arch in pool if arch.id not in tried]
        if not model.ready:
            batch = left[:FIRST]
            continue
        batch = left[: BATCH // 2]
        rest = left[BATCH // 2 : POOL]
        unsure = [p.high_ms / p.low_ms for p in model.predict_many(rest)]
        batch = batch + [rest[i] for i in sorted(range(len(rest)), key=lambda i: -unsure[i])[: BATCH // 2]]


def carried(model: LatencyModel, known: Sequence[LatencyModel], space: SearchSpace, measure: Callable[[Arch], LatencyStats | None], *,
            tick: Callable[[], object] = lambda: None) -> None:
    """Measure MEASURED_LIKE networks; what is carried over from the known devices stands beside them with its uncertainty."""
    import numpy as np

    from nasvit.latency.transfer import Transfer, features

    archs = drawn(space, POOL, seed=SEED)
    transfer = Transfer(np.array([[p.median_ms for p in m.predict_many(archs)] for m in known]).T, features=features(archs))
    rows = transfer.choose(MEASURED_LIKE, seed=SEED)
    model.about["like"] = [m.about.get("fingerprint") for m in known]
    for row in rows:
        observe(model, archs[row], measure(archs[row]))
        tick()
    measured = {o.arch.id: o.ms for o in model.observations}
    there = [row for row in rows if archs[row].id in measured]
    transfer.fit(there, [measured[archs[row].id] for row in there])
    others = [i for i in range(len(archs)) if i not in rows][:CARRIED]
    for i, ms, deviation in zip(others, *transfer.predict(others), strict=True):
        model.observe(archs[i], float(ms), error=1.645 * float(deviation), carried=True)


def observe(model: LatencyModel, arch: Arch, stats: LatencyStats | None) -> None:
    """Add a measurement, where there is one, with its half width."""
    if stats is not None:
        model.observe(arch, stats.median_ms, error=stats.half_width)


def half_width(model: LatencyModel, space: SearchSpace) -> float:
    """The median half width of the interval over new networks, as a share."""
    found = sorted((p.high_ms - p.low_ms) / 2 / p.median_ms for p in model.predict_many(drawn(space, 100, seed=SEED + 1)))
    return found[len(found) // 2]


def write_table(path: Path, model: LatencyModel, *, space: SearchSpace) -> int:
    """CSV of every block that occurs in networks of the space: name, ms, low_ms, high_ms; how many."""
    table = model.table([*(o.arch for o in model.observations), *drawn(space, POOL, seed=SEED)])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("block", "ms", "low_ms", "high_ms"))
        for key, cost in sorted(table.items()):
            writer.writerow((key, *(f"{value:.5g}" for value in (cost.median_ms, cost.low_ms, cost.high_ms))))
    return len(table)
