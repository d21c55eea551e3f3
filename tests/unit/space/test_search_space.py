from __future__ import annotations

import random
from dataclasses import replace

import optuna
import pytest

from nasvit.arch import Arch, MixerSpec
from nasvit.errors import ConfigError
from nasvit.space import SearchSpace, shipped

SMALL = """\
name: small
image_size: {min: 16, max: 32, multiple_of: 16, default: 16}
stem: {kind: conv, stride: 2}
stages:
  - embed_dim: {choice: [8, 16]}
    depth: {range: [1, 2]}
    mixers: {choice: [catm, window, fsla, [window, fsla]]}
    per_block: [mixers]
    mlp_ratio: {choice: [1.0, 1.5]}
    keep_ratio: {choice: [0.5, 1.0]}
  - embed_dim: 16
    depth: 3
    mixers: {choice: [global, slide]}
    per_block: [mixer_params]
    mlp_ratio: {range: [1.0, 1.4], step: 0.2}
    keep_ratio: {choice: [0.5, 1.0]}
    segments: 2
    slide: {kernel_size: {choice: [3, 7]}, num_heads: 2}
mixers:
  window: {window_size: {choice: [4, 8]}, shift: {choice: [false, true]}, head_dim: 8}
  fsla: {cluster_depth: {choice: [0, 2]}, overlap_ratio: {choice: [0.0, 0.25]}, head_dim: {choice: [4, 8]}}
  global: {head_dim: 8}
  slide: {head_dim: 8}
"""


def edited(*pairs: tuple[str, str]) -> str:
    text = SMALL
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return text


@pytest.fixture(scope="module")
def small() -> SearchSpace:
    return SearchSpace.from_yaml(SMALL)


@pytest.mark.parametrize("per_block", ["[]", "[mixers]", "[mixer_params]", "[mlp_ratio]", "[mixer_params, mlp_ratio, keep_ratio]"])
def test_size_equals_the_number_of_distinct_archs_walked(per_block: str) -> None:
    text = edited(("per_block: [mixers]", f"per_block: {per_block}"), ("depth: 3", "depth: 1"), ("segments: 2", "segments: 1"))
    if "keep_ratio" in per_block:
        text = text.replace("choice: [catm, window, fsla, [window, fsla]]", "choice: [catm, window]").replace(
            "  fsla: {cluster_depth: {choice: [0, 2]}, overlap_ratio: {choice: [0.0, 0.25]}, head_dim: {choice: [4, 8]}}\n", "")
    space = SearchSpace.from_yaml(text)
    if space.size() > 20_000:  # walk the first stage alone; the sizes of stages multiply
        alone = SearchSpace.from_yaml(text.replace("mixers: {choice: [global, slide]}", "mixers: global").replace(
            "    slide: {kernel_size: {choice: [3, 7]}, num_heads: 2}\n", "").replace("  slide: {head_dim: 8}\n", "").replace(
            "range: [1.0, 1.4], step: 0.2", "choice: [1.0]"))
        space = alone
    ids = [arch.id for arch in space.enumerate()]
    assert len(ids) == len(set(ids)) == space.size()


def test_the_number_of_stages_can_be_a_choice() -> None:
    text = edited(("stages:", "num_stages: {range: [1, 2]}\nstages:"),
                  ("mixers: {choice: [catm, window, fsla, [window, fsla]]}", "mixers: catm"),
                  ("depth: 3", "depth: 1"), ("segments: 2", "segments: 1"))
    text = text[: text.index("  window:")] + text[text.index("  global:"):]
    space = SearchSpace.from_yaml(text)
    archs = list(space.enumerate())
    assert len({arch.id for arch in archs}) == space.size() and {len(arch.stages) for arch in archs} == {1, 2}
    for arch in archs[:: 17]:
        assert space.from_parameters(space.arch_parameters(arch)) == arch
        code = space.encode(arch)
        assert len(code) == len(space.encoding_names()) and code[0] == len(arch.stages) - 1
        assert len(arch.stages) == 2 or not any(v for n, v in zip(space.encoding_names(), code, strict=True) if n.startswith("s1."))


