"""YAML files of users, read safely: plain data only, with limits, and with the line of every key for error messages."""

from __future__ import annotations

from pathlib import Path

import yaml

from nasvit.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20

KeyPath = tuple[str | int, ...]


def read_yaml(path: str | Path) -> tuple[object, dict[KeyPath, int]]:
    """The data of a YAML file and the line (from 1) of every key path, as ("stages", 0, "embed_dim").

    Raises ConfigError naming file and line: not readable, not YAML, above 1 MB, deeper than 20, a duplicate key, an alias, a tag, half of a
    sign.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: the file is larger than {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the file is not UTF-8 text (byte {error.start})") from None
    return parse_yaml(text, name=str(path))


def parse_yaml(text: str, *, name: str) -> tuple[object, dict[KeyPath, int]]:
    """`read_yaml` on a text; `name` stands for the file in error messages."""
    try:
        loader = _Loader(text)
        try:
            loader.refuse_aliases_and_depth(text, name)
            node = loader.get_single_node()
            if node is None:
                return None, {(): 1}
            lines: dict[KeyPath, int] = {}
            _record_lines(node, (), lines, name)
            return loader.construct_document(node), lines
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(_told(error, name)) from None
    except (ValueError, OverflowError) as error:  # a timestamp or a number that YAML accepts and Python does not
        raise ConfigError(f"{name}: a value cannot be read ({error})") from None


def writable(text: str) -> bool:
    """Whether UTF-8 can hold the text: half of a sign (a lone surrogate, which YAML and JSON can spell) cannot be written."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


class _Loader(yaml.SafeLoader):
    """A safe loader that knows the whole text has neither aliases nor deep nesting before any node is made."""

    @staticmethod
    def refuse_aliases_and_depth(text: str, name: str) -> None:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ConfigError(f"{name}:{line}: aliases and anchors (* and &) are not accepted; write the value out")
            if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
                raise ConfigError(f"{name}:{line}: tags (!) are not accepted; write plain data")
            if isinstance(event, yaml.ScalarEvent) and not writable(event.value):
                raise ConfigError(f"{name}:{line}: {event.value[:60]!r} holds half of a sign, which cannot be written")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise ConfigError(f"{name}:{line}: nested deeper than {MAX_DEPTH} levels")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1


def _record_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> None:
    """Fill `lines` for the node and everything under it; refuse keys that are no plain names, and duplicates."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _record_lines(item, (*path, i), lines, name)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise ConfigError(f"{name}:{line}: a key must be a plain name, not {getattr(key, 'value', key)!r}")
            here: KeyPath = (*path, key.value)
            if here in lines:
                raise ConfigError(f"{name}:{line}: the key {key.value!r} stands twice (first on line {lines[here]})")
            lines[here] = line
            _record_lines(value, here, lines, name)


def _told(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}" if mark else name
    return f"{where}: not accepted as YAML: {getattr(error, 'problem', None) or str(error).splitlines()[0]}"
