"""What every test stands on: one thread, fixed seeds, a cache of its own, a tiny Arch, tiny data."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NASVIT_NOISE", "keep")  # tests run on busy machines and assert no time
if "NASVIT_CACHE" not in os.environ:  # the user's own calibrations are none of a test's business
    os.environ["NASVIT_CACHE"] = tempfile.mkdtemp(prefix="nasvit-tests-")
    atexit.register(shutil.rmtree, os.environ["NASVIT_CACHE"], ignore_errors=True)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup: the processes that tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import torch

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("NASVIT_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def shared() -> Path:
    """The folder of reference outputs and real images; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference data folder {SHARED} (set NASVIT_SHARED)")
    return SHARED


@pytest.fixture
def tiny_arch() -> Arch:
    """16x16 grey images, 10 classes, two stages, every kind of block that needs no special size."""
    window = MixerSpec.of("window", window_size=4, shift=False, num_heads=2)
    slide = MixerSpec.of("slide", kernel_size=3, num_heads=2)
    return Arch(image_size=(16, 16), in_channels=1, num_classes=10, stem=Stem(kind="conv", stride=2),
                stages=(Stage(embed_dim=8, blocks=(Block(mixers=(slide,), mlp_dim=16),)),
                        Stage(embed_dim=16, blocks=(Block(mixers=(window,), mlp_dim=32),))))
