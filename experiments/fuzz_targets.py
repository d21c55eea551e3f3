"""What is fuzzed: everything that reads what it did not write. A target has sound inputs, which are damaged in text or in structure, and a
function that may raise nasvit's own errors and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]

# ---- damage -----------------------------------------------------------------------------------------------------------

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, -(10**30), 0.0, -0.0, 0.5, 1e-300, 1e308, float("nan"), float("inf"),
    -float("inf"), "", " ", "a", "nan", "1e3", "=1+1", "../../etc/passwd", "/dev/zero", "x" * 5000, "\x00", "\u202e", "\ud800", "\n",
    "<script>", "{{7*7}}", "%s%n", "__class__", "!!python/object/apply:os.system [id]", [], {}, [[]], [{}], {"": 0}, [None] * 50,
    {"choice": []}, {"choice": [1, 1]}, {"range": [0, 10**9], "step": 1e-9}, {"range": [1, 2], "step": 0}, {"name": {}}, ["a", "a"])
TOKENS = ("{", "}", "[", "]", ":", ",", "-", "#", "&a", "*a", "!!int", "'", '"', "|", ">", "?", "%", "@", "`", "\t", "\r", "\n", "\x00",
          "\u2028", "\ud800", "\ufeff", "e400", "9" * 40, "---\n", "...", "<<: ", "~", "\\u0000", "NaN", "Infinity", "null", "=", "&", "..")


Make = Callable[[random.Random], Any]
"""From chance to an input. Hypothesis draws the seed alone: drawing every choice by itself takes longer than what is fuzzed."""


def seeded(*makes: Make) -> st.SearchStrategy[Any]:
    """One of these makes, with a seed."""
    return st.integers(0, 2**62).map(lambda number: makes[number % len(makes)](random.Random(number)))


def some_text(rng: random.Random) -> str:
    """Up to eight signs: of ASCII, of anywhere, or whole tokens."""
    ranges = ((32, 126), (0, 31), (0xA0, 0x2FFF), (0xD800, 0xDFFF), (0x10000, 0x1FFFF))
    signs = [chr(rng.randint(*rng.choices(ranges, (12, 1, 2, 1, 1))[0])) for _ in range(rng.randint(0, 6))]
    return "".join([*signs, rng.choice(TOKENS)] if rng.random() < 0.5 else signs)


def damaged_text(sound: tuple[str, ...]) -> Make:
    """A sound text with a few cuts, doublings, insertions and exchanges; seldom a text of nothing but tokens."""
    def make(rng: random.Random) -> str:
        if rng.random() < 0.1:
            return "".join(rng.choice((rng.choice(TOKENS), some_text(rng))) for _ in range(rng.randint(0, 30)))
        text = rng.choice(sound)
        for _ in range(rng.randint(1, 4)):
            place, width, what = rng.randint(0, len(text)), rng.randint(0, 12), rng.randint(0, 4)
            new = rng.choice((rng.choice(TOKENS), some_text(rng), str(rng.choice(HOSTILE[:30]))))
            gap = text[place: place + width] * 2 if what == 0 else "" if what == 1 else new
            text = text[:place] if what == 2 else text[:place] + gap + text[place + (0 if what == 3 else width):]
        return text
    return make


def damaged_data(sound: tuple[Any, ...]) -> Make:
    """Sound data with some places given a hostile value, another place's value, none at all, or a new key."""
    def make(rng: random.Random) -> Any:
        data = json.loads(json.dumps(rng.choice(sound)))
        for _ in range(rng.randint(1, 3)):
            spots = _spots(data)
            if not spots:
                return rng.choice(HOSTILE)
            place, key = rng.choice(spots)
            what = rng.randint(0, 5)
            if what == 0:
                del place[key]
            elif what == 1 and isinstance(place, dict):
                place[rng.choice(("x", "__init__", "", "trial", "name", "choice"))] = _hostile(rng)
            elif what == 2:
                other, name = rng.choice(spots)
                place[key] = json.loads(json.dumps(other[name]))
            elif what == 3 and isinstance(place[key], int | float) and not isinstance(place[key], bool):
                place[key] = rng.choice((rng.randint(-10, 3000), rng.uniform(-10, 10), rng.getrandbits(70), 10 ** rng.uniform(-320, 308)))
            else:
                place[key] = _hostile(rng)
        return data
    return make


def _hostile(rng: random.Random) -> Any:
    return json.loads(json.dumps(rng.choice(HOSTILE))) if rng.random() < 0.9 else some_text(rng)


def then(make: Make, change: Callable[[Any], Any]) -> Make:
    """What `make` gives, changed."""
    return lambda rng: change(make(rng))


