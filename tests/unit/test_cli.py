from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from nasvit import cli
from nasvit.arch import Arch
from nasvit.commands import terminal
from nasvit.errors import NasvitError


@pytest.mark.parametrize("argv", [["--help"], ["search", "--help"], ["--version"]])
def test_help_loads_neither_torch_nor_optuna(argv: list[str]) -> None:
    code = ("import sys; from nasvit.cli import main; code = main(sys.argv[1:]); "
            "heavy = {'torch', 'optuna', 'timm', 'pandas', 'ray', 'altair'} & set(sys.modules); sys.exit(str(heavy) if heavy else code)")
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(("argv", "says"), [
    (["space", "no_such_space"], "accepted: "),
    (["space", "hybrid_tny"], "did you mean 'hybrid_tiny'"),
    (["list", "mixer"], "did you mean 'mixers'"),
    (["measure", "--run", "a", "--model", "timm:b"], "exactly one"),
    (["search", "--max-latency", "fast"], "8ms"),
    (["search", "--resume"], "--out"),
    (["search", "no_such_file.yaml"], "no_such_file.yaml"),
    (["search", "--budget", "0"], "budget"),
])
def test_wrong_input_is_one_message_and_exit_code_2(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown


@pytest.mark.parametrize("argv", [["search", "--no-such-flag"], ["no_such_command"], ["search", "--budget", "many"]])
def test_a_usage_error_is_exit_code_2(argv: list[str]) -> None:
    assert cli.main(argv) == 2


def test_a_failed_run_is_exit_code_1_and_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment.yaml").write_text("{}")
    (tmp_path / "records.jsonl").write_text("torn\n")
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "nasvit: " in capsys.readouterr().err
    with pytest.raises(NasvitError):
        cli.main(["report", str(tmp_path), "--debug"])


def test_list_names_the_engines_and_the_objectives(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "engines"]) == 0 and cli.main(["list", "objectives"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("inline", "processes", "ray", "latency_ms", "accuracy"))


def test_flags_override_the_experiment_file_and_the_run_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run(experiment: Any, **given: Any) -> dict[str, Any]:
        seen.update(experiment=experiment, **given)
        return {"evaluated": 3, "stopped_because": "budget"}

    monkeypatch.setattr("nasvit.search.run", run)
    monkeypatch.setattr(cli, "render", lambda place: seen.update(rendered=place))
    file, out = tmp_path / "e.yaml", tmp_path / "run"
    file.write_text("space: catm_only\nbudget: 7\nseed: 5\nlimits: {params_m: 2}\n")
    argv = ["search", str(file), "--budget", "9", "--max-latency", "8ms", "--max-macs", "300M", "--max-memory", "0.5GB", "--baseline",
            "random", "--out", str(out)]
    assert cli.main(argv) == 0
    made = seen["experiment"]
    assert (made.space, made.budget, made.seed, made.baselines) == ("catm_only", 9, 5, ("random",))
    assert made.limits == {"params_m": 2.0, "latency_ms": 8.0, "macs_g": 0.3, "peak_memory_mb": 500.0}
    assert seen["out"] == seen["rendered"] == out and seen["resume"] is False and seen["allow_drift"] is False


def test_an_interrupted_search_says_how_to_go_on(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("nasvit.search.run", lambda *_, **__: {"evaluated": 0, "stopped_because": "interrupted"})
    assert cli.main(["search", "--budget", "3", "--out", str(tmp_path / "run")]) == 1
    assert f"--resume --out {tmp_path / 'run'}" in capsys.readouterr().err


def test_a_search_that_evaluated_nothing_has_failed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("nasvit.search.run", lambda *_, **__: {"evaluated": 0, "stopped_because": "the limits leave too little"})
    assert cli.main(["search", "--out", str(tmp_path / "run")]) == 1
    assert "no architecture was evaluated: the limits leave too little" in capsys.readouterr().err


def test_resume_takes_the_experiment_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    ended = {"evaluated": 0, "stopped_because": "interrupted"}
    monkeypatch.setattr("nasvit.search.run", lambda experiment, **_: seen.update(e=experiment) or ended)
    (tmp_path / "experiment.yaml").write_text("space: slide_only\nseed: 11\nengine: inline\n")
    (tmp_path / "env.json").write_text("{}")
    assert cli.main(["search", "--resume", "--out", str(tmp_path)]) == 1
    assert (seen["e"].space, seen["e"].seed) == ("slide_only", 11)


@pytest.mark.parametrize("argv", [["search"], ["prune"], ["prune", "timm:deit_tiny_patch16_224"]])
def test_resume_of_what_is_no_run_is_refused_before_anything_is_announced(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        assert cli.main([*argv, "--resume", "--out", str(place)]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and "no run in" in shown.err and "leave --resume away" in shown.err
    assert not list(tmp_path.iterdir())
    (tmp_path / "records.jsonl").touch()
    assert cli.main([*argv, "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "already holds a run" in shown.err and "add --resume" in shown.err


def test_a_new_run_gets_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "RUNS", tmp_path)
    assert terminal.fresh("a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert terminal.fresh("a") == tmp_path / "a-3"


def test_an_arch_file_is_read_as_json_and_yaml(tmp_path: Path, tiny_arch: Arch) -> None:
    from nasvit.commands.remeasure import read_arch

    file = tmp_path / "arch.json"
    file.write_text(tiny_arch.to_json())
    assert read_arch(file) == tiny_arch
    file.write_text(json.dumps({**tiny_arch.to_dict(), "extra": 1}))
    assert cli.main(["measure", "--arch", str(file)]) == 2


def test_the_app_is_a_typer_app_with_main_as_its_entry() -> None:
    assert isinstance(cli.app, typer.Typer) and cli.main(["--version"]) == 0


def test_what_the_system_refuses_is_one_message(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "report.html")

    monkeypatch.setattr(cli, "render", full)
    assert cli.main(["report", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert "No space left on device: 'report.html'" in shown and "Traceback" not in shown
