"""What of a search space a runtime cannot take: found by exporting small networks before anything is sampled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

from nasvit.arch import Arch, Block, MixerSpec, Scalar, Stage
from nasvit.errors import MeasurementError, ResourceError
from nasvit.models.build import build
from nasvit.runtimes.base import Runtime
from nasvit.runtimes.parity import BOUND, compare
from nasvit.space import SearchSpace
from nasvit.space.rules import StageRules, mixer_params, outcomes
from nasvit.whole_file import whole

Form = Callable[[nn.Module], nn.Module]
Turn = Callable[[], AbstractContextManager[object]]
INPUTS = 3
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A small network that stands for one choice: what `SearchSpace.without` calls it, and the Arch.

    mixers: those in it; where one is out already, in whole or in part, a fault says nothing of this choice.
    group: probes that differ from the group's first, the plain mixer, in one choice. instead: the choice of that first one which this one
    does not share: to blame where the first fails and this does not.
    """

    choice: str
    mixers: frozenset[str]
    arch: Arch
    group: str
    instead: str = ""


def unsupported(space: SearchSpace, runtime: Runtime, *, form: Form, threads: int = 1, turn: Turn = nullcontext) -> dict[str, str]:
    """Choice to reason, for `SearchSpace.without`: everything of the space that the runtime does not take, or computes otherwise.

    First one network with every choice in it, which mostly suffices; else one for each. form: what a device makes of a network
    before it is timed. turn: what to hold around the work of each network. A runtime in another precision than float32 only has to take a
    block; its accuracy is another matter. Raises ResourceError where the machine comes to its end: that says nothing of the space.
    """
    exact = runtime.settings.get("precision", "fp32") == "fp32"

    def fault_of(arch: Arch) -> str | None:
        with turn():
            return fault(arch, runtime, form=form, exact=exact, threads=threads)

    if fault_of(covering(space)) is None:
        return {}
    found: dict[str, str] = {}
    for _, group in groupby(probes(space), key=lambda probe: probe.group):
        plain, *others = group
        out = {choice.partition("=")[0].partition(".")[0] for choice in found}
        if plain.choice in found or (plain.choice not in plain.mixers and plain.mixers & out):
            continue
        failed = fault_of(plain.arch)
        blamed = ""
        for probe in others:
            if probe.choice in found or (failed is not None and (blamed or probe.instead in found)):
                continue
            reason = fault_of(probe.arch)
            if failed is None and reason is not None:
                found[probe.choice] = reason
            elif failed is not None and reason is None:
                blamed = probe.instead
        if failed is not None:
            found[blamed or plain.choice] = failed
    if not found:
        raise MeasurementError(f"{runtime.name} takes every block of space {space.name} alone and not all of them together: "
                               f"{fault_of(covering(space))}")
    return found


def fault(arch: Arch, runtime: Runtime, *, form: Form, exact: bool, threads: int) -> str | None:
    """Why the runtime cannot take the network of an Arch, None where it can."""
    ready = form(build(arch, seed=SEED))
    try:
        found = compare(ready, runtime=runtime, shape=(1, arch.in_channels, *arch.image_size), inputs=INPUTS, seed=SEED, threads=threads)
    except ResourceError:
        raise
    except MeasurementError as error:
        return str(error)
    if exact and not found.agrees and found.unstable < 1:
        return f"{runtime.name} computes something else: relative difference {found.error:.2g}, the bound is {BOUND:g}"
    return None


def covering(space: SearchSpace, *, whole: bool = False) -> Arch:
    """One network that has every mixer, every value of every mixer parameter and every keep ratio of a space, at the least width.

    What one stage shows is not shown again by the next, and keep ratios take turns along the mixers; with `whole` every stage shows
    everything, and every mixer at every keep ratio.
    """
    stages, shown, shown_slow = [], set[tuple[object, ...]](), set[str | float]()
    for s, rules in enumerate(space.file.stages):
        slow = [float(value) for value in rules.keep_ratio.values if float(value) < 1]
        plain = 1.0 if 1.0 in rules.keep_ratio.values else slow[-1]
        blocks = []
        for label in map(str, rules.mixers.values):
            for choice, specs in _variations(space, s, rules, label):
                what = (choice, *(pair for spec in specs for pair in spec.params if pair[0] not in ("num_heads", "overlap")))
                if whole or what not in shown:
                    shown.add(what)
                    blocks.append(_block(rules, specs, plain))
        for label, ratio in _kept(list(map(str, rules.mixers.values)), slow, whole=whole):
            if whole or not {label, ratio} <= shown_slow:
                shown_slow |= {label, ratio}
                blocks.append(_block(rules, _first(space, s, rules, label), ratio))
        lone = _block(rules, _first(space, s, rules, str(rules.mixers.values[0])), plain)
        stages.append(Stage(embed_dim=_width(rules), blocks=tuple(blocks) or (lone,)))
    return Arch(image_size=space.image_size, in_channels=space.in_channels, num_classes=space.num_classes, stem=space.file.stem,
                stages=tuple(stages))


