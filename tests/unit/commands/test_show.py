"""`nasvit show` on a run of a search: what is drawn where nothing is picked, and what is said where nothing can be."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from nasvit import cli
from nasvit.arch import Arch
from nasvit.models.build import build
from nasvit.models.weight_file import write_weights
from nasvit.results.record import TrialRecord, append
from tests.unit.search.fakes import arch, selecting


def searched(run: Path, *networks: Arch) -> Path:
    """A run whose front is these networks, the first its knee, each further one more accurate and slower."""
    run.mkdir()
    (run / "experiment.yaml").write_text("data: digits\nobjectives: [accuracy, latency_ms]\n")
    for trial, network in enumerate((arch(width=32), *networks)):
        weights = f"checkpoints/{network.id}-r1.safetensors"
        write_weights(run / weights, build(network, seed=1).state_dict())
        append(run / "records.jsonl", TrialRecord(
            trial=trial, status="complete", rung=1, arch=network.to_dict(), arch_id=network.id, seed=1, checkpoint=weights,
            objectives={"accuracy": 0.1 if trial == 0 else 0.89 + trial / 100, "latency_ms": 1.0 if trial == 0 else 0.1 + trial}))
    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "green").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_without_a_pick_the_knee_or_the_most_accurate_network_that_selects_tokens(
        tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--image", str(photo), "--out", str(tmp_path / "t.png")]
    networks = arch(), selecting(), selecting(width=16)
    run = searched(tmp_path / "run", *networks)
    assert cli.main(["show", str(run), *out]) == 0
    assert capsys.readouterr().out.startswith(f"1 block of {networks[2].id}: ")
    assert cli.main(["show", str(run), "--pick", networks[1].id, *out]) == 0
    assert capsys.readouterr().out.startswith(f"1 block of {networks[1].id}: ")
    assert cli.main(["show", str(run), "--pick", "knee", *out]) == 2
    assert "every block of this network sees every token" in capsys.readouterr().err
    assert cli.main(["show", str(searched(tmp_path / "other", arch())), *out]) == 2
    assert "every block of all networks of the front sees every token" in capsys.readouterr().err
