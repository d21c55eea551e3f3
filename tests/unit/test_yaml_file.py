from __future__ import annotations

from pathlib import Path

import pytest

from nasvit.errors import ConfigError
from nasvit.yaml_file import MAX_BYTES, parse_yaml, read_yaml


def test_lines_are_known_for_every_key_path() -> None:
    data, lines = parse_yaml("a: 1\nb:\n  - c: 2\n    d: {e: 3}\n", name="x.yaml")
    assert data == {"a": 1, "b": [{"c": 2, "d": {"e": 3}}]}
    assert lines[("a",)] == 1 and lines[("b",)] == 2
    assert lines[("b", 0, "c")] == 3 and lines[("b", 0, "d", "e")] == 4


@pytest.mark.parametrize(("text", "line", "says"), [
    ("a: 1\na: 2\n", 2, "twice"),
    ("a: {b: 1, b: 2}\n", 1, "twice"),
    ("a: &x [1]\nb: *x\n", 1, "aliases"),
    ("a: 1\nb: *x\n", 2, "aliases"),
    ("a: 1\nb: !!python/object/apply:os.system ['true']\n", 2, "tags"),
    ("a: 1\nb: !!set {x, y}\n", 2, "tags"),
    ("a: 1\nb: [1, 2\n", 3, "YAML"),
    ("1: a\n", 1, "plain name"),
    ("? [a, b]\n: 1\n", 1, "plain name"),
    ("a: 1\n---\nb: 2\n", 2, "YAML"),
    ("[" * 21 + "]" * 21, 1, "deeper"),
    ("[" * 400_000, 1, "deeper"),
    ("a: \x00\n", None, "YAML"),
    ("a: 2020-13-45\n", None, "cannot be read"),
    ("a: {<<: {b: 1}}\n", 1, "plain name"),
    ('a: 1\nb: "\\uD800"\n', 2, "half of a sign"),
])
def test_refusals_name_file_and_line(text: str, line: int | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        parse_yaml(text, name="x.yaml")
    assert str(error.value).startswith(f"x.yaml:{line}:" if line else "x.yaml")


def test_a_billion_laughs_is_refused_at_once() -> None:
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    with pytest.raises(ConfigError, match="aliases"):
        parse_yaml(text, name="x.yaml")


def test_files_are_bounded_and_must_be_text(tmp_path: Path) -> None:
    big, binary = tmp_path / "big.yaml", tmp_path / "binary.yaml"
    big.write_text("a: " + "x" * MAX_BYTES)
    binary.write_bytes(b"\xff\xfe\x00")
    for path, says in ((big, "larger"), (binary, "UTF-8"), (tmp_path / "absent.yaml", "cannot be read"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=says):
            read_yaml(path)


def test_an_empty_file_is_none() -> None:
    assert parse_yaml("", name="x")[0] is None
