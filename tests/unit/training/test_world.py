"""Two processes and gloo on this machine's CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nasvit.training import ALONE, World, joined

ROOT = Path(__file__).resolve().parents[3]

TRAIN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from nasvit.models import build
from nasvit.training import Checkpoint, Recipe, Watch, joined, train
from nasvit.models.weight_file import write_weights
from tests.unit.training.test_state import small
from tests.unit.training.test_world import arch

out, accumulate, steps, stop = Path(sys.argv[1]), int(sys.argv[2]), 8, int(sys.argv[3])
with joined(device="cpu") as world:
    module = build(arch(), seed=0, drop_path=0.2)
    def report(moment):
        if moment.step == stop:
            raise SystemExit(3)
    result = train(module, small(), steps=steps, seed=0, recipe=Recipe(accumulate=accumulate, ema=0.9, mixup=0.2), world=world,
                   checkpoint=Checkpoint(path=out.with_suffix(".state"), every_s=0), watch=Watch(report=report, every=1))
    write_weights(out.with_suffix(f".{world.rank}"), module.state_dict())
"""


def arch():  # type: ignore[no-untyped-def]
    """Layer norms only: batch norm statistics are those of a part."""
    from nasvit.arch import Arch, Block, Head, MixerSpec, Stage, Stem

    block = Block(mixers=(MixerSpec.of("global", num_heads=2),), mlp_dim=32)
    return Arch(image_size=(16, 16), in_channels=1, num_classes=10, stem=Stem(kind="patch_norm", stride=4),
                stages=(Stage(embed_dim=16, blocks=(block, block)),), head=Head(kind="mean"))


def run(out: Path, *, processes: int, accumulate: int, stop: int = 0) -> int:
    script = out.with_suffix(".py")
    script.write_text(TRAIN)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run([sys.executable, *start, str(script), str(out), str(accumulate), str(stop)], cwd=ROOT, capture_output=True,
                          text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=240)
    if not stop:
        assert done.returncode == 0, done.stderr[-3000:]
    return done.returncode


@pytest.mark.slow
def test_two_processes_train_what_one_trains_in_two_parts_and_go_on_after_a_kill(tmp_path: Path) -> None:
    run(tmp_path / "one", processes=1, accumulate=2)
    run(tmp_path / "two", processes=2, accumulate=1)
    one, two, other = (load_file(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert all(torch.equal(two[name], other[name]) for name in two)
    worst = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert worst < 1e-4, worst
    assert run(tmp_path / "again", processes=2, accumulate=1, stop=4) != 0
    run(tmp_path / "again", processes=2, accumulate=1)
    again = load_file(tmp_path / "again.0")
    assert max(float((again[name] - two[name]).abs().max()) for name in two) < 1e-6


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(device="cpu") as world:
        assert world == ALONE and world.first
    assert World(rank=1, size=2).first is False
    assert torch.equal(ALONE.mean(torch.tensor(2.0)), torch.tensor(2.0))
