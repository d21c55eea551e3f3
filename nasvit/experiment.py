"""Experiment: everything a search needs to know, as frozen data, from a YAML file and the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nasvit.allowance import usable_cores
from nasvit.errors import ConfigError
from nasvit.registry import unknown
from nasvit.results.objectives import OBJECTIVES, objective
from nasvit.yaml_file import read_yaml

LIMITED = ("latency_ms", "macs_g", "params_m", "peak_memory_mb")
"""What a limit can stand on: each of these is measured or counted before a network is trained."""

_UNITS: dict[str, dict[str, float]] = {  # suffix (lower case) -> factor to the unit in the objective's name
    "latency_ms": {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3},
    "macs_g": {"": 1.0, "g": 1.0, "m": 1e-3, "k": 1e-6},
    "params_m": {"": 1.0, "g": 1e3, "m": 1.0, "k": 1e-3},
    "peak_memory_mb": {"": 1.0, "mb": 1.0, "gb": 1e3, "kb": 1e-3},
}
_EXAMPLES = {"latency_ms": "8ms, 0.5s, 800us", "macs_g": "300M, 0.3G", "params_m": "5M, 200k", "peak_memory_mb": "512MB, 1GB"}


def parse_limit(text: str | float, *, name: str = "latency_ms") -> tuple[str, float]:
    """`parse_limit("8ms") == ("latency_ms", 8.0)`; `parse_limit("300M", name="macs_g") == ("macs_g", 0.3)`.

    `8ms@pi`, or the name `latency_ms@pi`, is on the latency of device pi. A bare number is in the unit of the name. Raises ConfigError
    for another name, another unit or a number not above 0.
    """
    name, at, device = name.partition("@")
    if isinstance(text, str) and "@" in text:
        text, at, device = text.partition("@")
    if name not in _UNITS or (at and (name != "latency_ms" or not device.strip())):
        raise ConfigError(unknown("limit", f"{name}{at}{device}", [*LIMITED, "latency_ms@DEVICE"]))
    match = None if isinstance(text, bool) else re.fullmatch(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*([A-Za-z]*)\s*", str(text))
    factor = _UNITS[name].get(match.group(2).lower()) if match else None
    value = float(match.group(1)) * factor if match and factor is not None else 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"the limit {text!r} on {name} cannot be read; write a number above 0 with its unit, such as {_EXAMPLES[name]}")
    return name + at + device.strip(), value


def each_once(limits: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Limits by name; raises ConfigError where two are on one: neither is more likely to be meant."""
    found: dict[str, Any] = {}
    for name, value in limits:
        if name in found:
            raise ConfigError(f"two limits on {name}, {found[name]} and {value}; leave one of them away")
        found[name] = value
    return found


def named_device(text: str) -> tuple[str, str]:
    """`pi=ssh://pi@10.0.0.7` is (name, spec); without a name, the device's own spec is one, its signs as underscores."""
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9_-]{0,31})=(.+)", text)
    if match:
        return match.group(1), match.group(2)
    return re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_")[:32], text


def places(given: Sequence[str]) -> dict[str, Any]:
    """The keys of an experiment that devices on the command line set: nothing, `device`, or `devices` by name."""
    if not given:
        return {}
    named = [named_device(text) for text in given]
    if len(named) == 1 and "=" not in given[0].partition("?")[0]:
        return {"device": given[0], "devices": {}}
    if len({name for name, _ in named}) < len(named):
        raise ConfigError(f"two devices have one name: {', '.join(name for name, _ in named)}; name them, as in "
                          "--device pi=cpu/onnxruntime")
    return {"devices": dict(named)}


EMBEDDED = "digits"
"""The data that need no path."""


