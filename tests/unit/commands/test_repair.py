from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nasvit import cli
from nasvit.models.weight_file import write_weights
from nasvit.results.record import TrialRecord, append, read


def test_intact_records_and_checkpoints_are_kept_and_damaged_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for trial in range(3):
        append(tmp_path / "records.jsonl", TrialRecord(trial=trial, status="complete", rung=1, arch=None, arch_id=f"a{trial}"))
        write_weights(tmp_path / "checkpoints" / f"a{trial}-r1.safetensors", {"w": torch.ones(4)})
    for path in (tmp_path / "records.jsonl", tmp_path / "checkpoints" / "a1-r1.safetensors"):
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)
    assert cli.main(["repair", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "2 records intact; damaged: line 3" in said and "a1-r1.safetensors cannot be read as weights" in said
    assert "2 of 3 files intact" in said
    assert [r.trial for r in read(tmp_path / "records.jsonl")] == [0, 1]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "a0-r1.safetensors", "a1-r1.safetensors.damaged", "a2-r1.safetensors"]


def test_a_folder_without_records_is_a_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["repair", str(tmp_path / "nosuch")]) == 2
    assert "give the directory of a run" in capsys.readouterr().err
    assert not (tmp_path / "nosuch").exists()
