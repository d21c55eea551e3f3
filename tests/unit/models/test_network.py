"""The built network: timm's interface, any image size, slow-fast blocks that save and never distort."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nasvit.arch import Arch, Block, Head, MixerSpec, Stage, Stem
from nasvit.cost import count
from nasvit.errors import ArchError, ConfigError
from nasvit.models import Features, build
from nasvit.models.blocks import StageModule
from nasvit.torchvision_ops import ensure

ensure()
from timm.models._features import FeatureGetterNet  # noqa: E402 (timm needs torchvision importable first)

MIXERS = {
    "window": MixerSpec.of("window", window_size=3, shift=True, num_heads=2),
    "slide": MixerSpec.of("slide", kernel_size=3, num_heads=2),
    "fsla": MixerSpec.of("fsla", cluster_depth=2, overlap=2, num_heads=2),
    "catm": MixerSpec.of("catm"),
    "integration": MixerSpec.of("integration"),
    "global": MixerSpec.of("global", num_heads=2),
    "wider": MixerSpec.of("global", num_heads=3, head_dim=7),
}


def make(*names: str, keep_ratio: float = 1.0, depth: int = 2, size: tuple[int, int] = (16, 16), stem: Stem | None = None) -> Arch:
    block = Block(mixers=tuple(MIXERS[n] for n in names), mlp_dim=32, keep_ratio=keep_ratio)
    plain = replace(block, keep_ratio=1.0)
    return Arch(image_size=size, in_channels=3, num_classes=5, stem=stem or Stem(kind="conv", stride=2),
                stages=(Stage(embed_dim=8, blocks=(plain,)), Stage(embed_dim=16, blocks=(plain,) + (block,) * depth)))


def images(arch: Arch, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, arch.in_channels, *arch.image_size)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
def test_gradients_reach_every_parameter(name: str, keep_ratio: float) -> None:
    arch = make(name, keep_ratio=keep_ratio)
    net = build(arch, seed=1)
    logits, aux = net.forward_aux(images(arch))
    loss = logits.square().sum() + (aux.square().sum() if aux is not None else 0)
    loss.backward()
    assert not [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert (aux is None) == (keep_ratio == 1.0)


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (32, 16)])
@pytest.mark.parametrize("names", [("window",), ("window", "fsla"), ("integration", "catm"), ("slide",), ("global",)])
def test_height_and_width_may_differ(names: tuple[str, ...], size: tuple[int, int]) -> None:
    arch = make(*names, size=size, keep_ratio=0.5)
    assert build(arch, seed=0).eval()(images(arch)).shape == (2, 5)


def test_the_same_seed_gives_bit_equal_weights_and_leaves_the_callers_generator_alone(tiny_arch: Arch) -> None:
    before = torch.random.get_rng_state()
    a, b, c = build(tiny_arch, seed=3), build(tiny_arch, seed=3), build(tiny_arch, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.state_dict().values(), c.state_dict().values(), strict=True))


def test_a_keep_ratio_of_one_adds_no_parameter_and_no_operation() -> None:
    plain, slow = build(make("slide"), seed=0), build(make("slide", keep_ratio=0.5), seed=0)
    assert not [n for n, _ in plain.named_parameters() if "class" in n or "aux" in n]
    assert [n for n, _ in slow.named_parameters() if "class_attention" in n]


def test_a_keep_ratio_of_one_is_bit_equal_to_the_plain_block() -> None:
    arch = make("window")
    net = build(arch, seed=0).eval()
    x = images(arch)
    assert torch.equal(net.forward_features(x), _plain(net, x))


def _plain(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = net.stem(x)
    for stage in net.stages:
        x = stage.downsample(x)
        for block in stage.blocks:
            for norm, mixer in zip(block.norms, block.mixers, strict=True):
                x = x + mixer(norm(x))
            x = x + block.mlp(block.mlp_norm(x))
    return x


def test_a_segment_of_token_sets_equals_the_same_segment_run_on_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = make("global", keep_ratio=0.5, depth=3)
    net = build(arch, seed=0).double().eval()
    x = images(arch).double()
    with torch.no_grad():
        fast = net(x)
        monkeypatch.setattr("nasvit.models.blocks.MixerBlock.token_sets", property(lambda self: False))
        assert torch.allclose(fast, net(x), atol=1e-12, rtol=0)


def test_keeping_all_but_a_few_tokens_changes_little_and_less_than_keeping_few() -> None:
    outputs = {}
    for ratio in (1.0, 0.95, 0.3):
        arch = make("slide", keep_ratio=ratio, size=(32, 32))
        net = build(arch, seed=0).double().eval()
        reference = build(make("slide", size=(32, 32)), seed=0).double().state_dict()
        net.load_state_dict(reference, strict=False)
        torch.manual_seed(0)
        outputs[ratio] = net(images(arch).double()).detach()
    near, far = ((outputs[r] - outputs[1.0]).abs().max().item() for r in (0.95, 0.3))
    assert 0 < near < far


@pytest.mark.parametrize("names", [("window",), ("slide",), ("integration", "catm"), ("global",), ("window", "fsla")])
def test_macs_fall_as_the_keep_ratio_falls(names: tuple[str, ...]) -> None:
    macs = []
    for ratio in (0.9, 0.7, 0.5, 0.3):
        arch = make(*names, keep_ratio=ratio, depth=3, size=(32, 32))
        macs.append(count(build(arch, seed=0), input_shape=(1, 3, 32, 32)).macs)
    plain = count(build(make(*names, depth=3, size=(32, 32)), seed=0), input_shape=(1, 3, 32, 32)).macs
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == 4 and macs[1] < plain


def test_two_networks_in_one_process_do_not_influence_each_other() -> None:
    a, b = (build(make("global", keep_ratio=r), seed=s).eval() for r, s in ((0.5, 0), (0.3, 1)))
    x = images(a.arch)
    alone = a(x)
    b(x)
    assert torch.equal(alone, a(x))


def test_the_class_token_lives_from_the_first_to_the_last_slow_stage() -> None:
    net = build(make("global", keep_ratio=0.5), seed=0)
    assert (net.class_from, net.class_until) == (1, 1) and net.class_token.shape[-1] == 16
    assert isinstance(net.stages[1].class_proj, torch.nn.Identity)
    stem = Stem(kind="patch", stride=2, class_token=True, pos_embed=True)
    net = build(make("global", stem=stem), seed=0)
    assert (net.class_from, net.class_until) == (0, 1) and isinstance(net.stages[1], StageModule)


def test_timms_interface(tiny_arch: Arch) -> None:
    net = build(tiny_arch, seed=0).eval()
    x = images(tiny_arch)
    features = net.forward_features(x)
    assert features.shape == (2, 4, 4, 16) and net.num_features == 16
    assert torch.equal(net.forward_head(features), net(x)) and net.forward_head(features, pre_logits=True).shape == (2, 16)
    net.reset_classifier(3)
    assert net(x).shape == (2, 3) and net.num_classes == 3
    net.reset_classifier(0)
    assert net(x).shape == (2, 16)


def test_timms_feature_wrapper_gives_a_pyramid(tiny_arch: Arch) -> None:
    pyramid = FeatureGetterNet(build(tiny_arch, seed=0), out_indices=(0, 1)).eval()
    maps = pyramid(images(tiny_arch))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 8, 8), (2, 16, 4, 4)]
    assert pyramid.feature_info.channels() == [8, 16] and pyramid.feature_info.reduction() == [2, 4]


def test_features_are_the_maps_of_the_scales_as_timms_wrapper_gives_them(tiny_arch: Arch) -> None:
    x, timms = images(tiny_arch), FeatureGetterNet(build(tiny_arch, seed=0), out_indices=(0, 1)).eval()
    for scales, wanted in ((None, [0, 1]), ((0,), [0]), ((-1,), [1])):
        ours = Features(build(tiny_arch, seed=0), scales=scales).eval()
        assert all(torch.equal(a, timms(x)[i]) for a, i in zip(ours(x), wanted, strict=True))
        assert [(m.shape[1], 16 // m.shape[2]) for m in ours(x)] == list(zip(ours.feature_info.channels(), ours.feature_info.reduction(),
                                                                           strict=True))
    with pytest.raises(ConfigError, match="0 to 1"):
        Features(build(tiny_arch, seed=0), scales=(2,))


def test_intermediates_may_stop_early_and_choose_the_layout(tiny_arch: Arch) -> None:
    net, x = build(tiny_arch, seed=0).eval(), images(tiny_arch)
    (first,) = net.forward_intermediates(x, indices=[0], stop_early=True, output_fmt="NHWC", intermediates_only=True)
    last, maps = net.forward_intermediates(x)
    assert first.shape == (2, 8, 8, 8) and len(maps) == 2 and torch.equal(last, net.forward_features(x))
    with pytest.raises(ConfigError, match="0 to 1"):
        net.forward_intermediates(x, indices=[5])


@pytest.mark.parametrize("kind", ["mean", "norm_mean", "class_token"])
def test_intermediates_come_with_what_the_head_takes(kind: str) -> None:
    net = build(replace(make("global"), head=Head(kind=kind)), seed=0).eval()
    x = images(net.arch)
    last, maps = net.forward_intermediates(x)
    assert torch.equal(last, net.forward_features(x)) and torch.equal(net.forward_head(last), net(x))
    early, _ = net.forward_intermediates(x, indices=[0], stop_early=True)
    assert torch.equal(early.permute(0, 3, 1, 2), maps[0])


@pytest.mark.parametrize("wanted", [0, 3, -1])
def test_more_intermediates_than_there_are_scales_are_refused(wanted: int, tiny_arch: Arch) -> None:
    with pytest.raises(ConfigError, match="accepted: 1 to 2"):
        build(tiny_arch, seed=0).forward_intermediates(images(tiny_arch), indices=wanted)


def test_the_heads_norm_is_for_the_last_scale_alone_in_a_pruned_backbone_too(tiny_arch: Arch) -> None:
    x = images(tiny_arch)
    normed, plain = (FeatureGetterNet(build(tiny_arch, seed=0), out_indices=(0,), norm=norm).eval() for norm in (True, False))
    assert torch.equal(normed(x)[0], plain(x)[0])


def test_an_image_of_another_size_is_refused_with_the_size_it_takes(tiny_arch: Arch) -> None:
    with pytest.raises(ConfigError, match=r"\(1, 16, 16\)"):
        build(tiny_arch, seed=0)(torch.randn(1, 1, 20, 20))


@pytest.mark.parametrize(("name", "keep_ratio", "says"), [("slide", 0.5, "keep_ratio 0.5"), ("global", 1.0, "the class token")])
def test_a_convolution_in_the_mlp_is_refused_where_it_has_no_grid(name: str, keep_ratio: float, says: str) -> None:
    arch = make(name, keep_ratio=keep_ratio, stem=Stem(kind="conv", stride=2, class_token=name == "global"))
    last = replace(arch.stages[1], blocks=tuple(replace(block, mlp="conv") for block in arch.stages[1].blocks))
    with pytest.raises(ArchError, match=rf"stage 1, block \d: mlp conv .* {says}; accepted: gelu, levit"):
        build(replace(arch, stages=(arch.stages[0], last)), seed=0)
    fine = replace(arch, stem=replace(arch.stem, class_token=False), stages=(arch.stages[0], replace(last, blocks=last.blocks[:1])))
    assert build(fine, seed=0).eval()(images(arch)).shape == (2, 5)


def test_an_unknown_mixer_or_parameter_is_refused_with_the_place() -> None:
    arch = make("slide")
    odd = Block(mixers=(MixerSpec.of("slide", kernel_size=3, num_heads=2, window_size=4),), mlp_dim=8)
    with pytest.raises(ArchError, match="stage 1, block 0: mixer slide: unknown parameter 'window_size'"):
        build(replace(arch, stages=(arch.stages[0], replace(arch.stages[1], blocks=(odd,)))), seed=0)