class Experiment(BaseModel):
    """One search, resolved. Frozen; an unknown key is refused.

    space: path of a search space, or the name of a shipped one. data, device: what `nasvit list` names, or a path.
    devices: name to spec, where every network is measured on several: the first is the `device`, the others' latencies are the objectives
    latency_ms@NAME. profile: from `nasvit profile`, for the device, or by the devices' names.
    budget: distinct architectures to evaluate. minutes: stops earlier. limits: name to its largest value, in the name's unit.
    ray_address: "auto", HOST:PORT or ray://HOST:PORT of a running cluster, for the engine ray (None: RAY_ADDRESS, else a local one);
    gpus_per_worker: what each of its workers reserves.
    job_minutes, job_memory_gb: what one evaluation at one rung may take before its worker is ended and the trial recorded as failed;
    memory None: nine tenths of the machine's or container's, shared by the workers (processes; on a cluster no limit). The engine inline
    holds neither.
    rungs: cumulative training steps at each rung; None: as many as a first network needs to learn (`nasvit.search.pilot`). eta: one of
    `eta` results of a rung is promoted to the next; 2, as the default rungs double.
    recipe: settings of the training loop that differ from its defaults. image_size: (H, W); None takes the allowed size
    nearest above the data's own. baselines: "random" or "timm:NAME".
    stop: "budget", or "plateau" to end earlier where the next tenth of the budget is expected to add under half a percent of hypervolume.
    scores: zero-cost proxies that the sampler surrogate learns from (`nasvit list proxies`). truth: share of the search's training steps
    that is spent on top, at its end, to see whether its short trainings rank networks as a longer one does; 0 switches that off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    first_rung: ClassVar[int] = 1
    paths: ClassVar[tuple[str, ...]] = ("space", "data", "profile")
    missing: ClassVar[str] = "give the path of a search space or the name of a shipped one"
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    space: str
    data: str = EMBEDDED
    device: str = "cpu"
    devices: dict[str, str] = Field(default_factory=dict)
    profile: str | dict[str, str] | None = None
    budget: int = Field(default=60, ge=1, le=1_000_000)
    minutes: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**31)
    objectives: tuple[str, ...] = ("accuracy", "latency_ms")
    limits: dict[str, float] = Field(default_factory=dict)
    sampler: str = "surrogate"
    engine: str = "processes"
    workers: int = Field(default_factory=usable_cores, ge=1, le=10_000)
    ray_address: str | None = None
    gpus_per_worker: float = Field(default=0.0, ge=0, le=64)
    job_minutes: float = Field(default=60.0, gt=0)
    job_memory_gb: float | None = Field(default=None, gt=0)
    rungs: tuple[int, ...] | None = None
    eta: int = Field(default=2, ge=2, le=100)
    recipe: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    baselines: tuple[str, ...] = ()
    stop: Literal["budget", "plateau"] = "budget"
    scores: tuple[str, ...] = ()
    truth: float = Field(default=0.2, ge=0, le=10)

    @model_validator(mode="before")
    @classmethod
    def _several_devices(cls, raw: Any) -> Any:
        """The first of `devices` is the device; the others are objectives where latency is one, and limits name any of them."""
        if not isinstance(raw, Mapping):
            return raw
        given = dict(raw)
        devices = given.get("devices") or {}
        if not isinstance(devices, Mapping) or not all(isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", str(k))
                                                       for k, v in devices.items()):
            raise ValueError(f"devices must map names (letters, digits, - and _) to device specs, not {devices!r}")
        first = next(iter(devices), "")
        if devices:
            given["device"] = devices[first]
            asked = given.get("objectives") or ("accuracy", "latency_ms")
            names = tuple(asked) if isinstance(asked, list | tuple) else ()  # anything else is refused below, by its field
            more = [f"latency_ms@{name}" for name in devices if name != first]
            if "latency_ms" in names and not any("@" in str(name) for name in names):
                names = (*names, *more)
            if names:
                given["objectives"] = tuple("latency_ms" if name == f"latency_ms@{first}" else name for name in names)
        if isinstance(given.get("limits"), Mapping):
            try:
                given["limits"] = _of_first(given["limits"], given)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return given

    @model_validator(mode="after")
    def _measured(self) -> Experiment:
        """A latency that no device of the search measures is neither objective nor limit."""
        names = list(self.devices) or [self.device]
        for what in (*self.objectives, *self.limits):
            at = what.partition("@")[2]
            if at and at not in names[1:]:
                raise ValueError(f"the latency on {at!r} is not measured in this search; measured: {', '.join(names)}; add it to the "
                                 f"devices (--device {at}=SPEC), or leave {what} away")
        return self

    @property
    def others(self) -> dict[str, str]:
        """The further devices: name to spec."""
        return dict(list(self.devices.items())[1:])

    @field_validator("objectives")
    @classmethod
    def _objectives(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        accepted = ", ".join(sorted(OBJECTIVES))
        try:
            for name in names:
                objective(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if len(set(names)) != len(names) or len(names) < 2 or "accuracy" not in names:
            raise ValueError(f"needs accuracy and at least one other objective, each once (accepted: {accepted})")
        return names

    @field_validator("limits", mode="before")
    @classmethod
    def _limits(cls, limits: Any) -> Any:
        if not isinstance(limits, Mapping):
            raise ValueError(f"must map a name to its largest value (accepted: {', '.join(LIMITED)})")
        try:
            return dict(parse_limit(value, name=str(name)) for name, value in limits.items())
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("rungs")
    @classmethod
    def _rungs(cls, rungs: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if rungs is None:
            return None
        if not rungs or rungs[0] < cls.first_rung or any(b <= a for a, b in pairwise(rungs)):
            raise ValueError("must be training steps that grow from rung to rung, such as [60, 180, 540]")
        return rungs

    @field_validator("recipe", mode="before")
    @classmethod
    def _recipe(cls, recipe: Any) -> Any:
        return cls.numbers(recipe)

    @staticmethod
    def numbers(recipe: Any) -> Any:
        """A recipe with numbers where YAML 1.1 reads text, as in 1e-3."""
        if not isinstance(recipe, Mapping):
            return recipe
        exponent = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
        return {key: float(value) if isinstance(value, str) and exponent.fullmatch(value) else value for key, value in recipe.items()}

    @field_validator("image_size", mode="before")
    @classmethod
    def _image_size(cls, size: Any) -> Any:
        return (size, size) if isinstance(size, int) and not isinstance(size, bool) else size

    @field_validator("baselines")
    @classmethod
    def _baselines(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name != "random" and not re.fullmatch(r"timm:[A-Za-z0-9_.]+", name):
                raise ValueError(f"unknown baseline {name!r} (accepted: random, timm:NAME with a model name of timm)")
        return names

    @model_validator(mode="after")
    def _engine(self) -> Experiment:
        if self.engine != "ray" and (self.ray_address is not None or self.gpus_per_worker):
            raise ValueError(f"ray_address and gpus_per_worker are for the engine ray, not {self.engine}; add engine: ray")
        if self.engine == "inline" and self.workers != 1:
            object.__setattr__(self, "workers", 1)  # it runs in the caller, one at a time
        return self

    @classmethod
    def load(cls, path: Path | None = None, *, overrides: Mapping[str, Any] | None = None) -> Self:
        """From a YAML file, overridden key by key from the command line (None stands for "not given"; limits are merged; what an
        option says in other words is replaced, see `instead`).

        A path (`paths`) that does not exist from here is taken relative to the file. Raises one ConfigError that lists every fault with
        file, line, key and what is accepted, and one for the file of another command.
        """
        given: dict[str, Any] = {}
        lines: Mapping[tuple[Any, ...], int] = {}
        if path is not None:
            data, lines = read_yaml(Path(path))
            if not isinstance(data, dict):
                raise ConfigError(f"{path}: an experiment must be a mapping with keys such as space, data, budget")
            given = dict(data)
            cls.check_kind(given, path=Path(path))
            given |= {key: _near(given[key], Path(path).parent, folders=key == "data") for key in cls.paths if key in given}
        flags = {k: v for k, v in (overrides or {}).items() if v is not None}
        replaced = {key for flag in flags for key in cls.instead.get(flag, ())}
        merged = {**{key: value for key, value in given.items() if key not in replaced}, **flags}
        if isinstance(given.get("limits"), dict) and "limits" in flags:
            merged["limits"] = {**_of_first(given["limits"], merged), **_of_first(flags["limits"], merged)}
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            faults = [_fault(e, cls, path=path, lines=lines, flags=flags) for e in error.errors()]
            raise ConfigError("\n".join(faults)) from None
        except UnicodeEncodeError as error:  # a command line's bytes that are no text
            raise ConfigError(f"{error.object[:60]!r} is not text; write it in UTF-8") from None

    @classmethod
    def check_kind(cls, given: Mapping[str, Any], *, path: Path) -> None:
        """Raises ConfigError for a file of another command."""
        if "model" in given:
            raise ConfigError(f"{path} is the experiment of a pruning (it has a model); give it to nasvit prune")

    def absolute(self, *, data: Callable[[str], str]) -> Self:
        """With every file among its `paths` from the root, and its data as `data` says: a run is resumed from any folder, and workers find
        it. A folder that only bears the name of a shipped space, or of a data set, is no path."""
        return self.model_copy(update={key: data(self.data) if key == "data" else _rooted(getattr(self, key)) for key in self.paths})

    def to_yaml(self) -> str:
        """The resolved experiment; `Experiment.load` gives back an equal one."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