@pytest.mark.parametrize("value", ["0", "3", "{range: [1, 3]}", "[1, 2]", "two"])
def test_there_are_no_more_stages_than_are_described(value: str) -> None:
    with pytest.raises(ConfigError, match=r":4: num_stages"):
        SearchSpace.from_yaml(edited(("stages:", f"num_stages: {value}\nstages:")))


def test_segments_and_per_block_parameters_count_exactly() -> None:
    text = edited(("mixers: {choice: [catm, window, fsla, [window, fsla]]}", "mixers: catm"), ("depth: {range: [1, 2]}", "depth: 1"))
    text = text[: text.index("  window:")] + text[text.index("  global:"):]
    space = SearchSpace.from_yaml(text)
    ids = {arch.id for arch in space.enumerate()}
    assert len(ids) == space.size() == (2 * 2 * 2) * (1 + 2**3) * 3 * 2**2


def test_suggest_and_arch_parameters_are_inverse(small: SearchSpace) -> None:
    rng = random.Random(0)
    for _ in range(100):
        arch = small.sample(rng)
        params = small.arch_parameters(arch)
        assert small.suggest(optuna.trial.FixedTrial(params)) == arch == small.from_parameters(params)
        assert [p.path for p in small.parameters_of(arch)] == list(params)
        assert small.contains(arch) and Arch.from_json(arch.to_json()) == arch


def test_an_optuna_study_gives_archs_of_the_space_with_ordinals_as_ordinals(small: SearchSpace) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    archs = []
    for _ in range(40):
        trial = study.ask()
        archs.append(small.suggest(trial))
        assert small.arch_parameters(archs[-1]) == pytest.approx(trial.params)
    assert all(small.contains(arch) for arch in archs) and len({arch.id for arch in archs}) > 30
    assert isinstance(trial.distributions["s0.embed_dim"], optuna.distributions.IntDistribution)
    assert isinstance(trial.distributions["s1.mlp_ratio"], optuna.distributions.FloatDistribution)


def test_conditional_and_forced_parameters_are_not_asked(small: SearchSpace) -> None:
    for seed in range(60):
        params = small.arch_parameters(small.sample(random.Random(seed)))
        for b in range(2):
            mixers = str(params.get(f"s0.b{b}.mixers", ""))
            assert (f"s0.b{b}.window.window_size" in params) == ("window" in mixers)
            assert (f"s0.b{b}.window.shift" in params) == ("window" in mixers and params[f"s0.b{b}.window.window_size"] == 4)
            assert (f"s0.b{b}.fsla.overlap_ratio" in params) == ("fsla" in mixers and params[f"s0.b{b}.fsla.cluster_depth"] == 2)


def test_segments_share_one_keep_ratio(small: SearchSpace) -> None:
    arch = small.from_parameters({"s1.g0.keep_ratio": 0.5, "s1.g1.keep_ratio": 1.0}, rng=random.Random(0))
    assert [block.keep_ratio for block in arch.stages[1].blocks] == [0.5, 0.5, 1.0]


def test_ratios_become_integers(small: SearchSpace) -> None:
    params = {"s0.embed_dim": 16, "s0.depth": 1, "s0.b0.mixers": "fsla", "s0.b0.fsla.cluster_depth": 2,
              "s0.b0.fsla.overlap_ratio": 0.25, "s0.b0.fsla.head_dim": 4, "s0.mlp_ratio": 1.5}
    block = small.from_parameters(params, rng=random.Random(0)).stages[0].blocks[0]
    assert block.mlp_dim == 24 and block.mixers[0].kwargs == {"cluster_depth": 2, "overlap": 4, "num_heads": 4}


def test_contains_is_false_outside_and_raises_nothing(small: SearchSpace, tiny_arch: Arch) -> None:
    arch = small.sample(random.Random(1))
    stage = arch.stages[0]
    thinner = replace(arch, stages=(replace(stage, blocks=(replace(stage.blocks[0], mlp_dim=7), *stage.blocks[1:])), arch.stages[1]))
    narrow = MixerSpec.of("slide", kernel_size=3, num_heads=1, head_dim=8)  # the head_dim of the space, in a narrower attention
    pruned = replace(arch, stages=(stage, replace(arch.stages[1], blocks=(replace(arch.stages[1].blocks[0], mixers=(narrow,)),) * 3)))
    for foreign in (tiny_arch, thinner, pruned, replace(arch, num_classes=11), replace(arch, image_size=(32, 32)),
                    replace(arch, stages=arch.stages[:1]), replace(arch, stages=(replace(stage, blocks=stage.blocks * 3), arch.stages[1])),
                    replace(arch, stages=arch.stages[::-1])):
        assert not small.contains(foreign)
    with pytest.raises(ConfigError, match="not in space"):
        small.encode(thinner)


