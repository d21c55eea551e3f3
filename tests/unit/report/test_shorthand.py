from __future__ import annotations

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem
from nasvit.report.shorthand import arch_text, main_mixer, mean_keep_ratio, stage_line

SLIDE = MixerSpec.of("slide", kernel_size=5, num_heads=2)
WINDOW = MixerSpec.of("window", window_size=4, shift=False, num_heads=2)
FSLA = MixerSpec.of("fsla", cluster_depth=1, overlap=0, num_heads=2)
CATM = MixerSpec.of("catm")


def _arch(*stages: tuple[Block, ...]) -> Arch:
    return Arch(image_size=(32, 16), in_channels=3, num_classes=2, stem=Stem(kind="conv", stride=2),
                stages=tuple(Stage(embed_dim=8 * 2**s, blocks=blocks) for s, blocks in enumerate(stages)))


def test_text_counts_equal_neighbours_joins_mixers_and_shows_the_keep_ratio() -> None:
    plain = Block(mixers=(SLIDE,), mlp_dim=16)
    arch = _arch((plain, plain), (Block(mixers=(WINDOW, FSLA), mlp_dim=32, keep_ratio=0.5), Block(mixers=(CATM,), mlp_dim=32)))
    assert arch_text(arch) == "slide5\u00d72 | window4+fsla@0.5 catm"
    assert stage_line(arch, stage=1) == "8\u00d74 map, 16 wide: window4+fsla@0.5 catm"
    assert mean_keep_ratio(arch) == (1 + 1 + 0.5 + 1) / 4


def test_main_mixer_splits_a_block_between_its_mixers() -> None:
    both = Block(mixers=(WINDOW, FSLA), mlp_dim=16)
    assert main_mixer(_arch((both, Block(mixers=(CATM,), mlp_dim=16)))) == "catm"
    assert main_mixer(_arch((both, both))) == "window", "a tie goes by the fixed order"
