"""A whole pruning of a timm model on real data and a real device: result on disk, report, resume, refusals.

Whether targets are met is measured by experiments/prune_targets.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from nasvit.cli import main
from nasvit.data import load as load_data
from nasvit.data import load_test
from nasvit.devices import LatencyStats
from nasvit.devices.base import Prepared
from nasvit.devices.local import Cpu
from nasvit.errors import CheckpointError, ConfigError, DataError, MeasurementError, NasvitError, RunError
from nasvit.experiment import PruneExperiment
from nasvit.models.build import build
from nasvit.named import make_named
from nasvit.pruning import opening, prepare
from nasvit.pruning.files import load, save
from nasvit.report import load as load_run
from nasvit.report import render
from nasvit.results.record import read
from nasvit.runtimes.onnxruntime import OnnxRuntime
from nasvit.search import prune as session
from nasvit.search import prune_siblings
from nasvit.search.prune import prune, target_of
from nasvit.search.prune_choice import shape
from nasvit.space import SearchSpace
from nasvit.training import evaluate
from tests.pruning_models import timm, wake
from tests.unit.report.make_run import write_run

NAME = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    model = make_named(NAME, image_size=(32, 32), in_channels=1, num_classes=10, seed=0)
    save_file(model.state_dict(), path)
    return path


def experiment(weights: Path, **values: object) -> PruneExperiment:
    return PruneExperiment.model_validate({
        "model": f"timm:{NAME}", "checkpoint": str(weights), "data": "digits", "device": "cpu?noise=keep", "image_size": 32, "budget": 4,
        "engine": "inline", "sampler": "random", "recover_epochs": 0.3, **values})


@pytest.mark.slow
def test_a_pruned_model_is_on_disk_reported_and_its_run_goes_on_where_it_stopped(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    facts = prune(experiment(weights), out=out)
    assert facts["identity"] <= 1e-6 and facts == json.loads((out / "prune.json").read_text())
    records = read(out / "records.jsonl")
    assert len(records) >= 4 and facts["target_ms"] is None
    assert facts["pruned"]["macs_g"] < facts["dense"]["macs_g"] and len(facts["recovery"]) > 1
    assert facts["siblings"] == [] and facts["verdict"]["dominated"] is None  # deit_tiny is the smallest of its family
    module = load(out / "pruned" / "arch.json", out / "pruned" / "model.safetensors")
    assert module(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    onnx = facts["written"]["export"]
    assert (out / "pruned" / "model.onnx").exists() if onnx["file"] else "not installed" in onnx["why"]
    more = prune(experiment(weights, budget=5), out=out, resume=True)
    assert read(out / "records.jsonl")[: len(records)] == records and more["dense"] == facts["dense"]
    page = next(file for file in render(out) if file.suffix == ".html").read_text()
    assert "Dense, pruned, and the siblings" in page and "Recovery" in page
    with pytest.raises(RunError, match="other weights"):
        other = make_named(NAME, image_size=(32, 32), in_channels=1, num_classes=10, seed=1)
        save_file(other.state_dict(), tmp_path / "other.safetensors")
        prune(experiment(tmp_path / "other.safetensors", budget=6), out=out, resume=True)


def test_a_target_is_milliseconds_or_a_share_and_faster_than_dense() -> None:
    assert (target_of("0.6x", dense_ms=10.0), target_of("8ms", dense_ms=10.0), target_of(None, dense_ms=1.0)) == (6.0, 8.0, None)
    for wrong in ("1.2x", "0x", "x", "12ms", "fast"):
        with pytest.raises(ConfigError):
            target_of(wrong, dense_ms=10.0)


def test_a_target_on_another_device_is_refused_and_not_dropped() -> None:
    assert target_of("8ms@pi", dense_ms=10.0, own={"pi", "ssh://pi"}) == target_of("0.8x@pi", dense_ms=10.0, own={"pi"}) == 8.0
    for text in ("8ms@pi", "0.8x@pi", "8ms@"):
        with pytest.raises(ConfigError, match="is on the latency of"):
            target_of(text, dense_ms=10.0, own={"cpu"})


def test_weights_that_do_not_fit_and_models_without_classes_of_the_data_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pos_embed"):
        prune(experiment(weights, image_size=64), out=tmp_path / "a")  # its position table is another one
    with pytest.raises(ConfigError, match="did you mean"):
        prune(experiment(weights, model="timm:deit_tiny_patch16_223"), out=tmp_path / "b")
    with pytest.raises(ConfigError, match="--arch"):
        prune(experiment(weights, model=str(weights), checkpoint=None), out=tmp_path / "c")
    assert not list(tmp_path.iterdir())


# ---- small and quick: no device is asked, and every network takes one millisecond ---------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: Prepared) -> LatencyStats:
        self.device.reference_ms = 1.0
        return LatencyStats(median_ms=1.0, p10_ms=1.0, p90_ms=1.0, ci_low_ms=0.99, ci_high_ms=1.01, runs=9, repeats=3, verdict="stable",
                            reference_ms=1.0, batch_size=1, fingerprint=self.device.fingerprint, cpu_ms=1.0, threads=1)

    monkeypatch.setattr(Prepared, "measure", measure)
    monkeypatch.setattr(OnnxRuntime, "missing", lambda self: "not wanted")


@pytest.fixture
def by_size(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's milliseconds follow from its parameters."""
    prepare_it, stats, ms = Cpu.prepared, Prepared.measure, [1.0]

    @contextmanager
    def prepared(self: Cpu, module: nn.Module, *, input_shape: tuple[int, ...]) -> Iterator[Prepared]:
        ms[0] = 1e-4 * sum(p.numel() for p in module.parameters())
        with prepare_it(self, module, input_shape=input_shape) as ready:
            yield ready

    monkeypatch.setattr(Cpu, "prepared", prepared)
    monkeypatch.setattr(Prepared, "measure", lambda self: replace(
        stats(self), median_ms=ms[0], ci_low_ms=0.99 * ms[0], ci_high_ms=1.01 * ms[0]))