def _kept(labels: list[str], ratios: list[float], *, whole: bool) -> list[tuple[str, float]]:
    """Mixers with keep ratios: every pair, or each mixer and each ratio at least once; neighbours of different ratios where there are."""
    if whole:
        return [(label, ratio) for label in labels for ratio in ratios]
    turns = range(max(len(labels), len(ratios)) if ratios else 0)
    return [(labels[turn % len(labels)], ratios[turn % len(ratios)]) for turn in turns]


def probes(space: SearchSpace) -> Iterator[Probe]:
    """A network of one stage for each choice of each stage: mixers first, then their parameters' values, pairs and keep ratios."""
    full = covering(space)
    for s, rules in enumerate(space.file.stages):
        plain = 1.0 if 1.0 in rules.keep_ratio.values else float(rules.keep_ratio.values[-1])

        def one(specs: tuple[MixerSpec, ...], ratio: float, s: int = s, rules: StageRules = rules) -> Arch:
            side = tuple(size // 2**s for size in space.image_size)  # a stage halves the map: its grid is that of a smaller image
            return replace(full, image_size=(side[0], side[1]),
                           stages=(Stage(embed_dim=_width(rules), blocks=(_block(rules, specs, ratio),)),))

        for mixer in rules.mixer_names():
            for choice, specs in _values(space, s, rules, mixer):
                name = choice.partition("=")[0]
                first = rules.params[mixer][name.partition(".")[2]].values[0] if "=" in choice else ""
                yield Probe(choice=choice, mixers=frozenset({mixer}), arch=one(specs, plain), group=f"{s} {mixer}",
                            instead=f"{name}={_text(first)}")
        for label in map(str, rules.mixers.values):
            specs, names = _first(space, s, rules, label), frozenset(label.split("+"))
            if len(names) > 1:
                yield Probe(choice=label, mixers=names, arch=one(specs, plain), group=f"{s} {label}")
            for ratio in rules.keep_ratio.values:
                if float(ratio) < 1:
                    choice = f"keep_ratio={ratio}"
                    yield Probe(choice=choice, mixers=names, arch=one(specs, float(ratio)), group=f"{s} {label} {choice}")


def _width(rules: StageRules) -> int:
    return int(rules.embed_dim.values[0])


def _block(rules: StageRules, specs: tuple[MixerSpec, ...], ratio: float) -> Block:
    return Block(mixers=specs, mlp_dim=max(1, round(_width(rules) * float(rules.mlp_ratio.values[0]))), keep_ratio=ratio)


def _values(space: SearchSpace, s: int, rules: StageRules, mixer: str) -> list[tuple[str, tuple[MixerSpec, ...]]]:
    """(choice, mixer) of each value of each parameter, the others at their first: first of all the plain mixer."""
    made: list[tuple[str, tuple[MixerSpec, ...]]] = []
    params = rules.params[mixer]
    for answers, given in outcomes(lambda pick: mixer_params(params, embed_dim=_width(rules), grid=space.grids[s], pick=pick)):
        spec = (MixerSpec.of(mixer, **given),)
        changed = [name for name, value in answers.items() if value != params[name].values[0]]
        if not changed:
            made.append((mixer, spec))
        elif len(changed) == 1 or changed == ["cluster_depth", "overlap_ratio"]:  # an overlap needs clusters: it need not change alone
            made.append((f"{mixer}.{changed[-1]}={_text(answers[changed[-1]])}", spec))
    return made


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _first(space: SearchSpace, s: int, rules: StageRules, label: str) -> tuple[MixerSpec, ...]:
    return tuple(_values(space, s, rules, name)[0][1][0] for name in label.split("+"))


def _variations(space: SearchSpace, s: int, rules: StageRules, label: str) -> list[tuple[str, tuple[MixerSpec, ...]]]:
    """(choice, mixers) of every block that a label needs to show all values; a combination is shown once."""
    return [(label, _first(space, s, rules, label))] if "+" in label else _values(space, s, rules, label)


def known_unsupported(space: SearchSpace, runtime: Runtime, *, form: Form, cache: Path, place: str,
                      turn: Turn = nullcontext) -> dict[str, str]:
    """`unsupported`, looked up in the folder `cache` where it has been found before: for this space, runtime, version of the code, and
    `place`, the processor that the runtime prepares for. Eager takes everything by definition.
    """
    if runtime.name == "eager":
        return {}
    path = cache / f"support-{_key(space, runtime, place)}.json"
    with suppress(OSError, ValueError):  # absent, or damaged: found anew
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(isinstance(text, str) for text in found.values()):
            return found
    fresh = unsupported(space, runtime, form=form, turn=turn)
    with suppress(OSError), whole(path) as temporary:  # a cache that cannot be written costs time, nothing else
        temporary.write_text(json.dumps(fresh), encoding="utf-8")
    return fresh


def _key(space: SearchSpace, runtime: Runtime, place: str) -> str:
    """12 hex digits of all that the answer depends on: the code of the models and runtimes among it."""
    root = Path(__file__).resolve().parent.parent
    files = sorted(file for folder in ("models", "runtimes") for file in (root / folder).rglob("*.py"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    facts = [space.to_yaml(), space.image_size, space.in_channels, space.num_classes, runtime.name, runtime.settings, runtime.version(),
             torch.__version__, place, code.hexdigest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
