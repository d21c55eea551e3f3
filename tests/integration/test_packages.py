"""Names from other packages: real ones, installed by pip into a folder on the path, found through their entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nasvit import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "{version}"
[project.entry-points."nasvit.mixers"]
{mixers}
{more}
[tool.setuptools]
py-modules = ["{module}"]
"""

EVERYTHING = '''"""One of each kind, in one file."""
from pathlib import Path

import numpy as np
from optuna.samplers import RandomSampler

from nasvit.data.base import DataInfo, DataKind, Labelled, Source
from nasvit.runtimes import Runtime


class Stripes(DataKind):
    """Generated stripes."""

    accepts = "stripes"

    def claims(self, spec):
        return spec == "stripes"

    def describe(self, spec):
        return DataInfo(kind="stripes", natural_size=(16, 16), in_channels=1, num_classes=2)

    def read(self, spec, *, image_size, test):
        labels = np.arange(80) % 2
        rng = np.random.default_rng(0)
        images = rng.integers(0, 80, (80, 16, 16, 1), dtype=np.uint8)
        for image, label in zip(images, labels):
            (image[::4] if label else image[:, ::4])[:] = 255
        return Source(parts={"all": Labelled(images=images, labels=labels)}, class_names=("columns", "rows"), flip=True)


def lengths(probe):
    """How many tensors there are."""
    return float(len(list(probe.module.parameters())))


def dice(seed, domain):
    """Uniform, from another package."""
    return RandomSampler(seed=seed)


class Again(Runtime):
    """The network as it is, under another name."""

    name = "again"

    def version(self):
        return "again 1"

    def missing(self):
        return None

    def prepare(self, module, example):
        return lambda x: module(x)
'''
GROUPS = """[project.entry-points."nasvit.datasets"]
stripes = "everything:Stripes"
[project.entry-points."nasvit.proxies"]
lengths = "everything:lengths"
[project.entry-points."nasvit.samplers"]
dice = "everything:dice"
[project.entry-points."nasvit.runtimes"]
again = "everything:Again"
"""

SPACE = """name: own
image_size: {min: 16, max: 64, multiple_of: 16, default: 16}
stem: {kind: conv, stride: 2}
stages:
  - embed_dim: {choice: [8, 16]}
    depth: {range: [1, 2]}
    mixers: {choice: [swirl, window]}
    mlp_ratio: 1.0
    window: {window_size: 4}
mixers:
  swirl: {kernel_size: {choice: [3, 5]}}
  window: {shift: false, head_dim: 8}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four installed packages: what `nasvit new` makes, one of everything, one that does not load, one that takes a name."""
    work = tmp_path_factory.mktemp("packages")
    assert cli.main(["new", "mixer", "swirl", "--package", str(work / "nasvit-swirl")]) == 0
    _project(work / "everything", mixers="", more=GROUPS, code=EVERYTHING)
    _project(work / "broken", mixers='shattered = "broken:Mixer"', code="import no_such_module_at_all\n")
    _project(work / "greedy", mixers='levit = "greedy:Levit"', code="from nasvit.models.mixers.window import WindowMixer as Levit\n")
    target = work / "site"
    sources = [str(work / name) for name in ("nasvit-swirl", "everything", "broken", "greedy")]
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                           "--target", str(target), *sources], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def _project(folder: Path, *, mixers: str, code: str, more: str = "") -> None:
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT.format(name=folder.name, version="1.2", module=folder.name, mixers=mixers, more=more))
    (folder / f"{folder.name}.py").write_text(code)


def run(*words: str, site: Path, cwd: Path, code: int = 0) -> str:
    """Standard output and error of a Python command that sees the installed packages."""
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "NASVIT_LOCK": str(cwd / "lock"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_names_of_packages_are_listed_with_where_they_come_from_and_broken_ones_with_their_cause(site: Path, tmp_path: Path) -> None:
    said = " ".join(run("-m", "nasvit.cli", "list", site=site, cwd=tmp_path).split())
    for name, package in (("swirl", "nasvit-swirl 0.1.0"), ("stripes", "everything 1.2"), ("lengths", "everything 1.2"),
                          ("dice", "everything 1.2"), ("again", "everything 1.2"), ("window", "nasvit"), ("shattered", "broken 1.2")):
        assert f"{name} {package} " in said
    assert "CANNOT BE HAD: broken:Mixer does not load (ModuleNotFoundError" in said
    assert "greedy 1.2 CANNOT BE HAD: the name is taken" in said


def test_reading_what_needs_no_torch_loads_no_package(site: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    code = ("import sys, nasvit, nasvit.cli, nasvit.report\nfrom nasvit.space import SearchSpace\nSearchSpace.load('own.yaml')\n"
            "from nasvit.engines import ENGINES\nENGINES.names()\n"
            "print([m for m in ('torch', 'everything', 'nasvit_swirl', 'broken') if m in sys.modules])")
    assert run("-c", code, site=site, cwd=tmp_path).strip() == "[]"


def test_who_asks_for_a_broken_or_a_doubly_taken_name_is_told_package_and_cause(site: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    for name, says in (("shattered", "'shattered' of broken 1.2 cannot be had: broken:Mixer does not load (ModuleNotFoundError"),
                       ("levit", "'levit' of nasvit and greedy 1.2 cannot be had: the name is taken twice")):
        (tmp_path / "bad.yaml").write_text(SPACE.replace("swirl", name))
        said = run("-m", "nasvit.cli", "space", "bad.yaml", site=site, cwd=tmp_path, code=2)
        assert "bad.yaml:" in said and says in said and "Traceback" not in said


def test_a_new_package_passes_the_conformance_tests_and_its_own(site: Path, tmp_path: Path) -> None:
    said = run("-m", "pytest", str(ROOT / "tests" / "conformance" / "test_mixers.py"), "-k", "swirl or every_mixer",
               "-p", "no:cacheprovider", "-W", "ignore", "--rootdir", str(ROOT), site=site, cwd=tmp_path)
    assert "passed" in said and "failed" not in said
    run("-m", "pytest", str(site.parent / "nasvit-swirl" / "tests"), "-p", "no:cacheprovider", "-W", "ignore", site=site, cwd=tmp_path)


def test_a_search_stands_on_names_of_packages_alone(site: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    (tmp_path / "run.yaml").write_text("space: own.yaml\ndata: stripes\nsampler: dice\ndevice: cpu/again?noise=keep\nbudget: 3\n"
                                       "rungs: [4, 8]\nengine: processes\nworkers: 1\n")
    assert "report: run/report.html" in run("-m", "nasvit.cli", "search", "run.yaml", "--out", "run", site=site, cwd=tmp_path)
    code = ("import random, torch\nfrom nasvit.proxies.zero_cost import score_all\nfrom nasvit.space import SearchSpace\n"
            "arch = SearchSpace.load('own.yaml', in_channels=1, num_classes=2).sample(random.Random(0))\n"
            "print('score', score_all(arch, images=torch.randn(8, 1, 16, 16), labels=torch.arange(8) % 2, seed=0)['lengths'])")
    (said,) = [line for line in run("-c", code, site=site, cwd=tmp_path).splitlines() if line.startswith("score ")]
    assert float(said.split()[1]) > 4
