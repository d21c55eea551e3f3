"""What every token mixer must do. Parametrised over the registry: a mixer with parameters of the vocabulary joins by itself."""

from __future__ import annotations

import inspect
import io
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasvit.arch import Grid, MixerSpec, Scalar, check_mixer
from nasvit.cost import count
from nasvit.errors import ArchError
from nasvit.models.mixers import MIXERS, Mixer, make_mixer, parameters_of
from nasvit.vocabulary import VOCABULARY

DIM = 8
SQUARE, WIDE, ODD = (8, 8), (6, 10), (7, 5)  # WIDE: the sampled window does not divide it
SAMPLES: dict[str, tuple[Scalar | None, ...]] = {  # None: not given
    "num_heads": (2,), "head_dim": (None, 3), "window_size": (4,), "shift": (False, True), "kernel_size": (3, 5), "split_size": (2, 3, 8),
    "reduction": (2, 3), "cluster_depth": (0, 2), "overlap": (0, 2)}


def sample_params(schema: Mapping[str, inspect.Parameter], *, dim: int, grid: Grid) -> list[dict[str, Scalar]]:
    """Every combination of the samples of the vocabulary names in `schema` that is possible at this width and grid."""
    names = [name for name in schema if name in SAMPLES]
    found = []
    for values in itertools.product(*(SAMPLES[name] for name in names)):
        params = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        try:
            check_mixer(MixerSpec.of("sample", **params), embed_dim=dim, grid=grid, where="sample")
        except ArchError:
            continue
        found.append(params)
    return found


def specs(grid: Grid) -> list[Any]:
    every = [MixerSpec.of(name, **params) for name in MIXERS for params in sample_params(parameters_of(name), dim=DIM, grid=grid)]
    return [pytest.param(spec, id="-".join([spec.name, *(f"{k}={v}" for k, v in spec.params)])) for spec in every]


def made(spec: MixerSpec, grid: Grid) -> Mixer:
    """The mixer, its batch norms with statistics that are not the identity."""
    mixer = make_mixer(spec, dim=DIM, resolution=grid)
    for part in mixer.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return mixer


def test_samples_cover_the_vocabulary_and_every_mixer() -> None:
    assert set(SAMPLES) == set(VOCABULARY)
    for name in MIXERS:
        assert sample_params(parameters_of(name), dim=DIM, grid=SQUARE), name
        own = set(parameters_of(name)) - set(VOCABULARY)
        assert all(parameters_of(name)[p].default is not inspect.Parameter.empty for p in own), f"{name}: {own} need defaults"


@pytest.mark.parametrize(("spec", "grid"), [pytest.param(*p.values, grid, id=f"{p.id}-{grid[0]}x{grid[1]}")
                                            for grid in (SQUARE, WIDE) for p in specs(grid)])
def test_shape_is_kept(spec: MixerSpec, grid: Grid) -> None:
    assert made(spec, grid)(torch.randn(2, *grid, DIM)).shape == (2, *grid, DIM)


@pytest.mark.parametrize("spec", specs(SQUARE))
def test_gradient_reaches_every_parameter(spec: MixerSpec) -> None:
    mixer = made(spec, SQUARE).train()
    x = torch.randn(2, *SQUARE, DIM, requires_grad=True)
    (mixer(x) * torch.randn(2, *SQUARE, DIM)).sum().backward()
    gradients = {"input": x.grad, **{name: p.grad for name, p in mixer.named_parameters()}}
    lost = [name for name, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()]
    assert not lost


@pytest.mark.parametrize("spec", specs(SQUARE))
def test_eval_is_deterministic_and_leaves_no_state(spec: MixerSpec) -> None:
    mixer = made(spec, SQUARE).eval()
    before = {name: t.clone() for name, t in mixer.state_dict().items()}
    x = torch.randn(2, *SQUARE, DIM)
    first = mixer(x)
    mixer(torch.randn(1, *SQUARE, DIM))
    assert torch.equal(mixer(x), first)
    assert all(torch.equal(t, before[name]) for name, t in mixer.state_dict().items())


