from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nasvit.errors import CheckpointError, StorageError
from nasvit.models.weight_file import read_weights, verify, write_weights

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4),
           "b": torch.tensor([1, 2], dtype=torch.int64), "c": torch.ones(2, dtype=torch.bfloat16)}


def written(folder: Path) -> Path:
    path = folder / "deep" / "w.safetensors"
    write_weights(path, TENSORS, metadata={"about": 'quotes " and ü'})
    return path


def test_weights_come_back_and_any_reader_of_safetensors_reads_them(tmp_path: Path) -> None:
    path = written(tmp_path)
    for found in (read_weights(path), load_file(path)):
        assert found.keys() == TENSORS.keys() and all(torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in TENSORS.items())
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_every_flipped_bit_and_every_cut_is_found_and_the_file_named(tmp_path: Path) -> None:
    path, rng = written(tmp_path), random.Random(0)
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        for data in (bytes(changed), whole[:place]):
            path.write_bytes(data)
            with pytest.raises(CheckpointError, match=r"w\.safetensors"):
                read_weights(path)


def test_a_file_without_a_checksum_is_taken_only_where_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(TENSORS, path)
    assert read_weights(path, sealed=False).keys() == TENSORS.keys()
    with pytest.raises(CheckpointError, match="no checksum"):
        verify(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        read_weights(tmp_path / "gone.safetensors")


def test_a_place_that_cannot_be_written_is_no_fault_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nasvit.models.weight_file.save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        written(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
