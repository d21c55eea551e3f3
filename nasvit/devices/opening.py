"""Opens a device by its spec: the place, the runtime, and which of them work through the agent."""

from __future__ import annotations

from nasvit.devices.base import DEVICES, Device
from nasvit.devices.remote import LocalAgent
from nasvit.devices.spec import DEFAULT_PYTHON, DeviceSpec, parse
from nasvit.errors import ConfigError
from nasvit.runtimes import RUNTIMES, FileRuntime, Runtime, make_runtime


def open_device(spec: str, *, threads: int = 1, reference_ms: float | None = None) -> Device:
    """The device of a spec `PLACE[/RUNTIME][?key=value&..]` (default runtime: eager, on remote places onnxruntime), or of a name in
    the user's devices file; see `nasvit.devices.spec`.

    threads: where the spec says none. reference_ms: the run's calibrated scale; without it the device calibrates itself at the first
    measurement. Raises ConfigError for an unknown or absent place, an unknown or absent runtime, or settings out of range.
    """
    parsed = parse(spec)
    kind, runtime = resolved(parsed)
    runtime.check()
    return kind(spec=parsed, runtime=runtime, threads=parsed.threads or threads, reference_ms=reference_ms)


def resolved(parsed: DeviceSpec) -> tuple[type[Device], Runtime]:
    """The place and the runtime of a spec, whether or not they are there now. Raises ConfigError for an unknown runtime, for a setting that
    it does not take, and for a place that it does not run on."""
    kind = DEVICES[parsed.place]
    runtime = make_runtime(parsed.runtime, **_settings(parsed))
    if parsed.remote and not isinstance(runtime, FileRuntime):
        travelling = [name for name in RUNTIMES if issubclass(RUNTIMES[name], FileRuntime)]
        raise ConfigError(f"device '{parsed}': {parsed.runtime} runs inside this process only; a remote device takes "
                          f"{', '.join(travelling)}")
    if kind.torch_device not in runtime.devices:
        raise ConfigError(f"device '{parsed}': {parsed.runtime} does not run on {parsed.place} (it runs on {', '.join(runtime.devices)})")
    if parsed.place == "cpu" and isinstance(runtime, FileRuntime):
        kind = LocalAgent
    return kind, runtime


def _settings(parsed: DeviceSpec) -> dict[str, str]:
    """The runtime's settings: on this machine the interpreter, too, for a runtime that has an environment of its own."""
    if parsed.place != "cpu" or parsed.python == DEFAULT_PYTHON:
        return dict(parsed.settings)
    return {**parsed.settings, "python": parsed.python}
