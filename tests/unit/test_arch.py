"""Arch: one spelling for one network, strict on the way in, exact on the way out."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem
from nasvit.errors import ArchError
from nasvit.vocabulary import forced


def one_block(mixer: MixerSpec, *, size: int = 16, dim: int = 16, keep_ratio: float = 1.0) -> Arch:
    block = Block(mixers=(mixer,), mlp_dim=32, keep_ratio=keep_ratio)
    return Arch(image_size=(size, size), in_channels=3, num_classes=10, stem=Stem(kind="conv", stride=2),
                stages=(Stage(embed_dim=dim, blocks=(block,)),))


def test_json_round_trip_is_exact(tiny_arch: Arch) -> None:
    again = Arch.from_json(tiny_arch.to_json())
    assert again == tiny_arch and again.to_json() == tiny_arch.to_json() and again.id == tiny_arch.id and len(again.id) == 12


def test_the_order_of_parameters_does_not_make_another_network() -> None:
    a = MixerSpec.of("window", window_size=4, shift=False, num_heads=2)
    b = MixerSpec.of("window", num_heads=2, shift=False, window_size=4)
    assert a == b and one_block(a).id == one_block(b).id


def test_an_integer_keep_ratio_is_the_same_as_a_float() -> None:
    mixer = MixerSpec.of("global", num_heads=2)
    assert one_block(mixer, keep_ratio=1).id == one_block(mixer, keep_ratio=1.0).id


def test_any_change_makes_another_id(tiny_arch: Arch) -> None:
    others = [replace(tiny_arch, num_classes=11), replace(tiny_arch, stem=replace(tiny_arch.stem, pos_embed=True)),
              replace(tiny_arch, stages=tiny_arch.stages[:1])]
    assert len({tiny_arch.id, *(o.id for o in others)}) == 4


@pytest.mark.parametrize(("mixer", "message"), [
    (MixerSpec.of("window", window_size=4, shift=False, num_heads=3), "divisor of embed_dim 16: 1, 2, 4, 8, 16"),
    (MixerSpec.of("window", window_size=9, shift=False, num_heads=2), "1 to 8, the shorter side of the 8x8 map"),
    (MixerSpec.of("window", window_size=8, shift=True, num_heads=2), "false where the window is one token or covers the map"),
    (MixerSpec.of("slide", kernel_size=4, num_heads=2), "an odd number from 3"),
    (MixerSpec.of("fsla", cluster_depth=7, overlap=0, num_heads=2), "0 to 6: 2**cluster_depth must divide 64 tokens"),
    (MixerSpec.of("fsla", cluster_depth=2, overlap=17, num_heads=2), "0 to 16 tokens at cluster_depth 2"),
    (MixerSpec.of("fsla", cluster_depth=0, overlap=1, num_heads=2), "0 to 0 tokens"),
    (MixerSpec.of("global", num_heads=3, head_dim=0), "head_dim 0 is not possible; accepted: a positive integer"),
    (MixerSpec.of("global", num_heads=2**11, head_dim=2**10), "head_dim 1024 is not possible; accepted: a positive integer, times"),
    (MixerSpec.of("global", num_heads=0, head_dim=5), "num_heads 0 is not possible; accepted: a positive integer"),
    (MixerSpec.of("global", num_heads=2, head_dim=8), "leaving it out where 2 heads of it fill embed_dim 16"),
    (MixerSpec.of("cross_window", num_heads=3, head_dim=5, split_size=2), "a positive even number"),
])
def test_an_impossible_parameter_names_stage_block_and_what_is_accepted(mixer: MixerSpec, message: str) -> None:
    with pytest.raises(ArchError, match="stage 0, block 0") as caught:
        one_block(mixer)
    assert message in str(caught.value)


def test_heads_of_a_width_of_their_own_need_not_divide_the_stage_and_are_another_network() -> None:
    one, two = (one_block(MixerSpec.of("global", num_heads=3, head_dim=d)) for d in (4, 5))
    assert one.id != two.id and Arch.from_json(one.to_json()) == one


def test_a_patch_stem_wants_a_divisible_image() -> None:
    with pytest.raises(ArchError, match="divisible"):
        replace(one_block(MixerSpec.of("catm"), size=32), stem=Stem(kind="patch", stride=5))


def test_one_token_cannot_be_split_into_kept_and_placeholders() -> None:
    with pytest.raises(ArchError, match="at least 2 tokens"):
        one_block(MixerSpec.of("catm"), size=2, keep_ratio=0.5)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, True, "0.5"])
def test_keep_ratio_is_a_share(ratio: object) -> None:
    with pytest.raises(ArchError, match="keep_ratio"):
        Block(mixers=(MixerSpec.of("catm"),), mlp_dim=4, keep_ratio=ratio)  # type: ignore[arg-type]


def test_grids_round_up_at_every_stride() -> None:
    stage = Stage(embed_dim=8, blocks=(Block(mixers=(MixerSpec.of("catm"),), mlp_dim=8),))
    arch = Arch(image_size=(33, 41), in_channels=3, num_classes=2, stem=Stem(kind="conv", stride=4), stages=(stage, stage, stage))
    assert [arch.grid(i) for i in range(3)] == [(9, 11), (5, 6), (3, 3)]


def test_forced_parameters_are_those_without_a_choice() -> None:
    assert forced("shift", {"window_size": 8}, grid=(8, 8)) is False
    assert forced("shift", {"window_size": 4}, grid=(8, 8)) is None
    assert forced("overlap", {"cluster_depth": 0}, grid=(8, 8)) == 0
    assert forced("overlap", {"cluster_depth": 1}, grid=(8, 8)) is None


def test_unknown_and_missing_keys_are_named(tiny_arch: Arch) -> None:
    data = tiny_arch.to_dict()
    data["stages"][0]["blocks"][0]["mlp_ratio"] = data["stages"][0]["blocks"][0].pop("mlp_dim")
    with pytest.raises(ArchError, match=r"stage 0, block 0: unknown keys \['mlp_ratio'\], missing keys \['mlp_dim'\]"):
        Arch.from_dict(data)


@pytest.mark.parametrize(("mixer", "says"), [({"name": 3}, "identifier"), ({"name": "catm", "z": [1]}, "parameter 'z'"),
                                             *(({"name": "catm", "z": value}, "finite") for value in (math.nan, math.inf, -math.inf))])
def test_a_damaged_mixer_is_named_by_stage_and_block(tiny_arch: Arch, mixer: dict[str, object], says: str) -> None:
    data = tiny_arch.to_dict()
    data["stages"][1]["blocks"][0]["mixers"] = [mixer]
    with pytest.raises(ArchError, match=rf"stage 1, block 0: .*{says}"):
        Arch.from_dict(data)


def test_a_mixer_has_every_parameter_once_and_none_in_the_place_of_its_name() -> None:
    with pytest.raises(ArchError, match="different names"):
        MixerSpec(name="window", params=(("a", 1), ("a", 2)))
    with pytest.raises(ArchError, match="none of them 'name'"):
        MixerSpec.of("window", name="slide")


@settings(max_examples=300, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6),
       st.sampled_from(["image_size", "in_channels", "num_classes", "stem", "stages", "head"]))
def test_a_damaged_arch_is_an_arch_error_and_nothing_else(value: object, key: str) -> None:
    data = one_block(MixerSpec.of("catm")).to_dict()
    data[key] = value
    with contextlib.suppress(ArchError):
        Arch.from_json(json.dumps(data))
