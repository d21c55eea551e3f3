"""Own images on a laptop: from a folder of pictures to a file that deploys, in Python.

    python examples/own_images.py photos/ --max-latency 5ms     # one folder for each class
    python examples/own_images.py                               # no pictures at hand: 360 generated ones, discs, squares and triangles
    python examples/own_images.py --generate photos             # these pictures alone

The same as `nasvit search`, `nasvit train`, `nasvit export` and the predict.py it writes; see docs/tutorial.md.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

import nasvit
from nasvit import cli

CLASSES = ("disc", "square", "triangle")
EACH = 120


def draw(kind: str, *, rng: random.Random, side: int = 48) -> Image.Image:
    """One shape of any colour, size and place on a noisy ground."""
    picture = Image.effect_noise((side, side), 60).convert("RGB")
    r = rng.uniform(0.18, 0.3) * side
    x, y = rng.uniform(r, side - r), rng.uniform(r, side - r)
    colour = tuple(rng.randrange(256) for _ in range(3))
    pen = ImageDraw.Draw(picture)
    if kind == "disc":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif kind == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    return picture


def generate(folder: Path, *, each: int, seed: int) -> Path:
    """`folder`/CLASS/NUMBER.png, `each` pictures of a class."""
    rng = random.Random(seed)
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            draw(kind, rng=rng).save(folder / kind / f"{number:03d}.png")
    return folder


def run(*words: str) -> None:
    """A command of nasvit; its message has been printed where it fails."""
    if cli.main(list(words)) != 0:
        sys.exit(1)


def main(arguments: list[str] | None = None) -> str:
    """Returns what predict.py says of one picture; with --generate the folder of the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="?", type=Path, help="a folder with one folder for each class; none: generated shapes")
    parser.add_argument("--max-latency", default="5ms")
    parser.add_argument("--budget", type=int, default=60, help="architectures to evaluate")
    parser.add_argument("--epochs", type=int, default=30, help="of the full training")
    parser.add_argument("--device", default="cpu/onnxruntime", help="what will run it")
    parser.add_argument("--out", type=Path, default=Path("own_images"))
    parser.add_argument("--generate", type=Path, help="write the generated pictures into this folder, and end")
    given = parser.parse_args(arguments)
    if given.generate:
        return str(generate(given.generate, each=EACH, seed=0))
    images = given.images or generate(given.out / "shapes", each=EACH, seed=0)
    place = given.out / "run"
    run("search", "--data", str(images), "--max-latency", given.max_latency, "--budget", str(given.budget), "--device", given.device,
        "--out", str(place))
    run("train", str(place), "--pick", "knee", "--epochs", str(given.epochs))
    run("export", str(place), "--pick", "knee", "--device", given.device)

    opened = nasvit.load(place)
    print(opened.front.to_string())
    folder = place / "export" / f"{opened.arch('knee').id}-onnxruntime"
    picture = next(path for path in sorted(images.rglob("*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    said = subprocess.run([sys.executable, str(folder / "predict.py"), str(picture)], capture_output=True, text=True, check=True).stdout
    print(f"{picture}:\n{said}")
    return said


if __name__ == "__main__":
    main()
