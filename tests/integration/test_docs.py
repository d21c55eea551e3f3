"""The documents are true: links lead somewhere, the walks run as they are written, the site builds, examples and notebook work."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from experiments.loopback_ssh import Server
from nasvit.experiment import Experiment, PruneExperiment
from nasvit.training import Recipe
from tests.integration.test_ssh_device import server  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[2]
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "search_spaces" / "README.md",
                *(ROOT / "reports" / "published").glob("*.md")])
CODE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[^\n]*$", re.M | re.S)
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.M | re.S)


def slugs(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub and the site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", CODE.sub("", path.read_text()), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        base = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
        found.add(next(name for name in (base, *(f"{base}-{n}" for n in range(1, 99))) if name not in found))
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_and_anchor_leads_somewhere(path: Path) -> None:
    dead = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", CODE.sub("", path.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        there = (path.parent / target).resolve() if target else path
        if not there.exists() or (ROOT not in there.parents and there != ROOT):
            dead.append(target)
        elif anchor and there.suffix == ".md" and anchor[1:] not in slugs(there):
            dead.append(target + anchor)
    assert not dead


def test_every_document_of_the_navigation_is_there_and_every_document_is_in_it() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"([\w./-]+\.md)\b", text.partition("\nnav:")[2].partition("\ntheme:")[0]))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == there


def test_every_command_has_its_section() -> None:
    from typer.main import get_command

    from nasvit.cli import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert commands == set(re.findall(r"^## nasvit (\w+)$", (ROOT / "docs" / "commands.md").read_text(), re.M))


def keys_of(document: str, head: str) -> dict[str, object]:
    """Key to default of the table with these first two columns under the words `head`; what is no value in code stays a text."""
    rows: dict[str, object] = {}
    for line in (ROOT / "docs" / document).read_text().partition(head)[2].partition("|---|---|---|\n")[2].splitlines():
        found = re.match(r"\| `(\w+)` \| (.*?) \|", line)
        if found is None:
            break
        rows[found[1]] = yaml.safe_load(found[2].strip("`")) if found[2].startswith("`") else found[2]
    return rows


def test_every_key_of_an_experiment_file_stands_with_its_default_in_the_documents() -> None:
    least = json.loads(Experiment(space="x").model_dump_json())
    found = keys_of("commands.md", "## The experiment file")
    assert found == least | {"space": "required", "workers": "the cores that the process may use"}
    pruning = json.loads(PruneExperiment(model="x").model_dump_json())
    own = {key: value for key, value in pruning.items() if key not in least or value != least[key]} | {"model": "required"}
    assert keys_of("pruning.md", "## In an experiment file") == {key: own[key] for key in own if key not in ("space", "truth")}


def test_every_setting_of_a_recipe_stands_with_its_default_in_the_documents() -> None:
    assert keys_of("commands.md", "What a `recipe` may say") == asdict(Recipe())


def walk(document: str, *, place: Path, path: str, replacing: dict[str, str]) -> list[str]:
    """Write the titled blocks of a document as files into `place` and run its bash blocks there, in order; what each command said."""
    said = []
    environment = {**os.environ, "PYTHONPATH": path, "NASVIT_LOCK": str(place / "lock"), "OMP_NUM_THREADS": "1", "NASVIT_NOISE": "keep",
                   "PYTHON": sys.executable}
    for kind, title, text in BLOCK.findall((ROOT / "docs" / document).read_text()):
        if title:
            (place / title).write_text(text)
        for line in text.splitlines() if kind == "bash" else ():
            for old, new in replacing.items():
                line = line.replace(old, new)
            line = re.sub(r"^nasvit ", f"{sys.executable} -m nasvit.cli ", re.sub(r"^python ", f"{sys.executable} ", line))
            done = subprocess.run(["bash", "-c", line], cwd=place, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            said.append(done.stdout + done.stderr)
    return said


@pytest.mark.slow
def test_the_walk_that_adds_a_mixer_runs_as_it_is_written(tmp_path: Path) -> None:
    place, site = tmp_path / "checkout", tmp_path / "site"
    for name in ("nasvit", "tests", "search_spaces"):
        shutil.copytree(ROOT / name, place / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    install = f"{sys.executable} -m pip install --quiet --no-deps --no-build-isolation --no-index --target {site} ./"
    said = walk("adding.md", place=place, path=f"{place}{os.pathsep}{site}",
                replacing={"pip install -e ": install, "-k pool": "-k 'pool and not onnx' -p no:cacheprovider"})
    assert "pytest tests/conformance -k pool" in said[0]
    assert re.search(r"\d+ passed", said[1]) and "failed" not in said[1]
    assert "5 of 5 samples built, counted and run" in said[2]
    assert re.search(r"pool +nasvit ", said[5]) and re.search(r"ripple +nasvit-ripple 0\.1\.0 ", said[5]) and "passed" in said[6]


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    said = walk("tutorial.md", place=tmp_path, path=str(ROOT),
                replacing={"examples/": f"{ROOT}/examples/", "5ms": "10s", "--budget 60": "--budget 2 --engine inline",
                           "--epochs 30": "--epochs 1"})
    assert "report: run/report.html" in said[1] and "against torch" in said[4]
    assert re.search(r"\d+\.\d+%  (disc|square|triangle)", said[5])


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra [docs]")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(ROOT / "mkdocs.yml"),
                           "--site-dir", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("index.html")}
    assert {"index.html", "tutorial/index.html", "repository/search_spaces/index.html"} <= pages
    assert "repository/examples/segmentation.py/index.html" in pages
    outside = [page for page in pages for link in re.findall(r'(?:src|href)="(https?://[^"]+)"', (tmp_path / "site" / page).read_text())
               if re.search(r"\.(js|css|woff2?)\b", link)]
    assert not outside, "the site loads nothing from elsewhere"


def example(name: str) -> object:
    """The module of an example, which is no package."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _calm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "lock"))
    monkeypatch.setenv("NASVIT_NOISE", "keep")
    monkeypatch.chdir(tmp_path)
    yield


