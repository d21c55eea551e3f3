from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nasvit
from nasvit.arch import Arch
from nasvit.errors import ConfigError, RunError
from nasvit.models.build import build
from nasvit.models.weight_file import write_weights
from nasvit.report import load
from nasvit.results.record import append
from tests.pruning_models import make
from tests.unit.report.make_run import write_run


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("opened") / "run", trials=40, baselines=False)


def test_importing_and_loading_stay_light(path: Path) -> None:
    code = (f"import sys, nasvit; heavy = ('torch', 'pandas', 'optuna', 'altair'); assert not [m for m in heavy if m in sys.modules];"
            f"run = nasvit.load({str(path)!r}); run.front; run._repr_html_(); print([m for m in ('torch', 'optuna') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_opens_to_its_tables_and_picks(path: Path) -> None:
    run, plain = nasvit.load(path), load(path)
    assert run.front.equals(plain.front) and run.trials.equals(plain.trials)
    assert run.best(max_latency_ms=2).arch_id == plain.best(max_latency_ms=2).arch_id
    assert run.arch("knee").id == plain.front.loc[plain.front["knee"], "arch_id"].item()
    with pytest.raises(ConfigError, match=r"means \d+ networks; give one"):
        run.arch("all")
    assert not len(run.finals)


def test_a_notebook_shows_the_run_its_front_and_its_network(path: Path) -> None:
    run = nasvit.load(path)
    assert "<svg" in run._repr_html_() and "<table" in run._repr_html_() and "<script" not in run._repr_html_()
    assert "<table" in run.front._repr_html_() and run.arch()._repr_html_().startswith("<svg")  # type: ignore[operator]
    assert "trials" in repr(run)


def test_a_notebook_shows_a_record_in_a_few_words(path: Path) -> None:
    record = nasvit.load(path).best()
    text = record._repr_html_()
    assert record.arch_id in text and f"trial {record.trial}" in text and f"accuracy {record.objectives['accuracy']:.4g}" in text
    assert len(text) < 300
    failed = replace(record, status="failed", label="<b>x", reason="the loss became nan", objectives={})._repr_html_()
    assert "&lt;b&gt;x" in failed and "failed at rung" in failed and "the loss became nan" in failed


def test_what_is_left_of_a_model_of_timm_is_refused_as_a_backbone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nasvit.finals import Subject, Trained

    pruned = Trained(module=torch.nn.Identity(), subject=Subject.of_model("timm:deit_tiny_patch16_224"), metrics={})
    monkeypatch.setattr("nasvit.finals.searched.load_best", lambda *given: pruned)
    run = nasvit.load(path)
    assert run.model("best") is pruned.module
    with pytest.raises(ConfigError, match="gives no maps of its scales; leave features_only away"):
        run.model("best", features_only=True)


def test_the_arch_of_a_pruning_is_given_where_a_network_of_an_arch_was_pruned(tmp_path: Path, tiny_arch: Arch) -> None:
    from nasvit.pruning import prepare, slice_weights
    from nasvit.pruning.files import form_of
    from nasvit.pruning.importance import importance

    run = write_run(tmp_path / "run", trials=12, baselines=False)
    first = load(run).best()
    for number, model in ((90, build(tiny_arch, seed=0)), (91, make("vit"))):
        dense = prepare(model)
        last = replace(dense.plan.blocks[-1], mlp_dim=dense.plan.blocks[-1].mlp_dim // 2)
        plan = replace(dense.plan, blocks=(*dense.plan.blocks[:-1], last))
        append(run / "records.jsonl", replace(first, trial=number, arch=plan.to_dict(), arch_id=plan.id))
        if number == 90:
            images = torch.randn(2, tiny_arch.in_channels, *tiny_arch.image_size)
            scores = importance(dense, images, torch.zeros(2, dtype=torch.long), criterion="magnitude").scores
            cut = form_of(slice_weights(dense, plan, scores))
    found = nasvit.load(run).arch("trial:90")
    assert found == cut and found.stages[-1].blocks[-1].mlp_dim == tiny_arch.stages[-1].blocks[-1].mlp_dim // 2
    with pytest.raises(RunError, match=r"its record holds a Plan"):
        nasvit.load(run).arch("trial:91")


def test_two_runs_compare(path: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", trials=40, seed=3, baselines=False)
    by_run, by_path = nasvit.load(path).compare(nasvit.load(other)), nasvit.load(path).compare(other)
    assert by_run.table.equals(by_path.table) and by_run.table["run"].tolist() == ["run", "other"]


def test_a_model_comes_with_the_weights_of_the_search_until_it_is_trained_in_full(tmp_path: Path) -> None:
    from nasvit import data
    from nasvit.finals import FinalPlan, Subject, Task, train_in_full

    path = write_run(tmp_path / "run", trials=12, baselines=False)
    env = (path / "env.json").read_text().replace("0f0f0f0f0f0f", data.load("digits", seed=7, image_size=(16, 16)).fingerprint)
    (path / "env.json").write_text(env)
    run = nasvit.load(path)
    record = run.best()
    with pytest.raises(RunError, match="the checkpoint of trial"):
        run.model("best")
    module = build(record.network(), seed=5)
    write_weights(path / "checkpoints" / "best.safetensors", module.state_dict())
    append(path / "records.jsonl", replace(record, rung=3, objectives={**record.objectives, "accuracy": 0.999},
                                           checkpoint="checkpoints/best.safetensors"))
    run, x = nasvit.load(path), torch.randn(2, 1, 16, 16)
    found = run.model("best")
    with torch.no_grad():
        assert not found.training and torch.equal(found(x), module.eval()(x))
    features = run.model("best", features_only=True)
    with torch.no_grad():
        maps, info = features(x), features.feature_info
        assert not features.training and torch.equal(maps[-1], module.forward_intermediates(x, intermediates_only=True)[-1])
        assert [(m.shape[1], 16 // m.shape[2]) for m in maps] == list(zip(info.channels(), info.reduction(), strict=True))
    digits = data.load("digits", seed=7, image_size=(16, 16))
    plan = FinalPlan(epochs=0.1)
    task = Task(data=digits, data_spec="digits", split_seed=7, plan=plan, recipe=plan.full_recipe({}), folder=path / "train")
    train_in_full(Subject.of_arch(record.network()), task)
    with torch.no_grad():
        assert not torch.equal(run.model("best")(x), found(x))
