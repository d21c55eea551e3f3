"""A space without some of its choices: what a device's runtime cannot take is left out before anything is sampled."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from nasvit.arch import Scalar
from nasvit.errors import ConfigError
from nasvit.space.file import SpaceFile
from nasvit.space.rules import StageRules, Values


def without(file: SpaceFile, excluded: Collection[str]) -> SpaceFile:
    """The file's rules without these choices: a mixer (`slide`), a combination (`window+fsla`), a parameter's value
    (`slide.kernel_size=9`), a ratio's (`keep_ratio=0.5`); in every stage. A mixer takes its combinations along.

    Raises ConfigError for a choice that no stage has, and where a stage would have none left.
    """
    for name in excluded:
        if not any(_has(rules, name) for rules in file.stages):
            raise ConfigError(f"space {file.name} has no choice {name!r} to leave out")
    return replace(file, stages=tuple(_stage(file, s, rules, excluded) for s, rules in enumerate(file.stages)))


def _has(rules: StageRules, name: str) -> bool:
    return any(name in named for _, named in _choices(rules)) or name in rules.mixer_names()


def _choices(rules: StageRules) -> list[tuple[Values, list[str]]]:
    """Every choice of a stage, with the names of its values."""
    found = [(rules.mixers, [str(label) for label in rules.mixers.values]),
             (rules.keep_ratio, [f"keep_ratio={value}" for value in rules.keep_ratio.values])]
    return found + [(values, [_named(mixer, name, value) for value in values.values])
                    for mixer, params in rules.params.items() for name, values in params.items()]


def _named(mixer: str, name: str, value: Scalar) -> str:
    return f"{mixer}.{name}={str(value).lower() if isinstance(value, bool) else value}"


def _stage(file: SpaceFile, s: int, rules: StageRules, excluded: Collection[str]) -> StageRules:
    def left(values: Values, names: list[str], gone: Collection[str], what: str) -> Values:
        kept = tuple(value for value, name in zip(values.values, names, strict=True) if name not in gone)
        if not kept:
            file.fail(values.key, f"stage {s} has no {what} left without {', '.join(sorted(excluded))}")
        return replace(values, values=kept)

    labels = [str(label) for label in rules.mixers.values]
    lost = {label for label in labels if label in excluded or set(label.split("+")) & set(excluded)}
    mixers = left(rules.mixers, labels, lost, "mixer")
    ratios = left(rules.keep_ratio, [f"keep_ratio={value}" for value in rules.keep_ratio.values], excluded, "keep_ratio")
    used = {name for label in mixers.values for name in str(label).split("+")}
    params = {mixer: {name: left(values, [_named(mixer, name, value) for value in values.values], excluded, f"{mixer}.{name}")
                      for name, values in given.items()} for mixer, given in rules.params.items() if mixer in used}
    return replace(rules, mixers=mixers, keep_ratio=ratios, params=params)
