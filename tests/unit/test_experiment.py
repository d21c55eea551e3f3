from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from nasvit.data import rooted
from nasvit.errors import ConfigError
from nasvit.experiment import Experiment, PruneExperiment, parse_limit


@pytest.mark.parametrize(("text", "name", "value"), [
    ("8ms", "latency_ms", 8.0), ("0.5s", "latency_ms", 500.0), ("800us", "latency_ms", 0.8), (8, "latency_ms", 8.0),
    ("300M", "macs_g", 0.3), ("0.3G", "macs_g", 0.3), ("5M", "params_m", 5.0),
    ("200k", "params_m", 0.2), (" 1 GB ", "peak_memory_mb", 1000.0)])
def test_a_limit_is_read_in_its_unit(text: str, name: str, value: float) -> None:
    assert parse_limit(text, name=name) == (name, pytest.approx(value))


@pytest.mark.parametrize(("text", "name"), [("8", "accuracy"), ("8M", "latency_ms"), ("-8ms", "latency_ms"), ("0", "latency_ms"),
                                            ("fast", "latency_ms"), (True, "latency_ms"), ("inf", "latency_ms"), ("1e999", "latency_ms")])
def test_a_limit_that_cannot_be_read_is_refused(text: str, name: str) -> None:
    with pytest.raises(ConfigError):
        parse_limit(text, name=name)


def test_yaml_round_trips(tmp_path: Path) -> None:
    experiment = Experiment(space="hybrid_tiny", limits={"latency_ms": "8ms"}, image_size=32, recipe={"lr": 0.001}, minutes=3.5)
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment.to_yaml())
    assert Experiment.load(path) == experiment


def test_the_command_line_wins_and_limits_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("space: a\nbudget: 5\nlimits: {latency_ms: 8ms, params_m: 1M}\n")
    experiment = Experiment.load(path, overrides={"budget": 7, "seed": None, "limits": {"latency_ms": "4ms"}})
    assert (experiment.budget, experiment.seed, experiment.limits) == (7, 0, {"latency_ms": 4.0, "params_m": 1.0})


def test_a_space_beside_the_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "e.yaml").write_text("space: mine.yaml\n")
    assert Experiment.load(tmp_path / "e.yaml").space == str(tmp_path / "mine.yaml")


def test_every_fault_is_told_with_its_line_and_what_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("space: a\nbudgte: 5\nrungs: [60, 60]\nobjectives: [accuracy, speed]\n")
    with pytest.raises(ConfigError) as caught:
        Experiment.load(path)
    text = str(caught.value)
    assert "line 2" in text and "did you mean 'budget'" in text
    assert "line 3" in text and "grow from rung to rung" in text
    assert "line 4" in text and "latency_ms" in text


def test_a_fault_of_the_command_line_does_not_blame_the_file(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("space: a\nbudget: 5\n")
    with pytest.raises(ConfigError, match="command line: budget"):
        Experiment.load(path, overrides={"budget": 0})
    with pytest.raises(ConfigError) as caught:  # of two settings together: no place, and not all settings in full
        Experiment.load(overrides={"space": "a", "limits": {"latency_ms@pi": 1.0}})
    assert str(caught.value).startswith("command line: the latency on 'pi' is not measured") and "given:" not in str(caught.value)


@pytest.mark.parametrize("values", [{"objectives": ["latency_ms", "params_m"]}, {"objectives": ["accuracy"]}, {"limits": {"accuracy": 1}},
                                    {"baselines": ["resnet"]}, {"eta": 1}, {"seed": -1}, {"minutes": 0}, {"recipe": {"lr": [1]}}])
def test_impossible_values_are_refused(values: dict) -> None:
    with pytest.raises(ConfigError):
        Experiment.load(overrides={"space": "a", **values})


def test_a_command_lines_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="is not text"):
        Experiment.load(overrides={"space": "a", "engine": "\udcff", "ray_address": "auto"})


def test_a_missing_space_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="space is missing"):
        Experiment.load()


def test_searches_and_prunings_are_led_by_our_own_sampler() -> None:
    assert Experiment(space="a").sampler == "surrogate"
    assert PruneExperiment(model="timm:deit_tiny_patch16_224").sampler == "surrogate"