def test_a_foreign_or_missing_choice_is_refused_with_the_accepted_ones(small: SearchSpace) -> None:
    params = small.arch_parameters(small.sample(random.Random(0)))
    with pytest.raises(ConfigError, match=r"s0.embed_dim 12 .*accepted: 8, 16"):
        small.from_parameters({**params, "s0.embed_dim": 12})
    with pytest.raises(ConfigError, match=r"s0.depth is missing"):
        small.from_parameters({"s0.embed_dim": 8})


def test_encoding_has_one_length_stays_in_0_to_1_and_counts_ordinals_by_rank(small: SearchSpace) -> None:
    names = small.encoding_names()
    assert len(names) == len(set(names))
    for seed in range(100):
        arch = small.sample(random.Random(seed))
        code = dict(zip(names, small.encode(arch), strict=True))
        assert all(0 <= value <= 1 for value in code.values())
        assert code["s0.embed_dim"] == (arch.stages[0].embed_dim == 16)
        blocks = arch.stages[0].blocks
        assert code["s0.fsla"] == pytest.approx(sum(any(m.name == "fsla" for m in b.mixers) for b in blocks) / len(blocks))
        assert code["s1.keep_ratio"] == pytest.approx(sum(b.keep_ratio == 1 for b in arch.stages[1].blocks) / 3)


def test_image_sizes(small: SearchSpace) -> None:
    assert small.fit_image_size((8, 17)) == (16, 32) and small.fit_image_size((100, 16)) == (32, 16)
    wide = SearchSpace.from_yaml(SMALL, image_size=(16, 32), in_channels=1, num_classes=7)
    arch = wide.sample(random.Random(0))
    assert (arch.image_size, arch.in_channels, arch.num_classes) == ((16, 32), 1, 7)
    with pytest.raises(ConfigError, match=r"image size \(24, 16\).*accepted sides: 16, 32"):
        SearchSpace.from_yaml(SMALL, image_size=(24, 16))


def test_check_all_sizes_finds_what_the_default_size_hides() -> None:
    text = edited(("window_size: {choice: [4, 8]}", "window_size: {choice: [4, 16]}"), ("default: 16", "default: 32"))
    space = SearchSpace.from_yaml(text)
    with pytest.raises(ConfigError, match=r"window_size 16 is not possible"):
        space.check_all_sizes()


