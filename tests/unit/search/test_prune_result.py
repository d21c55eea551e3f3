"""What a pruning writes is held against the network, and a run that is not the dense model's ends before anything is pruned."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from nasvit.data import Images
from nasvit.data import load as load_data
from nasvit.errors import DeviceLostError, MeasurementError, RunError
from nasvit.pruning import Dense, load, prepare, slice_weights, uniform
from nasvit.pruning.kept import kept_tokens
from nasvit.pruning.space import PARTS, PruneSpace
from nasvit.results.record import TrialRecord
from nasvit.runtimes import make_runtime
from nasvit.runtimes.onnxruntime import OnnxRuntime
from nasvit.search import prune as session
from nasvit.search import prune_result
from nasvit.search.prune_choice import choose, compromise, kin, nearer, within
from nasvit.search.prune_result import write_result
from tests.pruning_models import make, timm, wake

SHAPE = (3, 32, 32)
TOLD = {"labels": [str(n) for n in range(10)], "mean": [0.5] * 3, "std": [0.25] * 3, "network": "pruned"}
IMAGES = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def dense() -> Dense:
    return prepare(make("vit"), name="timm:vit_tiny_patch16_224")


@pytest.fixture
def pruned(dense: Dense) -> nn.Module:
    return slice_weights(dense, uniform(dense.plan.source, keep=0.5, parts=("mlp",)), {})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "pruned"


@pytest.fixture
def beside(dense: Dense) -> dict[str, Any]:
    """What a run has besides: dense model, a device that calls the module itself, validation images."""
    rng = np.random.default_rng(0)
    val = Images(torch.from_numpy(rng.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)), torch.arange(30) % 7)
    return {"dense": dense.module, "runtime": make_runtime("eager"), "threads": 1, "val": val}


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "missing", lambda self: "onnx is not installed; pip install 'nasvit[onnx]'")


def test_the_files_give_the_network_back_and_onnx_runtime_computes_it(pruned: nn.Module, place: Path, beside: dict[str, Any]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)
    assert found["export"]["file"] == "model.onnx" and found["export"]["error"] <= 1e-5 and found["fused"] <= 1e-5
    session_ = runtime.InferenceSession(str(place / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        truth = pruned(IMAGES[:1])
        assert torch.equal(load(place / "arch.json", place / "model.safetensors")(IMAGES[:1]), truth)
    out = session_.run(None, {session_.get_inputs()[0].name: IMAGES[:1].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(out), truth, atol=1e-5, rtol=1e-4)
    about = json.loads(session_.get_modelmeta().custom_metadata_map["nasvit"])
    assert {name: about[name] for name in TOLD} == TOLD and about["image_size"] == [32, 32]
    Image.fromarray((IMAGES[0].permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy()).save(place / "image.png")
    done = subprocess.run([sys.executable, place / "predict.py", place / "image.png"], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 5 and "%" in done.stdout


def test_an_onnx_file_that_computes_something_else_does_not_stay(pruned: nn.Module, place: Path,
                                                                 monkeypatch: pytest.MonkeyPatch, beside: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write = OnnxRuntime.write

    def wrong(self: OnnxRuntime, module: nn.Module, example: Tensor, path: Path) -> None:
        write(self, nn.Sequential(module, nn.Softmax(dim=1)), example, path)

    monkeypatch.setattr(OnnxRuntime, "write", wrong)
    found = write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)["export"]
    assert found["file"] is None and "does not compute what torch computes" in found["why"]
    assert not (place / "model.onnx").exists() and (place / "model.safetensors").exists()


@pytest.mark.usefixtures("no_onnx")
def test_without_onnx_it_is_said_what_to_install(pruned: nn.Module, place: Path, beside: dict[str, Any]) -> None:
    found = write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)["export"]
    assert found == {"file": None, "runtime": "onnxruntime", "settings": {}, "why": "onnx is not installed; pip install 'nasvit[onnx]'"}


@pytest.mark.usefixtures("no_onnx")
def test_timm_loads_the_weights_where_it_has_the_shapes_and_else_it_is_said_why(pruned: nn.Module, place: Path,
                                                                                beside: dict[str, Any]) -> None:
    assert write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)["timm"]["file"] == "timm.safetensors"
    given = json.loads((place / "timm.json").read_text())
    model = timm.create_model(given["name"], **given["arguments"]).eval()
    model.load_state_dict(load_file(place / "timm.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), pruned(IMAGES), atol=2e-5, rtol=1e-4)
    dense = prepare(make("vit"), name="timm:vit_tiny_patch16_224")
    fewer = slice_weights(dense, dense.plan.with_blocks(heads=2), {})
    found = write_result(fewer, place, shape=SHAPE, images=TOLD, **beside)["timm"]
    assert found["file"] is None and "are not the width" in found["why"] and not (place / "timm.json").exists()


@pytest.mark.usefixtures("no_onnx")
def test_attentions_that_disagree_are_refused_before_anything_is_written(pruned: nn.Module, place: Path, beside: dict[str, Any]) -> None:
    attention = pruned.blocks[1].attn  # type: ignore[index, union-attr]
    right = attention.forward
    attention.forward = lambda *given, **named: right(*given, **named) * (1.001 if attention.fused else 1.0)
    with pytest.raises(RunError, match="fused and written-out attention differ"):
        write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)
    assert not place.exists()


def test_a_copy_that_is_not_the_dense_model_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits", seed=0)
    model = wake(timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, in_chans=1, num_classes=10, depth=2, embed_dim=48,
                                   num_heads=3))
    dense = prepare(model)
    assert session.same(dense, model, data) <= 1e-6

    def almost(*given: object) -> nn.Module:
        whole = slice_weights(*given)  # type: ignore[arg-type]
        with torch.no_grad():
            whole.head.weight.mul_(1 + 1e-4)  # type: ignore[union-attr, operator]
        return whole

    monkeypatch.setattr(session, "slice_weights", almost)
    with pytest.raises(RunError, match=r"does not give the dense model.*nothing was pruned"):
        session.same(dense, model, data)


@pytest.mark.parametrize(("weight", "output", "good"), [(0.0, 1e-7, True), (0.0, 1e-5, False), (1e-7, 0.0, False)])
def test_a_file_gives_every_tensor_back_and_the_outputs_but_for_rounding(weight: float, output: float, good: bool, pruned: nn.Module,
                                                                         place: Path, no_onnx: None,
                                                                         monkeypatch: pytest.MonkeyPatch, beside: dict[str, Any]) -> None:
    def read(arch: Path, weights: Path) -> nn.Module:
        found = load(arch, weights)
        with torch.no_grad():
            next(found.parameters()).flatten()[0] += weight
        found.register_forward_hook(lambda module, images, logits: logits + output * logits.abs().max())
        return found

    monkeypatch.setattr("nasvit.search.prune_result.files.load", read)
    if good:
        assert write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)["fused"] <= 1e-5
    else:
        with pytest.raises(RunError, match="does not give back the network"):
            write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)


def record(accuracy: float, ms: float, *, rung: int = 1) -> TrialRecord:
    return TrialRecord(trial=0, status="complete", rung=rung, arch=None, arch_id="0" * 12, label="it",
                       objectives={"accuracy": accuracy, "latency_ms": ms})


def test_with_a_target_the_slowest_of_the_equally_accurate_is_taken() -> None:
    best, equal, worse = record(0.80, 5.0), record(0.79, 5.8), record(0.70, 5.9)
    assert choose([best, equal, worse], images=400, again={}) is equal  # the standard error of 80 % on 400 images is 2 %
    assert choose([best, equal, worse], images=40_000, again={}) is best  # and on 40,000 it is 0.2 %
    recovered = record(0.80, 5.5, rung=3)
    assert choose([recovered, equal], images=400, again={}) is recovered


def test_without_a_target_the_result_is_the_knee_and_no_slower_than_the_dense_model() -> None:
    plans = [replace(record(a, ms), trial=i) for i, (a, ms) in enumerate([(0.90, 11.0), (0.89, 9.9), (0.88, 5.0), (0.60, 4.0), (0.2, 3.0)])]
    assert compromise(plans, dense_ms=10.0) is plans[2]
    assert compromise(plans[:2], dense_ms=10.0) is plans[1] and compromise(plans[:1], dense_ms=10.0) is plans[0]
    assert compromise([record(0.80, 5.0), replace(record(0.80, 4.0), trial=1)], dense_ms=10.0).objectives["latency_ms"] == 4.0


def test_no_result_is_over_a_limit_that_holds_by_the_end_of_its_interval_that_trials_are_held_against() -> None:
    fast, slow = record(0.70, 1.42), replace(record(0.80, 2.71), trial=1)
    near = replace(record(0.75, 1.99), trial=2, latency={"ci_high_ms": 2.1})
    rejected = replace(record(0.90, 1.0), trial=3, status="rejected")
    assert within([fast, slow, near, rejected], limits={"latency_ms": 2.02}) == [fast]
    assert within([fast, slow, near, rejected], limits={}) == [fast, slow, near]
    higher = replace(slow, rung=2)
    assert within([fast, slow, higher], limits={"latency_ms": 3.0}) == [fast, higher]


def timed(trial: int, *, accuracy: float, upper_ms: float, **params: float) -> TrialRecord:
    """A finished trial whose interval ends at `upper_ms`, 5 % above its median."""
    ms = upper_ms / 1.05
    return TrialRecord(trial=trial, status="complete", rung=1, arch=None, arch_id=f"{trial:012d}", params=params,
                       objectives={"accuracy": accuracy, "latency_ms": ms, "macs_g": 1.0, "params_m": 1.0},
                       latency={"median_ms": ms, "ci_low_ms": ms * 0.95, "ci_high_ms": upper_ms})


def test_the_last_trials_come_back_to_the_best_plan_where_it_leaves_time_unused() -> None:
    limits = {"latency_ms": 10.0}

    def asked(*seen: TrialRecord) -> object:
        return nearer(seen, limits=limits, images=100, aim_ms=9.3, again={})

    best = timed(0, accuracy=0.9, upper_ms=9.0, heads=0.5, strength=80)
    worse = timed(1, accuracy=0.2, upper_ms=9.9, heads=1.0, strength=9)
    assert asked(best, worse) == [{"heads": 0.5}] and asked() == []
    over = replace(best, objectives={**best.objectives, "latency_ms": 9.9}, latency={**best.latency, "ci_high_ms": 10.4})
    assert asked(over, worse) == []  # what is over the target is never chosen, and the other uses the time
    assert asked(timed(0, accuracy=0.9, upper_ms=9.8, heads=0.5, strength=80), worse) == []


def test_what_lies_beside_the_best_plan_is_tried_after_what_uses_the_time_it_leaves() -> None:
    def asked(*seen: TrialRecord) -> object:
        return nearer(seen, limits={"latency_ms": 10.0}, images=100, aim_ms=9.3, again={},
                      beside=lambda own: [{**own, "mlp": 1.0}, {**own, "mlp": 0.5}])

    beside = [{"heads": 0.5, "mlp": 1.0}, {"heads": 0.5, "mlp": 0.5}]
    assert asked(timed(0, accuracy=0.9, upper_ms=9.8, heads=0.5, strength=80)) == beside
    assert asked(timed(0, accuracy=0.9, upper_ms=9.0, heads=0.5, strength=80)) == [{"heads": 0.5}, *beside] and asked() == []


def test_a_plans_kin_differs_by_one_step_of_one_choice() -> None:
    values = {"heads": (0.0, 0.25, 0.5, 0.75, 1.0), "mlp": (0.0, 0.25, 0.5), "operator": ("merge", "topk_fuse")}
    best = {"heads": 0.5, "mlp": 0.0, "operator": "merge"}
    found = [kin(best, values=values, rng=random.Random(seed)) for seed in range(20)]
    for kins in found:
        changes = [tuple((n, v) for n, v in one.items() if best[n] != v) for one in kins]
        assert sorted(changes, key=str) == [(("heads", 0.25),), (("heads", 0.75),), (("mlp", 0.25),), (("operator", "topk_fuse"),)]
    assert len({str(kins[0]) for kins in found}) > 1  # in no fixed order
    assert kin({"mlp": 0.5}, values={"mlp": (0.5,)}, rng=random.Random(0)) == kin(best, values={}, rng=random.Random(0)) == []


def test_what_was_measured_again_counts_with_its_mean() -> None:
    lucky, steady = record(0.80, 5.8), replace(record(0.80, 5.6), trial=7)
    assert choose([lucky, steady], images=400, again={}) is lucky
    assert choose([lucky, steady], images=400, again={str(lucky.trial): [5.2]}) is steady
    best = timed(0, accuracy=0.9, upper_ms=9.8, heads=0.5, strength=80)

    def asked(again: dict[str, list[float]]) -> object:
        return nearer([best], limits={"latency_ms": 10.0}, images=100, aim_ms=9.3, again=again)

    assert asked({}) == asked({"0": []}) == [] and asked({"0": [8.7]}) == [{"heads": 0.5}]


def test_a_slower_plan_of_the_chosen_shape_is_taken_unless_it_is_plainly_worse() -> None:
    fast = timed(0, accuracy=0.9, upper_ms=9.0, heads=0.5, strength=80)

    def chosen(accuracy: float, **params: float) -> int:
        done = [fast, timed(1, accuracy=accuracy, upper_ms=9.8, **params)]
        return choose(done, images=100, again={}).trial

    assert chosen(0.86, heads=0.5, strength=70) == 1  # a standard error is 0.03
    assert chosen(0.83, heads=0.5, strength=70) == 0
    assert chosen(0.86, heads=1.0, strength=70) == 0  # another shape is no superset


def test_probes_are_measured_once_those_that_fail_are_named_and_a_lost_device_ends_the_run(tmp_path: Path) -> None:
    dense = prepare(make("vit"), name="timm:vit_tiny_patch16_224")
    space = PruneSpace(dense.plan, layout=dense.layout, choices=("mlp", "depth"),
                       orders=dict.fromkeys(PARTS, range(len(dense.plan.blocks))))
    answers: list[Any] = [SimpleNamespace(median_ms=2.0, half_width=0.05), MeasurementError("too noisy")]

    def measure(module: nn.Module, *, input_shape: tuple[int, ...]) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    start: Any = SimpleNamespace(dense=dense, device=SimpleNamespace(measure=measure))
    first = session._probed(space, start, {}, path=tmp_path / "probes.json", resume=False)
    assert first == ([(space.probes()[0], 2.0, 0.05)], ["too noisy"]) and not answers
    assert session._probed(space, start, {}, path=tmp_path / "probes.json", resume=True) == first  # read, not measured
    answers.append(DeviceLostError("gone"))
    with pytest.raises(DeviceLostError):
        session._probed(space, start, {}, path=tmp_path / "probes.json", resume=False)


def test_files_of_an_earlier_result_do_not_stay(pruned: nn.Module, place: Path, no_onnx: None, beside: dict[str, Any]) -> None:
    place.mkdir()
    others = ("model.onnx", "model.xml", "model.bin", "predict.py", "tokens.png")
    for name in others:
        (place / name).write_text("of another network")
    write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)
    assert not any((place / name).exists() for name in others)


def test_attentions_may_differ_by_twice_what_the_dense_models_do(pruned: nn.Module, dense: Dense, place: Path, no_onnx: None,
                                                                 monkeypatch: pytest.MonkeyPatch, beside: dict[str, Any]) -> None:
    def differ(of_pruned: float, of_dense: float) -> None:
        monkeypatch.setattr(prune_result, "attentions_differ", lambda module, probe: of_pruned if module is pruned else of_dense)

    for of_pruned, of_dense in ((1.9e-5, 1e-5), (9e-7, 1e-8)):
        differ(of_pruned, of_dense)
        found = write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)
        assert (found["fused"], found["fused_dense"]) == (of_pruned, of_dense)
    differ(2.1e-5, 1e-5)
    with pytest.raises(RunError, match=r"differ by 2\.1e-05 \(at most 2e-05: the dense model's differ by 1\.0e-05"):
        write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)


@pytest.mark.usefixtures("no_onnx")
@pytest.mark.parametrize("operator", ["merge", "topk_fuse", "slow_fast"])
def test_a_result_that_selects_tokens_has_a_picture_of_them_and_another_has_none(operator: str, dense: Dense, pruned: nn.Module,
                                                                                 place: Path, beside: dict[str, Any]) -> None:
    fewer = slice_weights(dense, uniform(dense.plan.source, keep=1.0, operator=operator, keep_ratio=0.5), {})
    found = write_result(fewer, place, shape=SHAPE, images=TOLD, **beside)["tokens"]
    assert (found["file"], found["images"]) == ("tokens.png", 3) and found["panels"] >= 1
    with Image.open(place / "tokens.png") as picture:
        assert picture.format == "PNG" and picture.height == 3 * (14 + 168 + 30 + 14)
    assert write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)["tokens"] is None and not (place / "tokens.png").exists()


@pytest.mark.parametrize("case", ["fsla_only", "evo_deit"])
def test_a_network_of_a_search_shows_its_segments_and_the_clusters_of_each_blocks_first_head(case: str, place: Path, no_onnx: None) -> None:
    network: Any = make(case)
    channels, size = network.arch.in_channels, network.arch.image_size
    val = Images(torch.zeros(2, channels, *size, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))
    found = write_result(network, place, dense=prepare(network).module, runtime=make_runtime("eager"), threads=1, val=val,
                         shape=(channels, *size), images={**TOLD, "mean": [0.5] * channels, "std": [0.25] * channels})["tokens"]
    maps = kept_tokens(network, torch.randn(channels, *size))
    first = [m for m in maps if m.head == 0]
    assert (found["panels"], found["images"]) == (len(first), 2) and (len(first) < len(maps)) == (case == "fsla_only")


@pytest.mark.parametrize(("runtime", "name"), [("onnxruntime", "model.onnx"), ("openvino", "model.xml")])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_file_is_of_the_runtime_and_precision_that_were_measured(runtime: str, name: str, precision: str, pruned: nn.Module,
                                                                     place: Path, beside: dict[str, Any]) -> None:
    if (why := make_runtime(runtime, precision=precision).missing()) is not None:
        pytest.skip(why)
    beside = {**beside, "runtime": make_runtime(runtime, precision=precision)}
    found = write_result(pruned, place, shape=SHAPE, images=TOLD, **beside)
    made = found["export"]
    assert (made["file"], made["runtime"], made["settings"]) == (name, runtime, {"precision": precision}) and (place / name).exists()
    assert (place / "predict.py").exists() and not [p for p in place.glob("model*.onnx") if p.name != name]
    if precision == "fp32":
        assert made["error"] <= 1e-5 and "accuracy" not in made
        return
    assert 1e-5 < made["error"] <= 0.2 and made["accuracy"]["images"] == 30
    if runtime == "onnxruntime":
        import onnx

        model = onnx.load(str(place / name))
        assert any("Integer" in node.op_type or "Quantize" in node.op_type for node in model.graph.node)
        about = json.loads({one.key: one.value for one in model.metadata_props}["nasvit"])
        assert (about["accuracy"], about["accuracy_fp32"]) == (made["accuracy"]["runtime"], made["accuracy"]["eager"])
