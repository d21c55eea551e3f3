from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import Tensor, nn

from nasvit.errors import ResourceError
from nasvit.models.mixers import MIXERS
from nasvit.runtimes import make_runtime
from nasvit.runtimes.base import failed
from nasvit.runtimes.parity import compare
from nasvit.runtimes.support import covering, known_unsupported, probes, unsupported
from nasvit.space import SearchSpace, shipped
from tests.unit.runtimes.fakes import Faulty

SPACE = """
name: small
image_size: {min: 16, max: 16, default: 16}
stem: {kind: conv, stride: 2}
stages:
  - embed_dim: 8
    depth: {range: [1, 2]}
    mixers: {choice: [catm, slide, window, fsla, [window, fsla]]}
    per_block: [mixers, keep_ratio]
    mlp_ratio: 1.0
    keep_ratio: {choice: [0.5, 1.0]}
mixers:
  window: {window_size: {choice: [2, 4]}, shift: {choice: [false, true]}, head_dim: 8}
  slide: {kernel_size: {choice: [3, 5]}, head_dim: 8}
  fsla: {cluster_depth: {choice: [0, 1]}, overlap_ratio: {choice: [0.0, 0.5]}, head_dim: 8}
"""


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.from_yaml(SPACE, in_channels=1)


def form(module: nn.Module) -> nn.Module:
    return module.eval()


@pytest.mark.parametrize("name", sorted(shipped()))
@pytest.mark.parametrize("whole", [False, True])
def test_the_covering_network_shows_every_choice_of_a_shipped_space(name: str, whole: bool) -> None:
    space = SearchSpace.load(name)
    blocks = [block for stage in covering(space, whole=whole).stages for block in stage.blocks]
    specs = {mixer for block in blocks for mixer in block.mixers}
    for rules in space.file.stages:
        for mixer in rules.mixer_names():
            for param, values in rules.params[mixer].items():
                if param in ("kernel_size", "window_size", "cluster_depth", "shift"):
                    shown = {spec.kwargs[param] for spec in specs if spec.name == mixer}
                    assert set(values.values) <= shown
        slow = {float(v) for v in rules.keep_ratio.values}
        kept = {(("+".join(m.name for m in block.mixers)), block.keep_ratio) for block in blocks}
        assert slow <= {ratio for _, ratio in kept}
        for label in rules.mixers.values:
            assert any(ratio < 1 for found, ratio in kept if found == label) or slow == {1.0}
            if whole:
                assert {ratio for found, ratio in kept if found == label} >= slow


def test_a_runtime_that_takes_all_is_asked_once(space: SearchSpace) -> None:
    runtime = Faulty()
    assert unsupported(space, runtime, form=form) == {}
    assert runtime.prepared == 1


def test_a_mixer_that_a_runtime_refuses_is_named_with_its_reason(space: SearchSpace) -> None:
    found = unsupported(space, Faulty(refuses=lambda mixer: isinstance(mixer, MIXERS["slide"])), form=form)
    assert found == {"slide": "no SlideMixer here"}
    left = space.without(found)
    assert left.size() < space.size() and all("slide" not in rules.mixer_names() for rules in left.file.stages)


def test_a_parameter_value_that_a_runtime_refuses_leaves_the_rest_of_the_mixer(space: SearchSpace) -> None:
    found = unsupported(space, Faulty(refuses=lambda mixer: getattr(mixer, "kernel_size", 3) == 5), form=form)
    assert list(found) == ["slide.kernel_size=5"]
    assert space.without(found).values_of("s0.slide.kernel_size") == (3,)


def test_the_first_value_of_a_parameter_is_blamed_and_not_its_mixer(space: SearchSpace) -> None:
    found = unsupported(space, Faulty(refuses=lambda mixer: getattr(mixer, "kernel_size", 5) == 3), form=form)
    assert list(found) == ["slide.kernel_size=3"]


def test_a_network_that_computes_something_else_is_not_supported(space: SearchSpace) -> None:
    found = unsupported(space, Faulty(change=lambda out: (out[0] * 1.1, *out[1:])), form=form)
    assert set(found) >= {"catm", "slide", "window", "fsla"} and "relative difference 0.1" in found["catm"]


def test_every_probe_names_a_choice_that_the_space_can_leave_out() -> None:
    for name in shipped():
        space = SearchSpace.load(name)
        for probe in probes(space):
            if len(space.file.stages[0].mixers.values) > 1 and "=" in probe.choice:
                space.without([probe.choice])


def test_what_was_found_is_found_again_without_asking(space: SearchSpace, tmp_path: Path) -> None:
    runtime = Faulty(refuses=lambda mixer: isinstance(mixer, MIXERS["slide"]))
    first = known_unsupported(space, runtime, form=form, cache=tmp_path, place="cpu")
    asked = runtime.prepared
    assert known_unsupported(space, runtime, form=form, cache=tmp_path, place="cpu") == first == {"slide": "no SlideMixer here"}
    assert runtime.prepared == asked
    known_unsupported(space.without(first), runtime, form=form, cache=tmp_path / "other", place="cpu")
    assert runtime.prepared > asked
    known_unsupported(space, runtime, form=form, cache=tmp_path, place="another GPU")
    assert len(list(tmp_path.glob("support-*.json"))) == 2, "what a compiler takes for one processor says nothing of another"


def test_a_full_disk_says_nothing_of_a_space(space: SearchSpace, tmp_path: Path) -> None:
    class OnFullDisk(Faulty):
        def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
            try:
                raise RuntimeError("writing the graph failed") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except RuntimeError as error:
                raise failed(error, what="no graph") from error

    with pytest.raises(ResourceError, match=r"no graph: RuntimeError: .*make room"):
        known_unsupported(space, OnFullDisk(), form=form, cache=tmp_path, place="cpu")
    assert not list(tmp_path.iterdir())


def test_every_probe_holds_its_turn(space: SearchSpace) -> None:
    held: list[str] = []

    @contextmanager
    def turn() -> Iterator[None]:
        held.append("taken")
        yield
        held.append("given back")

    runtime = Faulty(refuses=lambda mixer: isinstance(mixer, MIXERS["slide"]))
    unsupported(space, runtime, form=form, turn=turn)
    assert runtime.prepared > 3 and held == ["taken", "given back"] * (len(held) // 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shipped_space", ["hybrid_tiny", "isotropic"])
def test_every_block_of_a_shipped_space_exports_and_agrees(shipped_space: str, name: str) -> None:
    runtime = make_runtime(name)
    if runtime.missing() is not None:
        pytest.skip(str(runtime.missing()))
    from nasvit.devices.form import inference_form
    from nasvit.models.build import build

    space = SearchSpace.load(shipped_space)
    arch = covering(space)
    found = compare(inference_form(build(arch, seed=0)), runtime=runtime, shape=(1, 3, *arch.image_size), inputs=3, seed=0)
    assert found.agrees, found
