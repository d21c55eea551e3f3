"""Device specs: `PLACE[/RUNTIME][?key=value&key=value]`, or a name from the user's devices file. No torch.

Everything that could reach a command line on this or another machine passes an allow-list pattern here, and nothing else does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from nasvit.errors import ConfigError
from nasvit.registry import unknown
from nasvit.whole_file import whole
from nasvit.yaml_file import read_yaml

PLACES = ("cpu", "cuda", "ssh", "adb")
NOISE = ("fail", "keep")
DEFAULT_RUNTIMES = {"cpu": "eager", "cuda": "eager", "ssh": "onnxruntime", "adb": "onnxruntime"}
OWN_SETTINGS = ("threads", "noise", "python", "config")
MOST_THREADS = 1024
DEFAULT_PYTHON = "python3"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_PORT = re.compile(r"[0-9]{1,5}")
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_RUNTIME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_KEY = re.compile(r"[a-z][a-z0-9_]{0,31}")
_VALUE = re.compile(r"[A-Za-z0-9_.,:+-]{1,64}")
_FILE = re.compile(r"[A-Za-z0-9_./+-]{1,255}")
_SPEC_FORM = "PLACE[/RUNTIME][?key=value&key=value], such as cpu, cpu/onnxruntime?threads=4, ssh://pi@raspberry:22/onnxruntime, " \
             "adb://SERIAL/onnxruntime, or a name that `nasvit devices add` gave"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """A parsed spec. settings: what is left for the runtime after threads, noise, python and config were taken out.

    noise: "fail" refuses a figure that stays unstable, "keep" takes the best with its verdict. python: the interpreter on a remote
    target, or here that of a runtime with an environment of its own. config: an ssh configuration file (`ssh -F`).
    """

    place: str
    runtime: str
    host: str = ""
    user: str = ""
    port: int | None = None
    serial: str = ""
    threads: int | None = None
    noise: str | None = None
    python: str = DEFAULT_PYTHON
    config: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def remote(self) -> bool:
        """Whether the target is another machine."""
        return self.place in ("ssh", "adb")

    @property
    def where(self) -> str:
        """The place with its address, without runtime and settings."""
        if self.place == "ssh":
            return f"ssh://{self.user + '@' if self.user else ''}{self.host}{f':{self.port}' if self.port else ''}"
        return f"adb://{self.serial}" if self.place == "adb" else self.place

    def __str__(self) -> str:
        own = {"threads": self.threads, "noise": self.noise, "python": None if self.python == DEFAULT_PYTHON else self.python,
               "config": self.config or None}
        pairs = [f"{key}={value}" for key, value in {**own, **self.settings}.items() if value is not None]
        return f"{self.where}/{self.runtime}" + (f"?{'&'.join(pairs)}" if pairs else "")


def parse(text: str) -> DeviceSpec:
    """The DeviceSpec of a spec, or of a name in the devices file. Raises ConfigError naming the part that is wrong."""
    known = names()
    if text in known:
        return parse_spec(known[text])
    return parse_spec(text, known=known)


def parse_spec(text: str, *, known: Mapping[str, str] | None = None) -> DeviceSpec:
    """`parse` without the devices file; known: names to suggest where the place is unknown."""
    body, _, query = text.partition("?")
    place, separator, rest = body.partition("://")
    if not separator:
        place, _, runtime = body.partition("/")
        rest = "/" + runtime if runtime else ""
    if place not in PLACES:
        raise ConfigError(unknown("device", place, [*PLACES, *(known or {})]) + f"; a device is {_SPEC_FORM}")
    address, _, runtime = rest.partition("/")
    made = DeviceSpec(place=place, runtime=_matching(_RUNTIME, runtime or DEFAULT_RUNTIMES[place], what="runtime", text=text))
    if place in ("ssh", "adb"):
        made = _addressed(made, address, text=text)
    elif separator:
        raise ConfigError(f"device {text!r}: {place} has no address; write {place}/{made.runtime}")
    return _with_settings(made, query, text=text)


def _addressed(spec: DeviceSpec, address: str, *, text: str) -> DeviceSpec:
    if spec.place == "adb":
        return replace(spec, serial=_matching(_SERIAL, address, what="serial", text=text))
    user, separator, host = address.rpartition("@")
    end = host.rfind("]") + 1  # an IPv6 address stands in brackets
    host, colon, port = host[:end] + host[end:].partition(":")[0], ":" in host[end:], host[end:].partition(":")[2]
    number = int(_matching(_PORT, port, what="port", text=text)) if colon else None
    if number is not None and not 0 < number < 65536:
        raise ConfigError(f"device {text!r}: the port must be 1 to 65535, not {number}")
    return replace(spec, host=_matching(_HOST, host, what="host", text=text), port=number,
                   user=_matching(_USER, user, what="user", text=text) if separator else "")


def _with_settings(spec: DeviceSpec, query: str, *, text: str) -> DeviceSpec:
    given: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        key, equals, value = pair.partition("=")
        if not equals or not _KEY.fullmatch(key) or key in given:
            raise ConfigError(f"device {text!r}: settings are key=value joined by &, each key once, not {pair!r}")
        given[key] = _matching(_FILE if key in ("python", "config") else _VALUE, value, what=key, text=text)
    own: dict[str, Any] = {key: given.pop(key) for key in OWN_SETTINGS if key in given}
    if "threads" in own:
        if not own["threads"].isdigit() or not 0 < int(own["threads"]) <= MOST_THREADS:
            raise ConfigError(f"device {text!r}: threads must be a whole number from 1 to {MOST_THREADS}, not {own['threads']}")
        own["threads"] = int(own["threads"])
    if own.get("noise", "fail") not in NOISE:
        raise ConfigError(f"device {text!r}: noise is {' or '.join(NOISE)}, not {own['noise']}")
    if "config" in own and not spec.remote:
        raise ConfigError(f"device {text!r}: config is a setting of remote devices")
    if "python" in own and not spec.remote and (spec.place == "cuda" or "/" not in own["python"]):
        raise ConfigError(f"device {text!r}: python is a setting of remote devices, and on cpu the path of an interpreter for a runtime "
                          "with an environment of its own")
    if own.get("python", "p").startswith("-"):
        raise ConfigError(f"device {text!r}: python is the path of an interpreter, not {own['python']}")
    return replace(spec, **own, settings=given)


def _matching(pattern: re.Pattern[str], value: str, *, what: str, text: str) -> str:
    if not pattern.fullmatch(value):
        raise ConfigError(f"device {text!r}: the {what} {value!r} is not accepted (it must match {pattern.pattern}); a device is "
                          f"{_SPEC_FORM}")
    return value


# ---- the user's devices file -------------------------------------------------------------------------------------------


def devices_file() -> Path:
    """$NASVIT_DEVICES, else nasvit/devices.yaml in the user's configuration folder."""
    given = os.environ.get("NASVIT_DEVICES")
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(given) if given else folder / "nasvit" / "devices.yaml"


