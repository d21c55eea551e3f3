from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem
from nasvit.drawing import MIXER_COLOURS, draw, mixer_colour
from nasvit.space import SearchSpace, shipped

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter(f"{SVG}text")]


def colours(svg: str) -> list[str]:
    return [node.get("fill", "") for node in ET.fromstring(svg).iter(f"{SVG}rect")]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_space_draws_well_formed_pictures_of_bounded_width(name: str) -> None:
    space, rng = SearchSpace.load(name), random.Random(0)
    for _ in range(20):
        arch = space.sample(rng)
        root = ET.fromstring(draw(arch))
        assert root.tag == f"{SVG}svg" and {node.tag.removeprefix(SVG) for node in root.iter()} <= {"svg", "rect", "text", "path"}
        said = texts(draw(arch))
        assert sum(text.startswith("stage ") for text in said) == len(arch.stages)
        widest = max(10 + 116 * len(stage.blocks) for stage in arch.stages)
        assert float(root.get("width", "inf")) <= max(1100 + 2 * 74, widest + 200)


def test_the_picture_says_what_the_network_is(tiny_arch: Arch) -> None:
    stage = tiny_arch.stages[1]
    kept = replace(tiny_arch, stages=(tiny_arch.stages[0], replace(stage, blocks=(replace(stage.blocks[0], keep_ratio=0.5),) * 3)))
    said = texts(draw(kept))
    assert {"16\u00d716", "1 channel", "stage 1", "8\u00d78 tokens, 8 wide", "slide", "window", "keeps 0.5", "\u00d73"} <= set(said)
    assert colours(draw(kept)).count(MIXER_COLOURS["window"]) == 1, "equal neighbours are drawn once"
    assert not [text for text in texts(draw(tiny_arch)) if "keeps" in text]


def test_heads_that_do_not_fill_the_width_are_drawn_with_their_own(tiny_arch: Arch) -> None:
    block = Block(mixers=(MixerSpec.of("slide", kernel_size=3, num_heads=3, head_dim=5),), mlp_dim=16)
    said = texts(draw(replace(tiny_arch, stages=(replace(tiny_arch.stages[0], blocks=(block,)), tiny_arch.stages[1]))))
    assert {"kernel 3, 3 heads of 5", "2 heads, window 4"} <= set(said)


def test_two_mixers_of_a_block_stand_above_each_other() -> None:
    block = Block(mixers=(MixerSpec.of("integration"), MixerSpec.of("catm")), mlp_dim=16)
    arch = Arch(image_size=(16, 16), in_channels=3, num_classes=2, stem=Stem(kind="conv", stride=4),
                stages=(Stage(embed_dim=8, blocks=(block,)),))
    tops = {node.get("fill"): (node.get("x"), float(node.get("y", "0"))) for node in ET.fromstring(draw(arch)).iter(f"{SVG}rect")}
    upper, lower = tops[MIXER_COLOURS["integration"]], tops[MIXER_COLOURS["catm"]]
    assert upper[0] == lower[0] and upper[1] < lower[1]


def test_text_from_outside_is_escaped(tiny_arch: Arch) -> None:

    spec = MixerSpec(name="slide", params=(("kernel_size", 3), ("num_heads", 2)))
    object.__setattr__(spec, "name", "<script>alert(1)</script>")
    block = tiny_arch.stages[0].blocks[0]
    object.__setattr__(block, "mixers", (spec,))
    picture = draw(tiny_arch)
    assert "<script" not in picture and "<script>alert(1)</script>" in texts(picture)


def test_an_arch_draws_itself_in_a_notebook(tiny_arch: Arch) -> None:
    assert tiny_arch._repr_html_() == draw(tiny_arch)


def test_a_mixer_of_another_package_has_its_own_colour_always_the_same() -> None:
    assert mixer_colour("theirs") == mixer_colour("theirs") and mixer_colour("theirs") not in MIXER_COLOURS.values()