def _spots(data: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every place in the data."""
    found, queue = [], [data]
    while queue:
        here = queue.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        found += [(here, key) for key in keys]
        queue += [here[key] for key in keys]
    return found


def as_yaml(data: Any) -> str:
    """YAML, aliases written out."""
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return str(yaml.dump(data, Dumper=Plain, sort_keys=False, allow_unicode=True))


# ---- sound inputs -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def spaces() -> tuple[str, ...]:
    return tuple(p.read_text() for p in sorted((ROOT / "nasvit" / "spaces").glob("*.yaml")))


EXPERIMENT = {"space": "hybrid_tiny", "data": "digits", "device": "cpu", "devices": {"here": "cpu", "pi": "ssh://pi@10.0.0.7:22/onnxruntime"},
              "profile": None, "budget": 30, "minutes": 5.5, "seed": 3, "objectives": ["accuracy", "latency_ms", "latency_ms@pi"],
              "limits": {"latency_ms": "8ms", "macs_g": "300M", "latency_ms@pi": 20}, "sampler": "tpe", "engine": "ray", "workers": 2,
              "ray_address": "auto", "gpus_per_worker": 0.5, "job_minutes": 3, "job_memory_gb": 2, "rungs": [60, 180], "eta": 2,
              "recipe": {"lr": "1e-3", "mixup": 0.2}, "image_size": [32, 32], "baselines": ["random", "timm:levit_128s"],
              "stop": "plateau", "scores": ["synflow"], "truth": 0.1}


@lru_cache(maxsize=1)
def archs() -> tuple[dict[str, Any], ...]:
    from nasvit.space import SearchSpace

    rng = random.Random(0)
    return tuple(SearchSpace.load(name).sample(rng).to_dict() for name in ("hybrid_tiny", "isotropic", "fsla_only") for _ in range(3))


@lru_cache(maxsize=1)
def plans() -> tuple[dict[str, Any], ...]:
    block = {"heads": 3, "head_dim": 64, "mlp_dim": 768, "keep_ratio": 0.7}
    source = {"name": "timm:deit_tiny_patch16_224", "family": "plain", "description": {"depth": 2, "embed_dim": 192, "norm": "layer"}}
    return ({"source": source, "blocks": [block, block], "embed_dims": [192], "operator": "merge"},)


STATS = {"median_ms": 2.0, "p10_ms": 1.9, "p90_ms": 2.2, "ci_low_ms": 1.9, "ci_high_ms": 2.1, "runs": 40, "repeats": 5, "verdict": "stable",
         "reference_ms": 3.1, "batch_size": 1, "fingerprint": "a1b2c3d4e5f6", "cpu_ms": 2.0, "threads": 1}


@lru_cache(maxsize=1)
def records() -> tuple[dict[str, Any], ...]:
    first = {"trial": 0, "status": "complete", "rung": 1, "arch": archs()[0], "arch_id": "a1b2c3d4e5f6", "label": None,
             "objectives": {"accuracy": 0.9, "latency_ms": 2.0, "macs_g": 0.1, "params_m": 1.0}, "latency": STATS, "params": {"depth": 2},
             "reason": None, "seed": 3, "seconds": {"train": 1.0, "measure": 0.5, "total": 1.6}, "fingerprint": "a1b2c3d4e5f6",
             "versions": {"nasvit": "0.1.0"}, "started": 1.7e9, "checkpoint": "checkpoints/a.safetensors",
             "details": {"loss": 0.3, "latencies": {"pi": STATS}, "predicted": {"median_ms": 2.0}}}
    return first, {**first, "trial": 1, "status": "rejected", "reason": "too slow", "rung": 0}, {
        **first, "trial": 2, "status": "failed", "reason": "the loss became nan", "objectives": {}, "latency": None}


def line_of(record: Any) -> str:
    """A record's line with its checksum, whatever it says."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return f'{{"crc":"{zlib.crc32(text.encode()):08x}","record":{text}}}\n'


ATTEMPT = {"repeats": [{"candidate_ms": [2.0] * 10, "cpu_ms": [2.0] * 10, "reference_ms": [3.0] * 10, "alone_ms": [3.0] * 10}] * 5,
           "usage": {"cpu_s": 1.0, "wall_s": 1.0, "switches": 3, "waited_s": 0.0}}
REPLY = {"id": 1, "ok": True, "attempt": ATTEMPT, "rounds": [3.0] * 10, "peak_mb": 100.0, "error": "no", "sha256": "0" * 64,
         "facts": {"cpu": "Cortex", "cores": 4, "threads": 1, "runtimes": ["onnxruntime"]}}


# ---- what is done with an input ---------------------------------------------------------------------------------------


def read_space(text: str) -> None:
    from nasvit.space import SearchSpace

    space = SearchSpace.from_yaml(text)
    space.size()
    arch = space.sample(random.Random(0))
    assert space.contains(arch)


def read_experiment(text: str) -> None:
    from nasvit.experiment import Experiment

    with _folder() as folder:
        path = folder / "e.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        made = Experiment.load(path)
        path.write_text(made.to_yaml(), encoding="utf-8")
        assert Experiment.load(path) == made


def read_arch(text: str) -> None:
    from nasvit.commands.remeasure import read_arch
    from nasvit.pruning.files import read_form

    with _folder() as folder:
        path = folder / "arch.json"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with contextlib.suppress(_ours()):
            form = read_form(path)
            assert type(form).from_json(form.to_json()) == form
        if len(text) % 8 == 0:  # the way through YAML takes thirty times as long
            read_arch(path.rename(folder / "arch.yaml"))


def read_records(text: str) -> None:
    from nasvit.results.record import read, repair

    with _folder() as folder:
        path = folder / "records.jsonl"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with contextlib.suppress(_ours()):
            read(path, mend=True)
        repair(path)
        read(path)


def open_run(text: str) -> None:
    """A run directory of these records, or with these files, as its report reads it."""
    from nasvit.report import load
    from nasvit.report.render import html, markdown

    with _folder() as folder:
        files = {"records.jsonl": text} if text.startswith('{"crc"') else json.loads(text)
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8", errors="surrogatepass")
        run = load(folder)
        html(run)
        markdown(run)


def hear_device(text: str) -> None:
    """A reply through the link's own reader, and each part held against what is possible."""
    from nasvit.devices.replies import sound_attempt, sound_facts, sound_peak, sound_rounds
    from nasvit.devices.transport import Link

    link = Link.__new__(Link)
    link.name, link._fail = "pi", _refuse  # type: ignore[method-assign]
    reply = link._parsed(text.encode(errors="surrogatepass"))
    for read in (lambda: sound_attempt(reply.get("attempt"), repeats=5, elapsed_s=1.0, name="pi"),
                 lambda: sound_rounds(reply.get("rounds"), elapsed_s=1.0, name="pi"), lambda: sound_peak(reply.get("peak_mb"), name="pi"),
                 lambda: json.dumps(sound_facts(reply.get("facts"), name="pi"), allow_nan=False)):
        with contextlib.suppress(_ours()):
            read()


def _refuse(what: str) -> None:
    from nasvit.devices.transport import DeviceFault

    raise DeviceFault(what)


def name_device(text: str) -> None:
    from nasvit.devices.spec import parse_spec
    from nasvit.experiment import named_device, parse_limit, places

    for read in (lambda: parse_spec(str(parse_spec(text))), lambda: parse_limit(text, name="latency_ms"), lambda: named_device(text),
                 lambda: places([text, text])):
        with contextlib.suppress(_ours()):
            read()


def read_profile(text: str) -> None:
    from nasvit.latency import LatencyModel

    with _folder() as folder:
        path = folder / "profile.json"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        model = LatencyModel.load(path)
        model.save(path)


def command(words: list[str]) -> None:
    """The whole command line, in a folder of its own. What would search, train, time or start something is cut off."""
    from nasvit import cli
    from nasvit.errors import ConfigError

    def cut(*_: Any, **__: Any) -> Any:
        raise ConfigError("not in a fuzz")

    heavy = ("nasvit.search.run", "nasvit.search.prune.prune", "nasvit.search.prune.begin", "nasvit.devices.open_device",
             "nasvit.commands.remeasure.open_device", "nasvit.finals.train_in_full", "nasvit.commands.space_probe.probe",
             "nasvit.commands.remeasure.named_model", "nasvit.finals.Subject.make", "nasvit.finals.export.export",
             "nasvit.commands.new._write", "nasvit.search.rebuilt.rebuilt", "subprocess.run", "subprocess.Popen")
    with _folder() as folder, contextlib.ExitStack() as stack:
        for name in heavy:
            with contextlib.suppress(AttributeError, ImportError):
                stack.enter_context(mock.patch(name, cut))
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(mock.patch.dict("os.environ", {"NASVIT_DEVICES": str(folder / "devices.yaml"), "HOME": str(folder)}))
        out, err = io.StringIO(), io.StringIO()
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        code = cli.main([word for word in words if word != "--debug"])
    assert code in (0, 1, 2), code
    assert "Traceback" not in err.getvalue()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """In memory where the system has such a place."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def _ours() -> type[Exception]:
    from nasvit.errors import NasvitError

    return NasvitError


# ---- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A name, the inputs, what is done with one, and which share of all inputs it gets."""

    name: str
    inputs: Callable[[], st.SearchStrategy[Any]]
    call: Callable[[Any], None]
    share: int = 10


def _json(data: Any) -> str:
    return json.dumps(data)


def _run_files(rng: random.Random) -> str:
    base = {"records.jsonl": "".join(map(line_of, records())), "experiment.yaml": as_yaml({**EXPERIMENT, "limits": {"latency_ms": 4}}),
            "env.json": _json(ENV), "summary.json": _json(SUMMARY)}
    name = rng.choice(sorted(base))
    if name == "records.jsonl":
        return _json(base)
    data = damaged_data((yaml.safe_load(base[name]),))
    make = rng.choice((then(data, as_yaml if name.endswith("yaml") else _json), damaged_text((base[name],))))
    return _json({**base, name: make(rng)})


ENV = {"fingerprint": "a1", "reference_ms": 3.1, "host": {"cpu": "x", "cores": 2, "memory_gb": 7.8, "system": "L"}, "torch": "2.13.0",
       "device": {"kind": "cpu", "cpu": "x", "threads": 1}, "space": {"name": "s", "size": 100}, "drift": [],
       "data": {"name": "d", "kind": "npz", "train": 5, "val": 5, "classes": 2, "image_size": [16, 16]}}
SUMMARY = {"budget": 3, "evaluated": 2, "rejected": 1, "failed": 1, "stopped_because": "budget", "wall_seconds": 6.0, "train_seconds": 3.0,
           "measure_seconds": 1.0, "overhead_share": 0.1, "workers": 2, "sampler": "tpe", "engine": "inline", "rungs": [2, 4],
           "objectives": ["accuracy", "latency_ms"], "sessions": 1}


def _lines(rng: random.Random) -> str:
    make = damaged_data(records())
    return "".join(line_of(make(rng)) for _ in range(rng.randint(1, 4)))


SPECS = ("cpu/onnxruntime?threads=4&precision=int8", "pi=ssh://pi@raspberry:22/onnxruntime?threads=4", "adb://SERIAL:5555/litert",
         "8ms@pi", "[fe80::1]")


def _profile() -> dict[str, Any]:
    return {"about": {}, "observations": [{"arch": a, "ms": 2.0, "error": 0.1} for a in archs()[:2]]}


WORDS = ("hybrid_tiny", "digits", "cpu", "cpu/onnxruntime?threads=4", "pi=ssh://a@b:1/eager", "8ms", "300M", "5M@pi", "random", "timm:x",
         "add", "remove", "check", "list", "knee", "max-latency:8ms", "trial:1", "-1", "1", "--", "-")


def _words(rng: random.Random) -> list[str]:
    """A command with flags and values, no zero byte and no half of a sign (a shell could not pass them), and no way out of the folder."""
    from typer.main import get_command

    from nasvit.cli import app

    def value() -> str:
        text = rng.choice((str(rng.choice(HOSTILE)), some_text(rng))).replace("\0", "").replace("/", "_").replace("..", ",,")
        return rng.choice(WORDS) if rng.random() < 0.4 else text.encode(errors="ignore").decode()

    commands = get_command(app).commands  # type: ignore[attr-defined]
    if rng.random() < 0.05:
        return [value() for _ in range(rng.randint(0, 4))]
    name = rng.choice(sorted(commands))
    flags = [o for p in commands[name].params for o in p.opts if o.startswith("--") and o != "--help"] or ["--out"]
    made = (value, lambda: rng.choice(flags), lambda: f"{rng.choice(flags)}={value()}")
    return [name, *(rng.choice(made)() for _ in range(rng.randint(0, 7)))]


TARGETS = {t.name: t for t in (
    Target("spaces", lambda: seeded(damaged_text(spaces()), then(damaged_data(tuple(map(yaml.safe_load, spaces()))), as_yaml)),
           read_space, 8),
    Target("experiments", lambda: seeded(damaged_text((as_yaml(EXPERIMENT),)), then(damaged_data((EXPERIMENT,)), as_yaml)),
           read_experiment, 10),
    Target("archs", lambda: seeded(then(damaged_data((*archs(), *plans())), _json), damaged_text(tuple(map(_json, archs())))),
           read_arch, 20),
    Target("records", lambda: seeded(damaged_text(tuple(map(line_of, records()))), _lines), read_records, 20),
    Target("runs", lambda: seeded(_lines, _run_files), open_run, 1),
    Target("replies", lambda: seeded(then(damaged_data((REPLY,)), _json), damaged_text((_json(REPLY),))), hear_device, 26),
    Target("devices", lambda: seeded(damaged_text(SPECS)), name_device, 26),
    Target("profiles", lambda: seeded(then(damaged_data((_profile(),)), _json)), read_profile, 10),
    Target("commands", lambda: seeded(_words), command, 1))}
