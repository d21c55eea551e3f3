"""The picture of the tokens of a search's front: of the knee, else of the best that selects any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from nasvit.experiment import Experiment
from nasvit.search import tokens
from nasvit.search.evaluate import Settings
from tests.unit.search.fakes import arch, kept, selecting, settings

NAMES = ("accuracy", "latency_ms")


@pytest.fixture
def common(tmp_path: Path) -> Settings:
    return settings(tmp_path, Experiment(space="small"))


def test_the_knee_is_shown_where_it_selects_tokens_else_the_best_that_does(tmp_path: Path, common: Settings) -> None:
    one, two, three = selecting(), selecting(width=16), arch()
    front = [kept(tmp_path, 0, one, accuracy=0.5, latency=1.0), kept(tmp_path, 1, two, accuracy=0.9, latency=1.1),
             kept(tmp_path, 2, three, accuracy=0.95, latency=9.0)]
    made = tokens.draw_front(front, settings=common, names=NAMES, folder=tmp_path)
    assert made is not None and made["arch_id"] == two.id and made["knee"] and made["panels"] >= 1
    with Image.open(tmp_path / "tokens.png") as picture:
        height = picture.height
        assert picture.width > 0 and made["images"] == tokens.SHOWN and height % tokens.SHOWN == 0
    turned = [replace(front[0], objectives={"accuracy": 0.5, "latency_ms": 1.0}),
              replace(front[2], objectives={"accuracy": 0.9, "latency_ms": 1.1}),
              replace(front[1], objectives={"accuracy": 0.95, "latency_ms": 9.0})]
    made = tokens.draw_front(turned, settings=common, names=NAMES, folder=tmp_path)
    assert made is not None and made["arch_id"] == two.id and not made["knee"], "the knee sees all of its tokens"


def test_without_weights_or_selection_there_is_no_picture_and_an_earlier_one_goes(tmp_path: Path, common: Settings) -> None:
    first = kept(tmp_path, 0, selecting(), accuracy=0.5, latency=1.0)
    (tmp_path / "tokens.png").write_bytes(b"of another front")
    assert tokens.draw_front([replace(first, checkpoint=None)], settings=common, names=NAMES, folder=tmp_path) is None
    assert not (tmp_path / "tokens.png").exists()
    second = kept(tmp_path, 1, arch(), accuracy=0.9, latency=2.0)
    assert tokens.draw_front([second], settings=common, names=NAMES, folder=tmp_path) is None
    assert tokens.draw_front([], settings=common, names=NAMES, folder=tmp_path) is None
    other = kept(tmp_path, 2, selecting(width=16), accuracy=0.9, latency=2.0)
    (tmp_path / str(first.checkpoint)).unlink()
    made = tokens.draw_front([first, other], settings=common, names=NAMES, folder=tmp_path)
    assert made is not None and made["arch_id"] == other.arch_id, "the first one's weights are gone"