def test_the_file_of_another_command_is_sent_there(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("space: hybrid_tiny\nbudget: 5\n")
    with pytest.raises(ConfigError, match=r"experiment of a search.*nasvit search"):
        PruneExperiment.load(path, overrides={"model": "deit_tiny_patch16_224"})
    path.write_text("model: deit_tiny_patch16_224\nbudget: 5\n")
    with pytest.raises(ConfigError, match=r"experiment of a pruning.*nasvit prune"):
        Experiment.load(path)
    with pytest.raises(ConfigError, match="model is missing; give the model's name"):
        PruneExperiment.load()


@pytest.mark.parametrize(("text", "said"), [
    ("criterium: taylor", "did you mean 'criterion'"), ("space: hybrid_tiny", "choices"),
    ("limits: {latency_ms: 8ms}", "write target: 8ms"), ("baselines: [random]", "baselines is a setting of a search"),
    ("devices: {a: cpu, b: cpu/onnxruntime}", "one device"),
    ("dense_steps: 5\ndense_epochs: 1", "say the same thing twice"), ("recover_epochs: -1", "line 2: recover_epochs")])
def test_what_is_no_setting_of_a_pruning_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"model: deit_tiny_patch16_224\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        PruneExperiment.load(tmp_path / "p.yaml")
    assert said in str(caught.value)


def test_a_prunings_files_are_found_beside_its_experiment_and_its_yaml_round_trips(tmp_path: Path) -> None:
    for name in ("model.safetensors", "arch.json", "small.safetensors"):
        (tmp_path / name).write_text("")
    path = tmp_path / "p.yaml"
    path.write_text("model: model.safetensors\narch: arch.json\nsiblings: {deit_tiny_patch16_224: small.safetensors, other: absent}\n"
                    "target: 8\nlimits: {peak_memory_mb: 1GB}\nrecipe: {lr: 2e-4}\n")
    found = PruneExperiment.load(path)
    assert (found.model, found.arch) == (str(tmp_path / "model.safetensors"), str(tmp_path / "arch.json"))
    assert found.siblings == {"deit_tiny_patch16_224": str(tmp_path / "small.safetensors"), "other": "absent"}
    assert (found.target, found.limits, found.recipe) == ("8ms", {"peak_memory_mb": 1000.0}, {"lr": 2e-4})
    path.write_text(found.to_yaml())
    assert PruneExperiment.load(path) == found


def test_the_example_of_the_docs_is_an_experiment(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "pruning.md").read_text()
    example = text.partition("    # prune.yaml\n")[2].partition("\n\n")[0]
    (tmp_path / "prune.yaml").write_text(textwrap.dedent(example))
    found = PruneExperiment.load(tmp_path / "prune.yaml")
    assert (found.target, found.limits["peak_memory_mb"], found.recipe["lr"]) == ("0.6x", 512.0, 2e-4)


def test_an_option_in_epochs_replaces_what_the_file_says_in_steps(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("model: deit_tiny_patch16_224\ndense_steps: 500\nrungs: [0, 5, 15, 50]\n")

    def found(**options: float | None) -> tuple[object, ...]:
        read = PruneExperiment.load(tmp_path / "p.yaml", overrides=options)
        return read.dense_steps, read.dense_epochs, read.rungs

    assert found(dense_epochs=3.0) == (None, 3.0, None) and found(recover_epochs=1.0) == (500, None, None)
    assert found(dense_epochs=None) == (500, None, (0, 5, 15, 50))


def test_paths_hold_from_any_folder_and_folders_that_bear_the_name_of_a_space_or_of_data_are_no_paths(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("digits", "hybrid_tiny", "photos/cat", "photos/dog"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cpu.json").write_text("{}")
    named = Experiment(space="hybrid_tiny", data="digits", profile={"cpu": "cpu.json"}).absolute(data=rooted)
    assert (named.space, named.data, named.profile) == ("hybrid_tiny", "digits", {"cpu": str(tmp_path / "cpu.json")})
    assert Experiment(space="hybrid_tiny", data="photos").absolute(data=rooted).data == str(tmp_path / "photos")
    for spec, meant in {"torchvision:MNIST@sets": f"torchvision:MNIST@{tmp_path / 'sets'}", "torchvision:MNIST": "torchvision:MNIST",
                        "no such thing": "no such thing"}.items():
        assert Experiment(space="hybrid_tiny", data=spec).absolute(data=rooted).data == meant


def test_a_folder_beside_an_experiment_that_bears_a_known_name_is_no_path(tmp_path: Path) -> None:
    for folder in ("digits", "hybrid_tiny", "photos"):
        (tmp_path / folder).mkdir()
    (tmp_path / "x.yaml").write_text("space: hybrid_tiny\ndata: digits\n")
    loaded = Experiment.load(tmp_path / "x.yaml")
    assert (loaded.space, loaded.data) == ("hybrid_tiny", "digits")
    (tmp_path / "x.yaml").write_text("space: hybrid_tiny\ndata: photos\n")
    assert Experiment.load(tmp_path / "x.yaml").data == str(tmp_path / "photos")
