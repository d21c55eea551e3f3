"""Rules of the house that a machine can hold: file length, tree depth, names, links, one home per dependency."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = sorted((ROOT / "nasvit").rglob("*.py"))
TEXTS = sorted(p for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "search_spaces" / "README.md"] if p.exists())


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_stays_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "which second noun moved in?"


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_says_what_it_is(path: Path) -> None:
    assert path.read_text().lstrip().startswith('"""'), "the first line of a file is its docstring"


def test_no_file_has_a_name_that_says_nothing() -> None:
    banned = {"utils", "common", "helpers", "core", "misc"}
    assert not [p for p in PRODUCT if p.stem in banned]


def test_the_tree_is_at_most_two_deep_except_for_mixers_and_pruning_families() -> None:
    deep = [p for p in PRODUCT if len(p.relative_to(ROOT / "nasvit").parts) > 2]
    kept = [ROOT / "nasvit" / "models" / "mixers", ROOT / "nasvit" / "pruning" / "families"]
    assert all(any(p.is_relative_to(folder) for folder in kept) for p in deep), deep


def test_timm_layers_has_one_home() -> None:
    users = [p for p in PRODUCT if re.search(r"^\s*(from|import) timm\.layers", p.read_text(), re.M)]
    assert all("zoo" in p.parts for p in users), users


@pytest.mark.parametrize("pattern", [r"\bpickle\.loads?\(", r"weights_only=False", r"yaml\.(unsafe_|full_)?load\(", r"shell=True",
                                     r"(?<![\w.])(eval|exec)\(", r"allow_pickle=True",
                                     r"\bos\.(system|popen)\(", r"\b(marshal|shelve|dill)\b",
                                     r"\bpickle\.(load|Unpickler)\(", r"torch\.load\((?!.*weights_only=True)", r"\bmktemp\(",
                                     r"Environment\((?!.*autoescape=True)", r"\bcloudpickle\b"])
def test_the_product_never_runs_what_it_reads(pattern: str) -> None:
    """Engines alone unpickle: what comes through a private pipe from a process they started, never a file."""
    files = [p for p in PRODUCT if not (p.parent.name == "engines" and "pickle.loads" in pattern.replace("\\", "").replace("?", ""))]
    assert not [f"{p.name}: {line}" for p in files for line in p.read_text().splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize("module", ["nasvit", "nasvit.cli", "nasvit.space", "nasvit.results.record", "nasvit.report"])
def test_light_modules_load_neither_torch_nor_optuna(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'optuna', 'ray', 'timm') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_a_search_begins_without_what_takes_long_to_import() -> None:
    """timm brings torchvision, and with it torch's compiler: more than all else together, in every command and worker."""
    code = "import sys, nasvit.search; print([m for m in ('timm', 'torchvision', 'torch._dynamo', 'altair') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there"


def test_the_wheels_environment_is_of_the_interpreter_that_is_asked_for() -> None:
    said = subprocess.run(["make", "-n", "wheel", "PYTHON=python3.99"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "python3.99 -m venv build-wheel-test/venv" in said


@pytest.mark.slow
def test_the_canary_runs_the_tests_that_start_a_cluster_of_ray() -> None:
    """All of those are slow, so `-m "not slow"` alone would try a new Ray on none of them."""
    said = subprocess.run(["make", "-n", "canary"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    (words,) = re.findall(r"pytest -m slow -k \"([^\"]+)\"", said)
    found = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "-m", "slow", "-k", words,
                            "tests/integration/test_cluster.py", "tests/conformance/test_engines.py", "tests/unit/test_tune.py"],
                           capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for test in ("test_a_real_search_measures_and_trains", "test_a_dead_worker_fails_only_its_own_future_and_is_replaced[ray]",
                 "test_a_real_tuner_runs_trials_of_a_space"):
        assert test in found


def test_every_pinned_version_installs_on_the_first_python_that_the_project_takes() -> None:
    # a pin that wants 3.11.5 makes the installation fail on Debian 12, whose Python is 3.11.2
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    first = needs.removeprefix(">=").partition(",")[0] + ".0"
    assert SpecifierSet(needs).contains(first)
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    there = {d.metadata["Name"].lower(): d for d in importlib.metadata.distributions()}
    known = {name: there[name].metadata["Requires-Python"] for name in pinned if name in there and there[name].version == pinned[name]}
    assert len(known) > 50
    assert {name: asked for name, asked in known.items() if asked and not SpecifierSet(asked).contains(first)} == {}


def test_every_make_command_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"search", "test"} <= named <= targets


def test_every_nasvit_command_of_the_readme_exists() -> None:
    from typer.main import get_command

    from nasvit.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for text in TEXTS:
        for line in re.findall(r"^ *(?:\$ )?(?:\.venv/bin/)?nasvit ([a-z].*)$", text.read_text(), re.M):
            words = line.split()
            assert words[0] in commands, f"{text.name}: nasvit {words[0]}"
            flags = {option for parameter in commands[words[0]].params for option in parameter.opts}
            assert {w.split("=")[0] for w in words if w.startswith("--")} <= flags, f"{text.name}: nasvit {line}"


def test_the_command_line_is_frozen() -> None:
    """Few flags; the rest is in the experiment file. A new flag is a decision: change this list in the same commit."""
    from typer.main import get_command

    from nasvit.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    found = {name: sorted(o for p in c.params for o in p.opts if o.startswith("--")) for name, c in commands.items()}
    assert found == FLAGS


FLAGS: dict[str, list[str]] = {
    "compare": ["--out"],
    "dashboard": ["--port"],
    "export": ["--device", "--dynamic-batch", "--out", "--pick", "--runtime"],
    "list": [],
    "devices": [],
    "measure": ["--arch", "--batch-size", "--device", "--json", "--model", "--run"],
    "new": ["--package"],
    "profile": ["--device", "--image-size", "--like", "--minutes", "--networks", "--out", "--space"],
    "prune": ["--arch", "--budget", "--checkpoint", "--data", "--dense-epochs", "--device", "--dry-run", "--engine", "--image-size",
              "--max-latency", "--minutes", "--out", "--pick", "--recover-epochs", "--resume", "--sampler", "--seed", "--sibling",
              "--space", "--workers"],
    "repair": [],
    "report": [],
    "search": ["--allow-drift", "--baseline", "--budget", "--data", "--device", "--engine", "--gpus-per-worker",
               "--max-latency", "--max-macs", "--max-memory", "--max-params", "--minutes", "--out", "--profile", "--ray-address",
               "--resume", "--sampler", "--seed", "--space", "--stop", "--storage", "--workers"],
    "show": ["--image", "--out", "--pick"],
    "space": ["--image-size", "--sample"],
    "train": ["--arch", "--baselines", "--data", "--device", "--epochs", "--image-size", "--minutes", "--model", "--out", "--pick",
              "--recipe", "--seed", "--teacher", "--train-on"],
}