class PruneExperiment(Experiment):
    """One pruning, resolved: a search whose architectures are what is left of a trained model.

    model: timm:NAME (the zoo's names included), or a .safetensors file of a network whose Arch or Plan is `arch`. checkpoint: weights of
    timm:NAME trained on these data; None: the published ones, which are downloaded. choices: what may be pruned. target: milliseconds, or a
    share of the dense model's latency ("0.6x"); None: the whole front. criterion: how units are ranked. dense_steps,
    or dense_epochs: how long the dense model was trained; None: as the metrics.json of `nasvit train` beside its weights says.
    recover_epochs: training of the front at the top rung; None: a tenth of the dense training, where its length is known. siblings: timm
    names of smaller models of the family to checkpoints of theirs, to compare with.
    """

    first_rung: ClassVar[int] = 0
    paths: ClassVar[tuple[str, ...]] = ("data", "model", "arch", "checkpoint", "siblings")
    missing: ClassVar[str] = "give the model's name in timm, or a .safetensors file with the arch beside it"
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {"dense_epochs": ("dense_steps", "rungs"), "recover_epochs": ("rungs",)}

    space: str = "prune"
    model: str
    arch: str | None = None
    checkpoint: str | None = None
    choices: tuple[str, ...] = ("tokens", "heads", "mlp", "depth", "embed")
    target: str | None = None
    criterion: str = "taylor"
    recover_epochs: float | None = Field(default=None, ge=0, le=1000)
    dense_steps: int | None = Field(default=None, ge=1)
    dense_epochs: float | None = Field(default=None, gt=0, le=100_000)
    siblings: dict[str, str] = Field(default_factory=dict)
    eta: int = Field(default=4, ge=2, le=100)
    truth: float = Field(default=0.0, ge=0, le=0)

    @classmethod
    def check_kind(cls, given: Mapping[str, Any], *, path: Path) -> None:
        if "model" not in given and given.get("space", "prune") != "prune":
            raise ConfigError(f"{path} is the experiment of a search (it has a space and no model); give it to nasvit search")

    @field_validator("space")
    @classmethod
    def _no_space(cls, space: str) -> str:
        if space != "prune":
            raise ValueError("is no setting of a pruning; what may be pruned is said by choices, such as [tokens, mlp]")
        return space

    @field_validator("target", mode="before")
    @classmethod
    def _target(cls, target: Any) -> Any:
        return f"{target:g}ms" if isinstance(target, int | float) and not isinstance(target, bool) else target

    @model_validator(mode="after")
    def _of_a_pruning(self) -> PruneExperiment:
        """No setting that only a search looks at; and what strengths are solved for is the limit on latency."""
        for name in ("baselines", "profile", "scores"):
            if getattr(self, name):
                raise ValueError(f"{name} is a setting of a search alone; leave it away")
        if self.dense_steps is not None and self.dense_epochs is not None:
            raise ValueError("dense_steps and dense_epochs say the same thing twice; leave one of them away")
        if len(self.devices) > 1:
            raise ValueError(f"a pruning has one device, not {', '.join(self.devices)}; choose one of them")
        if "latency_ms" in self.limits and self.target is None:
            raise ValueError("the limit on latency of a pruning is its target; write target: 8ms (or 0.6x), not limits: {latency_ms: ..}")
        return self


