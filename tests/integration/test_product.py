"""From a run to a product through the command line: search, train, verify, export, compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

import nasvit
from nasvit import cli
from nasvit.arch import Arch
from nasvit.commands.train import _beside
from nasvit.report import load
from nasvit.report.picks import pick

ROOT = Path(__file__).resolve().parents[2]
ANY_MACHINE = "cpu?noise=keep"  # these tests run beside others


@pytest.fixture(autouse=True, scope="module")
def _own_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing here depends on a latency's value: no need to wait for whatever else measures on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NASVIT_LOCK", str(tmp_path_factory.mktemp("lock") / "lock"))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of three small networks with both kinds of baselines."""
    out = tmp_path_factory.mktemp("product") / "run"
    experiment = out.parent / "search.yaml"
    experiment.write_text(f"space: catm_only\ndata: digits\ndevice: {ANY_MACHINE}\nbudget: 3\nsampler: random\nengine: inline\n"
                          "rungs: [4, 8]\nbaselines: [random, 'timm:test_vit']\n")
    assert cli.main(["search", str(experiment), "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_a_run_becomes_trained_verified_exported_networks(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    best = nasvit.load(run).arch("best").id
    assert cli.main(["train", str(run), "--pick", f"knee,{best}", "--epochs", "1", "--baselines"]) == 0
    labels = {json.loads(path.read_text())["label"] for path in run.glob("train/*/metrics.json")}
    opened = nasvit.load(run)
    assert {opened.arch("knee").id, opened.arch("best").id, "timm:test_vit"} <= labels
    finals = opened.finals.set_index("label")
    searched = load(run)
    random = searched.random
    assert random is not None, "the run has searched its random baseline"
    meant = {record.arch_id for record in pick(random, _beside(searched, random, f"knee,{best}"))}
    assert meant and meant <= labels, "each is trained, be it one of the picks"
    assert set(finals.index[finals["origin"] == "random"]) == meant - {opened.arch("knee").id, best}
    assert finals.at["timm:test_vit", "origin"] == "baseline" and finals["test_accuracy"].notna().all() and finals["latency_ms"].gt(0).all()
    assert "After full training" in (run / "report.html").read_text()
    capsys.readouterr()
    assert cli.main(["export", str(run), "--pick", "knee", "--device", ANY_MACHINE]) == 0
    said = capsys.readouterr().out
    assert "against torch" in said and " ms on cpu" in said and "train it in full" not in said
    folder = run / "export" / f"{opened.arch('knee').id}-onnxruntime"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "predict.py"}
    assert cli.main(["compare", str(run), str(run / "baselines" / "random"), "--out", str(run / "comparison")]) == 0
    assert (run / "comparison" / "compare.png").exists()


@pytest.mark.slow
def test_a_searched_network_is_the_backbone_of_the_segmentation_example(run: Path) -> None:
    import runpy

    before, after = runpy.run_path(str(ROOT / "examples" / "segmentation.py"))["main"]([str(run), "--pick", "best", "--steps", "60"])
    assert after > before


@pytest.mark.slow
def test_an_arch_file_and_a_timm_model_train_without_a_run(tmp_path: Path, tiny_arch: Arch) -> None:
    (tmp_path / "arch.json").write_text(tiny_arch.to_json())
    (tmp_path / "full.yaml").write_text("epochs: 1\ndrop_path: 0.1\nrecipe: {augment: rand-m5-n1, mixup: 0.2, cutmix: 0.5, ema: 0.9}\n")
    given = ["--data", "digits", "--recipe", str(tmp_path / "full.yaml"), "--out", str(tmp_path), "--device", ANY_MACHINE]
    assert cli.main(["train", "--arch", str(tmp_path / "arch.json"), *given]) == 0
    assert cli.main(["train", "--model", "timm:test_vit", *given, "--image-size", "16"]) == 0
    assert {path.parent.name for path in tmp_path.glob("train/*/metrics.json")} == {tiny_arch.id, "test_vit"}
    assert cli.main(["train", "--arch", str(tmp_path / "arch.json"), *given]) == 0, "a finished training is read"


@pytest.mark.slow
def test_torchrun_trains_on_two_processes(tmp_path: Path, tiny_arch: Arch) -> None:
    (tmp_path / "arch.json").write_text(tiny_arch.to_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "nasvit.cli"]
    done = subprocess.run([*launcher, "train", "--arch", str(tmp_path / "arch.json"), "--data", "digits", "--epochs", "1", "--out",
                           str(tmp_path), "--device", ANY_MACHINE], cwd=ROOT, capture_output=True, text=True, check=False,
                          timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "train" / tiny_arch.id / "metrics.json").read_text())
    assert metrics["steps"] == 37 and metrics["latency"]["median_ms"] > 0
    assert load_file(tmp_path / "train" / tiny_arch.id / "model.safetensors")
    assert done.stdout.count("weights and metrics") == 1, "one process speaks"
    assert f"weights and metrics: {tmp_path / 'train' / tiny_arch.id}/\n" in done.stdout


@pytest.mark.parametrize(("argv", "says"), [
    (["train", "somewhere"], "not a directory"), (["train", "x", "--arch", "y"], "exactly one"),
    (["train", "--model", "timm:test_vit"], "--data"), (["train", "--model", "test_vit", "--data", "digits"], "timm:NAME"),
    (["train", "--model", "timm:test_vitt", "--data", "digits"], "unknown model of timm"),
    (["train", "--arch", "x", "--data", "digits", "--pick", "knee"], "--pick"), (["train", "x", "--data", "digits"], "brings its own data"),
    (["train", "x", "--epochs", "1", "--minutes", "2"], "one of them"),
    (["train", "--model", "timm:test_vit", "--data", "digits", "--train-on", "tpu"], "accepted: cpu"),
    (["export", "somewhere"], "not a directory"), (["export", "somewhere", "--runtime", "eager"], "accepted: "),
    (["compare", "somewhere"], "not a directory")])
def test_wrong_input_is_one_message_and_exit_code_2(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
