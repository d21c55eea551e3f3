"""Records: what was appended is read back; a torn line is dropped; damage is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nasvit.errors import RunError
from nasvit.results.record import TrialRecord, append, from_line, latest, read, repair, to_line


def record(trial: int = 0, rung: int = 1, **changes: object) -> TrialRecord:
    return TrialRecord(**{"trial": trial, "status": "complete", "rung": rung, "arch": None, "arch_id": f"{trial:012x}",  # type: ignore[arg-type]
                          "objectives": {"accuracy": 0.5 + 0.1 * rung, "latency_ms": 1.25}, **changes})


def test_a_line_round_trips() -> None:
    one = record(params={"s0.mixers": "window+fsla"}, reason='quote " newline \n ü')
    assert from_line(to_line(one)) == one and to_line(one).count("\n") == 1


def test_append_and_read(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for i in range(3):
        append(path, record(i))
    assert [r.trial for r in read(path)] == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 2, 40, 100])
def test_a_torn_last_line_is_dropped_and_the_next_append_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record(0))
    append(path, record(1))
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r.trial for r in read(path, mend=True)] == [0]
    append(path, record(2))
    assert [r.trial for r in read(path)] == [0, 2]


def test_any_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record(0))
    append(path, record(1))
    data = path.read_bytes()
    first = data.index(b"\n")
    for position in range(0, first, 7):
        flipped = bytearray(data)
        flipped[position] ^= 1
        path.write_bytes(bytes(flipped))
        with pytest.raises(RunError, match=r"records\.jsonl, line 1"):
            read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "0.9", None, True])
def test_an_objective_is_a_finite_number(value: object) -> None:
    with pytest.raises(RunError, match="finite"):
        record(objectives={"accuracy": value})


def test_latest_is_the_highest_rung_of_each_trial() -> None:
    found = latest([record(0, 1), record(1, 1), record(0, 2), record(0, 1)])
    assert {t: r.rung for t, r in found.items()} == {0: 2, 1: 1}


def test_a_failed_promotion_does_not_undo_the_rung_below() -> None:
    assert latest([record(0, 1), record(0, 2, status="failed")])[0].rung == 1
    assert latest([record(0, 1, status="failed")])[0].status == "failed"


def test_an_absent_file_has_no_records(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []


def test_repair_keeps_every_intact_record_and_the_damage_aside(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for i in range(4):
        append(path, record(i))
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"0.6", b"0.7")
    path.write_bytes(b"\n".join(lines)[:-30])
    with pytest.raises(RunError, match=r"line 2.*nasvit repair"):
        read(path)
    assert repair(path) == (2, [2, 4])
    assert [r.trial for r in read(path)] == [0, 2]
    assert path.with_name("records.jsonl.damaged").read_bytes().split(b"\n")[:2] == [lines[1], lines[3][:-29]]
    append(path, record(4))
    assert [r.trial for r in read(path)] == [0, 2, 4]


def test_repair_leaves_whole_records_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record(0))
    before = path.stat().st_mtime_ns
    assert repair(path) == (1, []) and path.stat().st_mtime_ns == before and len(list(tmp_path.iterdir())) == 1


def test_repair_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no records"):
        repair(tmp_path / "records.jsonl")


@pytest.mark.parametrize(("name", "value"), [("accuracy", 1.5), ("accuracy", -0.1), ("latency_ms", -1.0), ("latency_ms", 1e308),
                                             ("params_m", "5")])
def test_a_value_that_no_network_can_have_is_refused(name: str, value: object) -> None:
    with pytest.raises(RunError, match=name):
        record(objectives={name: value})


@pytest.mark.parametrize(("field", "value"), [
    ("arch_id", "../../outside"), ("arch_id", "/etc/passwd"), ("arch_id", ""), ("arch_id", "a/b"), ("arch_id", ".."), ("arch_id", "a\n"),
    ("checkpoint", "../x.safetensors"), ("checkpoint", "/x.safetensors"), ("checkpoint", "checkpoints/../../x"),
    ("checkpoint", "checkpoints/"),
    ("trial", "0"), ("trial", -1), ("trial", 10**30), ("rung", None), ("rung", True), ("latency", []), ("latency", {"median_ms": [1]}),
    ("latency", {"ci_low_ms": "1"}), ("latency", {"ci_high_ms": None}),
    ("seconds", {"train": "1"}), ("params", {"a": []}), ("reason", 3), ("details", []), ("started", 1e308), ("versions", {"torch": 2}),
    ("label", "\ud800"), ("arch", "x"), ("fingerprint", None)])
def test_a_line_with_a_sound_checksum_and_an_impossible_field_is_refused_by_name(field: str, value: object) -> None:
    """Records come from other machines too: no name leads out of the run directory, no type surprises who reads them."""
    with pytest.raises(RunError, match=field):
        from_line(to_line(replace(record(), **{field: value})))  # type: ignore[arg-type]


def test_a_line_without_what_a_record_needs_is_refused() -> None:
    import json
    import zlib

    text = json.dumps({"trial": 1}, separators=(",", ":"))
    with pytest.raises(RunError, match="missing: status"):
        from_line(f'{{"crc":"{zlib.crc32(text.encode()):08x}","record":{text}}}')