def names() -> dict[str, str]:
    """Name to spec, from the devices file; empty where there is none. Raises ConfigError for a file that says anything else."""
    path = devices_file()
    if not path.exists():
        return {}
    data, lines = read_yaml(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: the file must map names to device specs, such as `pi: ssh://pi@raspberry/onnxruntime?threads=4`")
    for name, text in data.items():
        where = f"{path}, line {lines.get((str(name),), 1)}"
        if not isinstance(text, str):
            raise ConfigError(f"{where}: the device {name!r} must be a spec, not {text!r}")
        try:
            check_name(str(name))
            parse_spec(text)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return {str(name): text for name, text in data.items()}


def check_name(name: str) -> None:
    """Raises ConfigError for a name that is no plain word, or stands for a place."""
    if not _NAME.fullmatch(name) or name in PLACES:
        raise ConfigError(f"a device's name is a letter and up to 31 letters, digits, - or _, and none of {', '.join(PLACES)}, "
                          f"not {name!r}")


def save_names(named: Mapping[str, str]) -> Path:
    """Write the devices file whole or not at all; returns its path. Raises ConfigError where it cannot be written."""
    path = devices_file()
    try:
        with whole(path) as temporary:
            temporary.write_text(yaml.safe_dump(dict(named), sort_keys=True, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; set NASVIT_DEVICES to a file that you may write") from None
    return path