@pytest.mark.parametrize(("old", "new", "line", "says"), [
    ("name: small", "nme: small", 1, "did you mean 'name'"),
    ("    depth: 3", "    dept: 3", None, "depth"),
    ("depth: 3", "depht: 3\n    depth: 3", 12, "did you mean 'depth'"),
    ("stride: 2", "stride: 3", 3, "stride 2, 4, 8 or 16, not 3"),
    ("kind: conv", "kind: cnv", 3, "conv, conv_bias, patch"),
    ("kind: conv", "kind: conv, strid: 1", 3, "did you mean 'stride'"),
    ("range: [1, 2]", "range: [2, 1]", 6, "upwards"),
    ("step: 0.2", "step: 0.3", 15, "does not lead from 1.0 to 1.4"),
    ("range: [1, 2]", "range: [1, 99]", 6, "from 1 to 64, not"),
    ("choice: [8, 16]", "choice: []", 5, "list of 1 to"),
    ("choice: [8, 16]", "choice: [8, 8]", 5, "twice"),
    ("choice: [8, 16]", "choice: [8, '16']", 5, "mixes"),
    ("choice: [8, 16]", "choice: [8, 16.5]", 5, "whole numbers"),
    ("choice: [8, 16]", "choice: [8, true]", 5, "mixes"),
    ("choice: [8, 16]", "chioce: [8, 16]", 5, "did you mean 'choice'"),
    ("choice: [8, 16]", "choice: [8, .nan]", 5, "must be a number"),
    ("choice: [8, 16]", "choice: [8, 12]", 21, "head_dim 8 is not possible; accepted: a divisor of embed_dim 12: 1, 2, 3, 4, 6, 12"),
    ("num_heads: 2}", "num_heads: 3}", 18, "num_heads 3 is not possible"),
    ("window_size: {choice: [4, 8]}", "window_size: {choice: [4, 9]}", 20, "window_size 9 is not possible; accepted: 1 to 8"),
    ("cluster_depth: {choice: [0, 2]}", "cluster_depth: {choice: [0, 7]}", 21, "cluster_depth 7 is not possible; accepted: 0 to 6"),
    ("overlap_ratio: {choice: [0.0, 0.25]}", "overlap_ratio: {choice: [0.0, 0.01]}", 21, "build the same network"),
    ("overlap_ratio: {choice: [0.0, 0.25]}", "overlap_ratio: 1.5", 21, "overlap_ratio 1.5"),
    ("kernel_size: {choice: [3, 7]}", "kernel_size: {choice: [3, 4]}", 18, "kernel_size 4 is not possible; accepted: an odd"),
    ("head_dim: {choice: [4, 8]}", "head_dim: {choice: [4, 8]}, num_heads: 2", 21, "say the same"),
    ("mlp_ratio: {choice: [1.0, 1.5]}", "mlp_ratio: {choice: [1.0, 1.01]}", 9, "the same mlp_dim 8"),
    ("keep_ratio: {choice: [0.5, 1.0]}", "keep_ratio: {choice: [0.0, 1.0]}", 10, "from 0.01 to 1"),
    ("keep_ratio: {choice: [0.5, 1.0]}", "keep_ratio: {choice: [0.5, 0.501, 1.0]}", 10, "0.5 and 0.501 keep the same number of tokens"),
    ("per_block: [mixers]", "per_block: [mixer]", 8, "did you mean 'mixers'"),
    ("segments: 2", "segments: 4", 17, "smallest depth 3"),
    ("  global: {head_dim: 8}", "  globl: {head_dim: 8}", 22, "no stage chooses it"),
    ("    slide: {kernel", "    fsla: {kernel", 18, "unknown key 'fsla'"),
    ("[window, fsla]]", "[window, window]]", 7, "different names"),
    ("default: 16", "default: 24", 2, "16, 32, not 24"),
    ("max: 32", "max: 33", 2, "multiples of multiple_of 16"),
])
def test_what_is_wrong_is_named_with_file_line_and_what_is_accepted(old: str, new: str, line: int | None, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        SearchSpace.from_yaml(edited((old, new)), name="s.yaml")
    assert says in str(error.value)
    assert str(error.value).startswith(f"s.yaml:{line}: " if line else "s.yaml:")


def test_a_space_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 1e60"):
        SearchSpace.from_yaml(edited(("range: [1, 2]", "range: [1, 60]")))


def test_keep_ratio_below_1_is_refused_on_a_single_token() -> None:
    text = edited(("stride: 2", "stride: 8"), ("choice: [catm, window, fsla, [window, fsla]]", "choice: [catm]"))
    text = text[: text.index("  window:")] + text[text.index("  global:"):]
    with pytest.raises(ConfigError, match="1x1 map"):
        SearchSpace.from_yaml(text)


def test_loading_a_file_or_a_shipped_name_and_the_copy_gives_the_same_space(tmp_path) -> None:  # type: ignore[no-untyped-def]
    space = SearchSpace.load("hybrid_tiny", image_size=(16, 16), in_channels=1)
    copy = tmp_path / "space.yaml"
    copy.write_text(space.to_yaml())
    again = SearchSpace.load(copy, image_size=(16, 16), in_channels=1)
    assert again.size() == space.size() and again.sample(random.Random(3)) == space.sample(random.Random(3))
    with pytest.raises(ConfigError, match="did you mean 'hybrid_tiny'"):
        SearchSpace.load("hybrid_tny")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_space_holds_at_every_size_and_knows_its_samples(name: str) -> None:
    space = SearchSpace.load(name)
    space.check_all_sizes()
    assert space.name == name and space.file.description
    rng = random.Random(0)
    for _ in range(20):
        arch = space.sample(rng)
        assert space.from_parameters(space.arch_parameters(arch)) == arch