@pytest.mark.slow
@pytest.mark.usefixtures("_calm")
def test_the_example_of_own_images_ends_with_a_prediction(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    module = example("own_images")
    images = module.generate(tmp_path / "photos", each=8, seed=1)  # type: ignore[attr-defined]
    said = module.main([str(images), "--budget", "1", "--epochs", "1", "--device", "cpu", "--max-latency", "10s"])  # type: ignore[attr-defined]
    assert re.search(r"%  (disc|square|triangle)", said)


@pytest.mark.slow
@pytest.mark.usefixtures("_calm")
def test_the_example_of_the_raspberry_pi_runs_over_ssh(server: Server, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "tiny.yaml").write_text(
        "name: tiny\nimage_size: {min: 16, max: 64, multiple_of: 16, default: 16}\nstem: {kind: conv, stride: 4}\nstages:\n"
        "  - {embed_dim: {choice: [8, 16]}, depth: 1, mixers: catm, mlp_ratio: 1.0}\n")
    folder = example("raspberry_pi").main([server.spec, "--space", "tiny.yaml", "--budget", "1", "--max-latency", "10s",  # type: ignore[attr-defined]
                                           "--out", "run"])
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "predict.py"}
    assert json.loads((tmp_path / "run" / "env.json").read_text()) and (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("_calm")
def test_the_example_of_the_cluster_evaluates_on_ray() -> None:
    assert example("ray_cluster").main(["--workers", "1", "--space", "catm_only", "--budget", "1", "--out", "run"]) == 1  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.usefixtures("_calm")
def test_the_notebook_runs_from_the_first_cell_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient", reason="needs the extra [docs]")
    monkeypatch.setenv("NASVIT_BUDGET", "2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(ROOT / "examples" / "front.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [data for cell in notebook.cells for output in cell.get("outputs", ()) if (data := output.get("data"))]
    assert sum("<svg" in str(data.get("text/html", "")) for data in shown) >= 3, "the front, the network, the comparison"
