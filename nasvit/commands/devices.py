"""`nasvit devices`: lists, checks and names the devices of the user's file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nasvit.commands.terminal import out_console
from nasvit.errors import ConfigError, MeasurementError, RunError
from nasvit.registry import unknown

if TYPE_CHECKING:  # torch stands behind them
    from nasvit.devices import Device

ACTIONS = ("list", "add", "check", "remove")


def devices(
    action: Annotated[str, typer.Argument(help="list, add, check or remove.")] = "list",
    name: Annotated[str | None, typer.Argument(help="The name of a device; for check a spec will do.", show_default=False)] = None,
    spec: Annotated[str | None, typer.Argument(help="For add: PLACE[/RUNTIME][?key=value&..], such as "
                                                    "ssh://pi@raspberry/onnxruntime?threads=4.", show_default=False)] = None,
) -> None:
    """List the devices that have names; add, check or remove one. A name can be used wherever a device is asked for."""
    if action not in ACTIONS:
        raise ConfigError(unknown("action", action, list(ACTIONS)))
    wanted = {"list": 0, "add": 2, "check": 1, "remove": 1}[action]
    given = [text for text in (name, spec) if text is not None]
    if len(given) != wanted:
        form = {"list": "", "add": " NAME SPEC", "check": " NAME", "remove": " NAME"}[action]
        raise ConfigError(f"write `nasvit devices {action}{form}`")
    if action == "list":
        _list()
    elif action == "add":
        _add(*given)
    elif action == "remove":
        _remove(*given)
    else:
        _check(*given)


def _list() -> None:
    from nasvit.devices.spec import devices_file, names

    named = names()
    typer.echo(f"{devices_file()}: {len(named)} devices")  # not in the table, which breaks a path where the terminal ends
    if not named:
        typer.echo("add one: nasvit devices add pi \"ssh://pi@raspberry/onnxruntime?threads=4\"")
        return
    table = Table("name", "spec", box=None, header_style="dim")
    for name, spec in sorted(named.items()):
        table.add_row(name, spec)
    out_console.print(table)


def _add(name: str, spec: str) -> None:
    from nasvit.devices.opening import resolved
    from nasvit.devices.spec import check_name, names, parse_spec, save_names

    check_name(name)
    parsed = parse_spec(spec)
    resolved(parsed)
    path = save_names({**names(), name: str(parsed)})
    typer.echo(f"{name} is {parsed} ({path}); look whether it works with `nasvit devices check {name}`")


def _remove(name: str) -> None:
    from nasvit.devices.spec import names, save_names

    named = names()
    if name not in named:
        raise ConfigError(unknown("device", name, sorted(named)))
    path = save_names({key: spec for key, spec in named.items() if key != name})
    typer.echo(f"{name} is removed from {path}")


def _check(name: str) -> None:
    """Reach it, compare the reference network's output with eager's, measure that network twice; says what was found."""
    from nasvit.devices import open_device

    begun = time.perf_counter()
    target = open_device(name)
    try:
        about = target.describe()
        reached_s = time.perf_counter() - begun
        typer.echo(f"{target.spec}: {about['cpu']}, {about['cores']} cores, {about['system']}, {about['runtime_version']}, reached in "
                   f"{reached_s:.1f} s")
        shown = {key: about[key] for key in ("governor", "frequency_mhz", "temperature_c", "load_average", "available_mb")}
        typer.echo("state: " + ", ".join(f"{key} {_short(value)}" for key, value in shown.items()))
        _check_outputs(target)
        _check_times(target)
    finally:
        target.close()
    typer.echo(f"well: fingerprint {about['fingerprint']}")


def _check_outputs(target: Device) -> None:
    from nasvit.devices.remote import AgentDevice

    if not isinstance(target, AgentDevice):
        return
    import numpy as np
    import torch

    from nasvit.devices.reference import make_reference
    from nasvit.runtimes.parity import BOUND

    module, image = make_reference()
    with torch.inference_mode():
        wanted = module(image).numpy()
    (found,) = target.outputs(module, image=image)
    if found.shape != wanted.shape:
        raise MeasurementError(f"{target.spec}: the reference network's output has shape {found.shape}, eager's {wanted.shape}")
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    typer.echo(f"output of the reference network: largest difference to eager {difference:.1e}")
    if not difference <= BOUND and target.spec.settings.get("precision", "fp32") == "fp32":
        raise MeasurementError(f"{target.spec}: the reference network's output differs from eager's by {difference:.1e} (accepted: "
                               f"{BOUND:.0e}); this runtime does not compute what it should there")


def _check_times(target: Device) -> None:
    from nasvit.devices.reference import make_reference

    module, image = make_reference()
    scale = target.calibrate()
    first, second = (target.measure(module, input_shape=tuple(image.shape)) for _ in range(2))
    gap = abs(first.median_ms - second.median_ms) / min(first.median_ms, second.median_ms)
    typer.echo(f"reference network: {scale:.3f} ms; measured twice as a candidate: {first.median_ms:.3f} and {second.median_ms:.3f} ms "
               f"({gap:.1%} apart; {first.verdict}, {second.verdict})")
    if gap > max(first.half_width, second.half_width):
        raise RunError(f"{target.spec}: two measurements of one network lie {gap:.1%} apart; end what else runs there, and check again")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(_short(v) for v in value)
    return "not told" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
