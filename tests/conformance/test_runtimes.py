"""What every registered runtime must do, where it can be used; where it cannot, it must say why and do nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nasvit.arch import Arch, Block, MixerSpec
from nasvit.devices.form import inference_form
from nasvit.errors import ConfigError, MeasurementError
from nasvit.models.build import build
from nasvit.runtimes import RUNTIMES, FileRuntime, Runtime
from nasvit.runtimes.parity import compare

SLOW = ("aotinductor", "compile", "executorch", "litert")  # they compile, or start another environment


def params(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.fixture(params=params(RUNTIMES.names()))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return RUNTIMES[request.param]()


@pytest.fixture
def usable(runtime: Runtime) -> Runtime:
    reason = runtime.missing()
    if reason is not None:
        pytest.skip(f"{runtime.name}: {reason}")
    return runtime


def network(runtime: Runtime) -> tuple[nn.Module, Tensor]:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
    place = runtime.devices[0]
    return module.to(place), torch.randn(2, 3, 8, 8, device=place)


def test_the_prepared_call_agrees_with_the_module_and_leaves_it_alone(usable: Runtime) -> None:
    module, example = network(usable)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with torch.inference_mode():
        prepared = usable.prepare(module, example)
        for image in (example, torch.randn_like(example)):
            expected = module(image)
            assert (torch.as_tensor(prepared(image)) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert not module.training and all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_searched_network_agrees_with_eager(usable: Runtime, tiny_arch: Arch) -> None:
    form = inference_form(build(tiny_arch, seed=0)).to(usable.devices[0])
    found = compare(form, runtime=usable, shape=(1, 1, 16, 16), inputs=3, seed=0)
    assert found.agrees and found.unstable == 0 and found.flipped is None


def test_a_network_that_clusters_and_selects_tokens_agrees_with_eager(usable: Runtime, tiny_arch: Arch) -> None:
    fsla = Block(mixers=(MixerSpec.of("fsla", num_heads=2, cluster_depth=2, overlap=4),), mlp_dim=16)
    slow = Block(mixers=(MixerSpec.of("global", num_heads=2),), mlp_dim=32, keep_ratio=0.5)
    first, second = tiny_arch.stages
    arch = replace(tiny_arch, stages=(replace(first, blocks=(fsla,)), replace(second, blocks=(slow,))))
    form = inference_form(build(arch, seed=0)).to(usable.devices[0])
    found = compare(form, runtime=usable, shape=(1, 1, 16, 16), inputs=6, seed=0)
    assert found.agrees and found.unstable < 1 and found.flipped is not None and found.flipped < 0.05


def test_it_says_what_runs_it_with_a_version(usable: Runtime) -> None:
    assert any(c.isdigit() for c in usable.version())


def test_a_missing_runtime_is_an_error_with_its_reason_and_never_another_runtime(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(runtime), "missing", lambda self: "it was not installed")
    if runtime.name == "eager":
        pytest.skip("eager is never missing")
    with pytest.raises(ConfigError, match=f"runtime {runtime.name} cannot be used here: it was not installed"):
        runtime.prepare(*network(runtime)) if torch.device(runtime.devices[0]).type == "cpu" else runtime.check()


def test_an_unknown_setting_and_an_unknown_value_are_refused(runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'colour' \(accepted: threads"):
        type(runtime)(colour="red")
    for key, values in runtime.accepted.items():
        if values:
            with pytest.raises(ConfigError, match=f"{key} must be one of"):
                type(runtime)(**{key: "no such value"})


def test_a_file_holds_all_it_needs_beside_it(usable: Runtime, tmp_path: Path) -> None:
    if not isinstance(usable, FileRuntime):
        pytest.skip(f"{usable.name} has no file")
    module, example = network(usable)
    path = usable.export(module, example, tmp_path / "made" / "model")
    assert path.suffix == usable.suffix and path.parent == tmp_path / "made"
    moved = tmp_path / "moved"
    path.parent.rename(moved)
    (outputs,) = usable.run_file(moved / path.name, [example.numpy()], threads=1)
    assert (torch.from_numpy(outputs[0]) - module(example)).abs().max() <= 1e-4 * module(example).abs().max()


def test_a_network_in_train_mode_is_not_exported(usable: Runtime, tmp_path: Path) -> None:
    if not isinstance(usable, FileRuntime):
        pytest.skip(f"{usable.name} has no file")
    module, example = network(usable)
    with pytest.raises(MeasurementError, match="train mode"):
        usable.export(module.train(), example, tmp_path / "model")