def _of_first(limits: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The limits with the first device's latency called latency_ms; raises ConfigError where it then has two."""
    devices = given["devices"] if isinstance(given.get("devices"), Mapping) else {}
    first, *others = devices or [""]
    device = str(devices.get(first, given.get("device", "cpu")))
    own = {f"latency_ms@{name}" for name in {first, device, named_device(device)[0]}.difference(others)}
    return each_once(("latency_ms" if name in own else name, value) for name, value in limits.items())


def _near(value: Any, folder: Path, *, folders: bool) -> Any:
    """A file (or folder, for data), or each of several by name, that does not exist from here but does from the folder: from there. The
    name of the embedded data is no path."""
    if isinstance(value, Mapping):
        return {name: _near(one, folder, folders=folders) for name, one in value.items()}
    there = os.path.exists if folders and value != EMBEDDED else os.path.isfile
    if isinstance(value, str) and not there(value) and there(folder / value):  # a name too long is absent
        return str(folder / value)
    return value


def _rooted(value: Any) -> Any:
    """A file, or each of several by name, from the root."""
    if isinstance(value, Mapping):
        return {name: _rooted(one) for name, one in value.items()}
    return os.path.realpath(value) if isinstance(value, str) and os.path.isfile(value) else value


def _fault(error: Any, kind: type[Experiment], *, path: Path | None, lines: Mapping[tuple[Any, ...], int], flags: Mapping[str, Any]) -> str:
    loc = tuple(error["loc"])
    key = str(loc[0]) if loc else ""
    if path is None or key in flags:
        where = "command line"
    else:
        line = next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), None)
        where = f"{path}, line {line}" if line is not None else str(path)
    if error["type"] == "extra_forbidden":
        return f"{where}: " + unknown("key", key, sorted(kind.model_fields))
    if error["type"] == "missing":
        return f"{where}: {key} is missing; {kind.missing}"
    text = str(error["msg"]).removeprefix("Value error, ")
    if not loc:  # several settings that do not go together: the text names them, and what was given is all of them
        return f"{where}: {text}"
    return f"{where}: {'.'.join(map(str, loc))}: {text} (given: {error['input']!r})"