def tiny(channels: int = 1, classes: int = 10) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return wake(timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, in_chans=channels, num_classes=classes, depth=2,
                                      embed_dim=48, num_heads=3))


@pytest.fixture
def small(tmp_path: Path) -> PruneExperiment:
    arch, weights = save(prepare(tiny()).module, tmp_path / "small")
    return PruneExperiment(model=str(weights), arch=str(arch), data="digits", device="cpu", image_size=(16, 16), budget=1,
                           engine="inline", sampler="random", recover_epochs=0.0)


def colours(path: Path, *, seed: int = 0) -> Path:
    """Four classes of squares, with a test part."""
    rng = np.random.default_rng(seed)
    parts = {part: rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8) for part, count in (("train", 64), ("val", 40), ("test", 24))}
    path.mkdir()
    for part, images in parts.items():
        np.savez(path / f"colours_{part}.npz", images=images, labels=np.arange(len(images)) % 4)
    return path


@pytest.mark.usefixtures("quick")
def test_a_run_goes_on_only_with_what_its_records_were_made_with(small: PruneExperiment, tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = prune(small, out=out)
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    others: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1}, "limits": {"target": "0.5x"}, "choices": {"choices": ("mlp",)}, "criterion": {"criterion": "magnitude"},
        "rungs": {"recover_epochs": 1.0}, "recipe": {"recipe": {"lr": 1e-3}}, "objectives": {"objectives": ("accuracy", "macs_g")}}
    for name, values in others.items():
        with pytest.raises(RunError, match=rf"cannot be resumed, because it differs in .*\b{name} \("):
            prune(small.model_copy(update=values), out=out, resume=True)
    monkey = load_data("digits", seed=0, image_size=(16, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "load", lambda *_, **__: replace(monkey, fingerprint="0" * 12))
        with pytest.raises(RunError, match=r"differs in data \(fingerprint was"):
            prune(small, out=out, resume=True)
    (tmp_path / "small" / "metrics.json").write_text(json.dumps({"data": {"mean": [0.5], "std": [0.5]}}))
    with pytest.raises(RunError, match="differs in normalisation"):
        prune(small, out=out, resume=True)
    (tmp_path / "small" / "metrics.json").unlink()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept  # refused before anything is written
    def cut_off(*_: Any, **__: Any) -> dict[str, Any]:
        return {"stopped_because": "interrupted"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "search_bound", cut_off)
        prune(small.model_copy(update={"budget": 2}), out=out, resume=True)
    assert json.loads((out / "prune.json").read_text())["pruned"] == before["pruned"]  # until there is another result
    after = prune(small.model_copy(update={"budget": 2, "minutes": 9.0}), out=out, resume=True)
    assert len(read(out / "records.jsonl")) == 2 and after["dense"] == before["dense"]


@pytest.mark.usefixtures("quick")
def test_a_run_of_another_model_is_not_resumed_and_both_are_named(
        small: PruneExperiment, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    prune(experiment(weights, budget=1, recover_epochs=0), out=out)
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for other in (["vit_tiny_patch16_224"], [small.model, "--arch", str(small.arch)]):
        assert main(["prune", *other, "--resume", "--out", str(out)]) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert f"{out} holds a pruning of timm:{NAME}, not of" in told and other[0] in told and "leave the model away" in told
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept


@pytest.mark.usefixtures("quick")
def test_weights_that_are_not_there_or_do_not_fit_are_wrong_input(
        small: PruneExperiment, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.safetensors").write_text("none")
    given = ["--data", "digits", "--device", "cpu?noise=keep", "--image-size", "32", "--out", str(tmp_path / "run")]
    for model, options, said in (
            (NAME, ["--checkpoint", str(tmp_path / "gone.pth")], "there is no such file"),
            (NAME, ["--checkpoint", str(tmp_path / "text.safetensors")], "cannot be read as weights"),
            ("vit_small_patch16_224", ["--checkpoint", str(weights)], "does not fit"),
            (str(tmp_path / "gone.safetensors"), ["--arch", str(small.arch)], "gone.safetensors"),
            (str(weights), ["--arch", str(small.arch)], "does not fit")):
        assert main(["prune", model, *options, *given]) == 2
        told = capsys.readouterr().err
        assert said in " ".join(told.split()) and "Traceback" not in told


@pytest.mark.usefixtures("quick")
def test_a_network_of_a_search_is_pruned_from_its_two_files_and_the_run_goes_on_from_anywhere(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace.load("hybrid_tiny", image_size=(16, 16), in_channels=1, num_classes=10)
    network = build(space.sample(random.Random(0)), seed=0)
    arch, weights = save(network, tmp_path / "network")
    monkeypatch.chdir(tmp_path)
    searched = PruneExperiment(model=str(weights.relative_to(tmp_path)), arch=str(arch.relative_to(tmp_path)), data="digits", device="cpu",
                               image_size=(16, 16), budget=2, engine="inline", sampler="random", recover_epochs=0.1, minutes=20.0)
    facts = prune(searched, out=tmp_path / "run")
    assert facts["stopped_because"] == "done" and facts["pruned"]["macs_g"] <= facts["dense"]["macs_g"]
    pruned = load(tmp_path / "run" / "pruned" / "arch.json", tmp_path / "run" / "pruned" / "model.safetensors")
    assert pruned(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = PruneExperiment.load(tmp_path / "run" / "experiment.yaml", overrides={"budget": 3})
    prune(again, out=tmp_path / "run", resume=True)
    records = read(tmp_path / "run" / "records.jsonl")
    assert {r.status for r in records} == {"complete"} and {r.trial for r in records if r.rung == 1} == {0, 1, 2}
    assert any(r.rung > 1 for r in records)  # recovery had its teacher


@pytest.mark.usefixtures("quick")
def test_the_learning_rate_of_recovery_is_tried_once_in_a_run_and_a_given_one_is_taken(
        small: PruneExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recovering = small.model_copy(update={"recover_epochs": 0.1})
    prune(recovering, out=tmp_path / "run")
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    kept = PruneExperiment.load(tmp_path / "run" / "experiment.yaml")
    assert len(env["recovery_rates"]) == 3 and kept.recipe["lr"] == env["recovery_rates"][0]["lr"]

    def never(*_: object, **__: object) -> dict[float, float]:
        raise AssertionError("it was tried again")

    monkeypatch.setattr(session, "recovery_rate", never)
    prune(recovering.model_copy(update={"budget": 2}), out=tmp_path / "run", resume=True)
    assert PruneExperiment.load(tmp_path / "run" / "experiment.yaml").recipe["lr"] == kept.recipe["lr"]
    assert json.loads((tmp_path / "run" / "env.json").read_text())["recovery_rates"] == env["recovery_rates"]
    prune(recovering.model_copy(update={"recipe": {"lr": 1e-3}}), out=tmp_path / "given")
    assert PruneExperiment.load(tmp_path / "given" / "experiment.yaml").recipe["lr"] == 1e-3


@pytest.mark.usefixtures("by_size")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_last_trial_comes_back_to_the_best_plan_or_to_one_beside_it(small: PruneExperiment, seed: int, tmp_path: Path) -> None:
    few = small.model_copy(update={"budget": 4, "target": "0.7x", "seed": seed, "choices": ("heads", "mlp", "depth")})
    prune(few, out=tmp_path / "run")
    *before, last = [shape(r) for r in read(tmp_path / "run" / "records.jsonl") if r.status == "complete"]
    assert len(before) == 3
    assert min(sum(last[name] != one[name] for name in last) for one in before) <= 1


@pytest.mark.usefixtures("quick")
def test_scores_that_another_model_left_in_a_run_that_never_began_are_not_taken(small: PruneExperiment, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "dense").mkdir(parents=True)
    (out / "dense" / "importance.safetensors").write_text("of another model")
    assert prune(small, out=out)["stopped_because"] == "done"


@pytest.mark.usefixtures("quick")
def test_published_weights_see_images_of_their_own_training_in_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out, data = tiny(3, 4), tmp_path / "run", colours(tmp_path / "colours")
    monkeypatch.setattr(opening, "_published", lambda name, num_classes: model)
    experiment = PruneExperiment(model="timm:vit_tiny_patch16_224", data=str(data), device="cpu", image_size=(16, 16), budget=1,
                                 engine="inline", sampler="random", recover_epochs=0.0)
    seen: list[tuple[float, ...]] = []

    def calibration(data: Any, **given: Any) -> Any:
        seen.append(data.mean)
        return right(data, **given)

    right = session.calibration
    monkeypatch.setattr(session, "calibration", calibration)
    facts = prune(experiment, out=out)
    assert facts["mean"] == facts["std"] == [0.5] * 3 and facts["class_names"] == ["0", "1", "2", "3"]
    assert "published weights of timm:vit_tiny" in facts["normalised"] and set(seen) == {(0.5,) * 3}  # identity and importance
    own = load_data(str(data), seed=0, image_size=(16, 16))
    wanted = replace(own, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert facts["dense"]["accuracy"] == evaluate(model, own.val, data=wanted)[0]
    record = read(out / "records.jsonl")[0]
    network = load(out / "pruned" / "arch.json", out / "pruned" / "model.safetensors")
    loss = {name: evaluate(network, own.val, data=of)[1] for name, of in (("own", own), ("wanted", wanted))}
    assert loss["own"] != pytest.approx(loss["wanted"], rel=1e-6) and record.details["val_loss"] == pytest.approx(loss["wanted"], rel=1e-6)
    assert json.loads((out / "env.json").read_text())["data"]["mean"] == [0.5] * 3


@pytest.mark.usefixtures("quick")
def test_the_result_is_scored_once_on_the_test_images_or_it_is_said_that_there_are_none(
        small: PruneExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from nasvit.commands.prune import _tell

    out, looks = tmp_path / "run", []
    monkeypatch.setattr(session, "load_test", lambda *given, **named: looks.append(given) or load_test(*given, **named))
    facts = prune(small, out=out)
    data, test = load_data("digits", seed=0, image_size=(16, 16)), load_test("digits", seed=0, image_size=(16, 16))
    network = load(out / "pruned" / "arch.json", out / "pruned" / "model.safetensors")
    assert len(looks) == 1 and facts["pruned"]["test_images"] == len(test) > 0
    assert facts["pruned"]["test_accuracy"] == evaluate(network, test, data=data)[0]
    _tell(facts, out)
    assert f"{facts['pruned']['test_accuracy']:.2%} on {len(test)} images" in capsys.readouterr().out

    def none(*_: object, **__: object) -> object:
        raise DataError("no test part here")

    monkeypatch.setattr(session, "load_test", none)
    facts = prune(small, out=out, resume=True)
    assert facts["pruned"]["test_accuracy"] is None and facts["pruned"]["test_missing"] == "no test part here"
    _tell(facts, out)
    assert "no test images (no test part here)" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_a_named_sibling_that_cannot_be_opened_ends_the_run_before_it_begins(
        small: PruneExperiment, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "open_device", lambda *_, **__: pytest.fail("measured before it was checked"))
    wrong: list[tuple[str, type[NasvitError], str]] = [("deit_tinny_patch16_224", ConfigError, "did you mean"),
                                                      ("vit_tiny_patch16_224", CheckpointError, "does not fit")]
    for name, kind, match in wrong:
        with pytest.raises(kind, match=match):
            prune(small.model_copy(update={"siblings": {name: str(weights)}}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick")
def test_a_file_knows_its_family_by_the_name_of_its_source_and_without_one_nobody_was_compared(
        small: PruneExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from nasvit.commands.prune import _tell

    facts = prune(small, out=tmp_path / "run")
    assert facts["siblings"] == [] and facts["verdict"]["dominated"] is None
    _tell(facts, tmp_path / "run")
    for text in (capsys.readouterr().out, *(file.read_text() for file in render(tmp_path / "run") if file.suffix in (".html", ".md"))):
        assert "o sibling was compared" in text and "dominated by a smaller" not in text
    asked: list[str] = []

    def fails(name: str, *_: object, **__: object) -> object:
        asked.append(name)
        raise MeasurementError("not wanted")

    monkeypatch.setattr(prune_siblings, "_measured", fails)
    arch, weights = save(prepare(tiny(), name="timm:deit_small_patch16_224.fb_in1k").module, tmp_path / "named")
    prune(small.model_copy(update={"model": str(weights), "arch": str(arch)}), out=tmp_path / "again")
    assert asked == [NAME]


@pytest.mark.usefixtures("quick")
def test_a_sibling_that_cannot_be_measured_is_on_record_and_the_result_stands(
        small: PruneExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"

    def fails(name: str, *_: object, **__: object) -> object:
        assert "pruned" in json.loads((out / "prune.json").read_text())  # whatever comes now
        raise MeasurementError(f"{name} is too slow to time")

    monkeypatch.setattr(prune_siblings, "_names", lambda experiment, model: ["vit_small", "vit_tiny"])
    monkeypatch.setattr(prune_siblings, "_measured", fails)
    facts = prune(small, out=out)
    assert [row["name"] for row in facts["siblings"]] == ["vit_small", "vit_tiny"] and facts["siblings"][0]["latency_ms"] is None
    assert facts["siblings"][0]["why"] == "MeasurementError: vit_small is too slow to time"
    assert facts["verdict"]["dominated"] is None and "vit_small, vit_tiny: unknown" in facts["verdict"]["text"]
    assert "could not be measured" in next(file for file in render(out) if file.suffix == ".html").read_text()


@pytest.mark.usefixtures("quick")
def test_a_model_is_given_by_its_bare_name(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", str(weights), "--data", "digits", "--image-size", "32", "--recover-epochs", "0", "--engine", "inline",
             "--sampler", "random", "--budget", "1"]
    assert main(["prune", NAME, *words, "--dry-run"]) == 0 and f"timm:{NAME}: " in capsys.readouterr().out
    assert main(["prune", NAME, *words, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "prune.json").read_text())["model"] == f"timm:{NAME}"
    assert main(["prune", "deit_tinny_patch16_224", *words]) == 2 and f"did you mean '{NAME}'" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_an_experiment_file_reaches_every_setting_and_the_command_line_overrides_it(
        small: PruneExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "prune.yaml", tmp_path / "run"
    file.write_text(f"model: {small.model}\narch: {small.arch}\ndata: digits\nimage_size: 16\nengine: inline\nsampler: random\n"
                    "criterion: magnitude\nrecover_epochs: 0\nbudget: 9\nchoices: [mlp]\nlimits: {peak_memory_mb: 10GB}\n"
                    "objectives: [accuracy, macs_g]\nrecipe: {batch_size: 32}\n")
    assert main(["prune", str(file), "--budget", "1", "--out", str(out)]) == 0
    kept = PruneExperiment.load(out / "experiment.yaml")
    assert (kept.criterion, kept.budget, kept.choices, kept.recipe["batch_size"]) == ("magnitude", 1, ("mlp",), 32)
    assert (kept.limits, kept.objectives) == ({"peak_memory_mb": 10_000.0}, ("accuracy", "macs_g"))
    assert read(out / "records.jsonl")[0].objectives["peak_memory_mb"] > 0
    assert main(["prune", str(file), "--budget", "2", "--resume", "--out", str(out)]) == 0
    assert main(["prune", "--budget", "3", "--resume", "--out", str(out)]) == 0 and len(read(out / "records.jsonl")) == 3
    assert main(["search", "--resume", "--out", str(out)]) == 2 and "nasvit prune" in capsys.readouterr().err
    for line, said in (("criterion: tailor", "did you mean 'taylor'"), ("choices: [mpl]", "did you mean 'mlp'")):
        file.write_text(f"model: {small.model}\narch: {small.arch}\n{line}\n")
        assert main(["prune", str(file), "--data", "digits", "--dry-run"]) == 2 and said in capsys.readouterr().err
    for words, said in ((["--resume", "--out", str(tmp_path / "nowhere")], "there is no run in"),
                        (["--data", "digits"], "give the model to prune"), (["absent.yaml"], "absent.yaml: cannot be read")):
        assert main(["prune", *words]) == 2 and said in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_recovery_is_told_in_shares_of_the_dense_training_or_that_its_length_is_not_known(
        small: PruneExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nasvit.commands.prune import _tell

    (tmp_path / "small" / "metrics.json").write_text(json.dumps({"steps": 200}))
    asked = small.model_copy(update={"recover_epochs": None, "recipe": {"lr": 1e-3}})
    facts = prune(asked, out=tmp_path / "run")
    assert facts["dense_steps"] == 200 and "metrics.json" in facts["dense_training"]
    assert PruneExperiment.load(tmp_path / "run" / "experiment.yaml").rungs == (0, 2, 6, 20)
    assert [point["share_of_dense"] for point in facts["recovery"]] == [0.0, 0.01, 0.03, 0.1]
    _tell(facts, tmp_path / "run")
    assert "after 6 (3%)" in capsys.readouterr().out
    (tmp_path / "small" / "metrics.json").unlink()
    again = prune(asked.model_copy(update={"budget": 2, "dense_steps": 200}), out=tmp_path / "run", resume=True)
    assert again["dense_training"] == facts["dense_training"]
    page = next(file for file in render(tmp_path / "run") if file.suffix == ".html").read_text()
    assert "The dense training had 200 steps" in page and "3.0 %" in page
    unknown = prune(asked.model_copy(update={"recover_epochs": 0.1}), out=tmp_path / "unknown")
    assert "not known" in unknown["dense_training"] and "dense_steps" not in unknown
    assert all("share_of_dense" not in point for point in unknown["recovery"])
    assert "is not known" in next(file for file in render(tmp_path / "unknown") if file.suffix == ".html").read_text()


@pytest.mark.usefixtures("quick")
def test_a_pick_of_a_run_is_pruned_from_its_full_training_with_the_runs_data_and_seed(
        small: PruneExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "searched", trials=20, baselines=False), tmp_path / "run"
    told = yaml.safe_load((run / "experiment.yaml").read_text()) | {"data": "digits", "seed": 3, "device": "cpu"}
    (run / "experiment.yaml").write_text(yaml.safe_dump(told))
    best = load_run(run).best()
    assert main(["prune", str(run), "--pick", "best"]) == 2
    assert f"nasvit train {run} --pick {best.arch_id}" in capsys.readouterr().err
    _, weights = save(build(best.network(), seed=0), run / "train" / best.arch_id)
    (weights.parent / "metrics.json").write_text(json.dumps({"steps": 100, "model": None, "data": {"mean": [0.3], "std": [0.3]}}))
    words = ["--engine", "inline", "--sampler", "random", "--budget", "1", "--recover-epochs", "0", "--out", str(out)]
    assert main(["prune", str(run), "--pick", "best", *words]) == 0
    kept = PruneExperiment.load(out / "experiment.yaml")
    assert (kept.model, kept.data, kept.seed, kept.dense_steps) == (str(weights), "digits", 3, 100)
    assert json.loads((out / "prune.json").read_text())["mean"] == [0.3]
    for given, said in (([str(run), "--pick", "all"], "networks of"), ([str(weights.parent)], f"{weights} --arch"),
                        ([str(out)], str(out / "dense" / "model.safetensors")), ([small.model, "--pick", "best"], "is none"),
                        ([str(tmp_path / "small")], "not a run directory"), ([str(run), "--arch", "a.json"], "brings its own")):
        assert main(["prune", *given]) == 2 and said in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_pruning_says_what_it_prepares_and_not_what_a_search_does(
        small: PruneExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--arch", str(small.arch), "--data", "digits", "--engine", "inline", "--sampler", "random", "--budget", "1"]
    assert main(["prune", small.model, *words, "--recover-epochs", "0", "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "measuring the dense model" in told and "once trying" not in told


@pytest.mark.usefixtures("quick")
def test_a_dry_run_checks_what_a_run_checks_and_says_how_images_are_normalised(
        small: PruneExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", small.model, "--arch", str(small.arch), "--data", "digits", "--image-size", "16", "--dry-run"]
    assert main([*words, "--dense-epochs", "100"]) == 0
    out = capsys.readouterr().out
    assert "mean and std of these data" in out and "100 epochs of" in out
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").touch()
    for more, said in ((["--sampler", "nope"], "nope"), (["--max-latency", "8ms@pi"], "'pi'"), (["--engine", "nope"], "nope"),
                       (["--out", str(tmp_path / "run")], "already holds a run"),
                       (["--out", str(tmp_path / "none"), "--resume"], "there is no run")):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
