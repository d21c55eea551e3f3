"""`nasvit new mixer NAME`: a token mixer that works and passes the conformance tests at once, to be changed into one's own."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nasvit.errors import ConfigError, StorageError

MIXER_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
PACKAGE_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
IMPORTS = re.compile(r"^(from nasvit\.models\.mixers import )([a-z0-9_]+(?:, [a-z0-9_]+)*)", re.M)

MIXER = '''"""{title}: a token mixer. Each token is multiplied by gates that it reads off its neighbourhood."""

from __future__ import annotations

from torch import Tensor, nn

from nasvit.arch import Grid
from nasvit.models.mixers.base import {names}


{register}class {cls}(Mixer):
    """Gated depthwise convolution: proj(value(x) * sigmoid(near(x))). kernel_size: odd side of the neighbourhood."""

    def __init__(self, dim: int, *, resolution: Grid, kernel_size: int = 3) -> None:
        super().__init__()
        self.dim, self.resolution, self.kernel_size = dim, resolution, kernel_size
        self.value = nn.Linear(dim, dim)
        self.near = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        gates = to_channels_last(self.near(to_channels_first(x))).sigmoid()
        return self.proj(self.value(x) * gates)

    def macs(self) -> int:
        """Multiply-adds of one image: two linear layers and a depthwise convolution. The tests hold them against the counter."""
        tokens = self.resolution[0] * self.resolution[1]
        return tokens * self.dim * (2 * self.dim + self.kernel_size**2)
'''

PROJECT = '''[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{package}"
version = "0.1.0"
description = "The token mixer {name} for nasvit"
requires-python = ">=3.11"
dependencies = ["nasvit"]

[project.entry-points."nasvit.mixers"]
{name} = "{module}.{name}:{cls}"

[tool.setuptools.packages.find]
include = ["{module}*"]
'''

TEST = '''"""What nasvit asks of every token mixer, in short; `pytest tests/conformance -k {name}` in nasvit's checkout asks all of it."""

import pytest
import torch

from nasvit.arch import MixerSpec
from nasvit.cost import count
from nasvit.models.mixers import MIXERS, make_mixer

SPEC, DIM, GRID = MixerSpec.of("{name}", kernel_size=3), 8, (6, 10)


def test_nasvit_finds_it_in_this_package() -> None:
    assert MIXERS.origin("{name}").startswith("{package} ")


def test_shape_is_kept_and_gradient_reaches_every_parameter() -> None:
    mixer = make_mixer(SPEC, dim=DIM, resolution=GRID)
    out = mixer(torch.randn(2, *GRID, DIM))
    out.square().sum().backward()
    assert out.shape == (2, *GRID, DIM)
    assert all(p.grad is not None and p.grad.any() for p in mixer.parameters())


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    mixer, x = make_mixer(SPEC, dim=DIM, resolution=GRID).eval(), torch.randn(3, *GRID, DIM)
    torch.testing.assert_close(mixer(x), torch.cat([mixer(image) for image in x.split(1)]), rtol=1e-4, atol=1e-6)


def test_counted_macs_agree_with_the_closed_form() -> None:
    mixer = make_mixer(SPEC, dim=DIM, resolution=GRID)
    assert count(mixer, input_shape=(1, *GRID, DIM)).macs == pytest.approx(mixer.macs(), rel=0.005)
'''

README = '''# {package}

The token mixer `{name}` for nasvit.

    pip install -e .            # in the environment of nasvit
    nasvit list mixers          # {name}, from {package}
    python -m pytest tests