@pytest.mark.parametrize("spec", specs(SQUARE))
def test_images_of_a_batch_do_not_influence_each_other(spec: MixerSpec) -> None:
    mixer = made(spec, SQUARE).double().eval()
    x = torch.randn(3, *SQUARE, DIM, dtype=torch.float64)
    alone = torch.cat([mixer(image) for image in x.split(1)])
    torch.testing.assert_close(mixer(x), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", specs(SQUARE))
def test_odd_resolution_works_or_is_refused_with_arch_error(spec: MixerSpec) -> None:
    try:
        mixer = made(spec, ODD)
    except ArchError as error:
        assert spec.name in str(error)
        assert "accepted" in str(error)
        return
    output = mixer(torch.randn(2, *ODD, DIM))
    assert output.shape == (2, *ODD, DIM)
    assert output.isfinite().all()


@pytest.mark.parametrize("spec", specs(SQUARE))
def test_state_dict_round_trips_strictly(spec: MixerSpec) -> None:
    source, target = made(spec, SQUARE).eval(), made(spec, SQUARE).eval()
    x = torch.randn(2, *SQUARE, DIM)
    expected = source(x)
    assert not source.state_dict() or not torch.equal(target(x), expected)  # and nothing remembered from this run may outlive the load
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(target(x), expected)


@pytest.mark.parametrize("name", list(MIXERS))
def test_unknown_parameter_is_refused_with_the_accepted_ones_listed(name: str) -> None:
    params = sample_params(parameters_of(name), dim=DIM, grid=SQUARE)[0]
    with pytest.raises(ArchError, match="no_such_parameter") as caught:
        make_mixer(MixerSpec.of(name, **params, no_such_parameter=1), dim=DIM, resolution=SQUARE)
    assert ", ".join(sorted(parameters_of(name))) in str(caught.value)


@pytest.mark.parametrize("spec", specs(WIDE))
def test_mixer_of_token_sets_treats_the_grid_as_one(spec: MixerSpec) -> None:
    if not MIXERS[spec.name].token_sets:
        with pytest.raises(NotImplementedError, match="whole grid"):
            made(spec, WIDE).forward_tokens(torch.randn(1, 5, DIM))
        return
    mixer = made(spec, WIDE).double().eval()
    x = torch.randn(2, *WIDE, DIM, dtype=torch.float64)
    tokens, row = mixer.forward_tokens(x.flatten(1, 2), class_row=True)
    torch.testing.assert_close(mixer(x).flatten(1, 2), tokens)
    assert row is not None
    assert row.shape == (2, WIDE[0] * WIDE[1] - 1)
    assert mixer.forward_tokens(x.flatten(1, 2)[:, :5])[0].shape == (2, 5, DIM)


@pytest.mark.parametrize(("spec", "grid"), [pytest.param(*p.values, grid, id=f"{p.id}-{grid[0]}x{grid[1]}")
                                            for grid in (SQUARE, WIDE) for p in specs(grid)])
def test_counted_macs_agree_with_the_closed_form(spec: MixerSpec, grid: Grid) -> None:
    mixer = made(spec, grid)
    assert count(mixer, input_shape=(2, *grid, DIM)).macs == pytest.approx(mixer.macs(), rel=0.005)


def exported(mixer: Mixer, x: Tensor) -> bytes:
    """The mixer as an ONNX model, through torch.export."""
    buffer = io.BytesIO()
    program = torch.onnx.export(mixer, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(buffer)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("spec", specs(SQUARE))
def test_exports_to_onnx_and_agrees(spec: MixerSpec) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    mixer = made(spec, SQUARE).eval()
    x = torch.randn(2, *SQUARE, DIM)
    with torch.no_grad():
        expected = mixer(x)
        session = runtime.InferenceSession(exported(mixer, x), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    error = (torch.from_numpy(output) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", specs(SQUARE))
def test_runs_and_learns_in_half_precision(spec: MixerSpec, dtype: torch.dtype) -> None:
    mixer, x = made(spec, SQUARE).train(), torch.randn(2, *SQUARE, DIM, requires_grad=True)  # a mixer may have no parameter
    with torch.autocast("cpu", dtype=dtype):
        out = mixer(x)
    out.float().square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters() if p.requires_grad)


@pytest.mark.parametrize("spec", specs(SQUARE))
def test_makes_no_tensor_on_another_device(spec: MixerSpec) -> None:
    mixer = made(spec, SQUARE).to("meta")  # refuses what a GPU would refuse
    assert mixer(torch.randn(2, *SQUARE, DIM, device="meta")).is_meta