In a space file: `mixers: {name}` for a stage, `{name}: {{kernel_size: {{choice: [3, 5]}}}}` under `mixers:`.
'''


def new(
    what: Annotated[str, typer.Argument(help="mixer.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Its name in space files: lower-case letters, digits, underscores.", show_default=False)],
    package: Annotated[Path | None, typer.Option(help="A folder for a package of its own, which is made (default: into this "
                                                      "checkout of nasvit).")] = None,
) -> None:
    """Write a working token mixer with its registration, into this checkout or as a package of its own."""
    if what != "mixer":
        raise ConfigError(f"nasvit new makes no {what!r}; accepted: mixer")
    check_name(name)
    files = _package(name, package) if package is not None else _in_checkout(name)
    _write(files)
    for path in files:
        typer.echo(f"wrote {path}")
    if package is not None:
        typer.echo(f"next: pip install -e {package}; nasvit list mixers; python -m pytest {package / 'tests'}")
    else:
        typer.echo(f"next: python -m pytest tests/conformance -k {name}; then change {next(iter(files))}")


def check_name(name: str) -> None:
    """Raises ConfigError for a name that is no name, means something else in a space file, or is taken."""
    from nasvit.models.mixers import MIXERS
    from nasvit.space.file import STAGE_KEYS
    from nasvit.vocabulary import VOCABULARY

    if not MIXER_NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name for a mixer; accepted: up to 32 lower-case letters, digits and underscores, the first a "
                          "letter, and no word of Python")
    if name in {*STAGE_KEYS, *VOCABULARY, "base", "tests"}:
        raise ConfigError(f"{name!r} means something else in a space file or in the code; choose another name")
    if name in MIXERS:
        raise ConfigError(f"the mixer {name!r} is there already, from {MIXERS.origin(name)}; choose another name")
    if name in MIXERS.refused():
        raise ConfigError(f"{MIXERS.refusal(name)}; choose another name")


def _source(name: str, *, own_package: bool) -> str:
    names = "Mixer, to_channels_first, to_channels_last" if own_package else "MIXERS, Mixer, to_channels_first, to_channels_last"
    return MIXER.format(title=name.replace("_", " ").capitalize(), names=names, cls=_class(name),
                        register="" if own_package else f'@MIXERS.register("{name}")\n')


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_")) + "Mixer"


def _in_checkout(name: str) -> dict[Path, str]:
    """The mixer's file, and the package's `__init__` with the name in its import line."""
    import nasvit

    folder = Path(nasvit.__file__).parent / "models" / "mixers"
    if not (Path(nasvit.__file__).parents[1] / "tests" / "conformance").is_dir():
        raise ConfigError("this nasvit is installed, it is no checkout to write into; make a package: "
                          f"nasvit new mixer {name} --package nasvit-{name.replace('_', '-')}")
    target, init = folder / f"{name}.py", folder / "__init__.py"
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another name")
    text = init.read_text()
    found = IMPORTS.search(text)
    if found is None:
        raise ConfigError(f"{init} has no line `from nasvit.models.mixers import ..`; restore it")
    listed = ", ".join(sorted([*found[2].split(", "), name]))
    return {target: _source(name, own_package=False), init: text[: found.start(2)] + listed + text[found.end(2):]}


def _package(name: str, folder: Path) -> dict[Path, str]:
    """The files of a package that holds the mixer and names it as an entry point."""
    package = folder.resolve().name
    module = package.replace("-", "_")
    taken = module in sys.stdlib_module_names or keyword.iskeyword(module) or find_spec(module) is not None
    if not PACKAGE_NAME.fullmatch(package) or taken:
        why = "is the name of a module that is there already" if taken else "is no name for a package"
        raise ConfigError(f"--package {str(folder)!r}: {package!r} {why}; accepted: lower-case letters, digits and hyphens, such as "
                          f"nasvit-{name.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--package {str(folder)!r} is not empty; accepted: a folder that is not there yet. To an existing package add a "
                          f'file and a line `{name} = "{module}.{name}:{_class(name)}"` under [project.entry-points."nasvit.mixers"]')
    words = {"name": name, "package": package, "module": module, "cls": _class(name)}
    return {folder / module / f"{name}.py": _source(name, own_package=True),
            folder / module / "__init__.py": f'"""The token mixer {name} for nasvit."""\n',
            folder / "pyproject.toml": PROJECT.format(**words), folder / "README.md": README.format(**words),
            folder / "tests" / f"test_{name}.py": TEST.format(**words)}


def _write(files: Mapping[Path, str]) -> None:
    """Raises StorageError where a file cannot be written."""
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_text(text)
            temporary.replace(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from None
