"""A newcomer's first hour: every command of the README and the tutorial in a fresh clone with a fresh environment, with the time each took.

    python experiments/newcomer.py --place /tmp/newcomer --markdown reports/published/newcomer.md [--skip-make] [--only tutorial]

Commands are read from the documents and run as they stand there, but for what SHORTER names (budgets, so that this ends today) and what
needs another machine, which is said. The folder of --place is made anew; with --skip-make a clone and environment there are used again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nasvit.devices.machine import cpu_model

ROOT = Path(__file__).resolve().parents[1]
SHORTER = (
    ("--space hybrid_mobile --max-latency 20ms --budget 100", "--space hybrid_tiny --max-latency 20ms --budget 12"),
    ("--budget 300", "--budget 20"), ("--budget 60", "--budget 20"), ("--epochs 30", "--epochs 5"),
    ("nasvit train reports/runs/RUN --pick knee", "nasvit train reports/runs/RUN --pick knee --epochs 3"),
    ("nasvit profile --space hybrid_tiny --device cpu", "nasvit profile --space hybrid_tiny --device cpu --minutes 1"),
)
ELSEWHERE = {"10.0.0.10": "a cluster", "user@host": "a device behind ssh", "best.safetensors": "a trained checkpoint",
             "nasvit dashboard": "stays open until it is closed"}
"""What a fresh machine has not, or what never ends, by a part of the command."""
SECTION = "## What you type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command: as it stands in the document, as it was run (None: not), how it ended and how long it took."""

    document: str
    written: str
    run: str | None
    seconds: float = 0.0
    said: str = ""


def written(document: str) -> list[str]:
    """The commands of a document in their order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if document == "README.md":
        text = text.partition(SECTION)[2].partition("\n(")[0]
        return [line.partition("#")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    return [line for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]


def shortened(command: str, *, names: dict[str, str]) -> str:
    """What is run for it."""
    for old, new in (*SHORTER, *names.items()):
        command = command.replace(old, new)
    return command


def execute(command: str, *, document: str, asked: str, place: Path, path: Path | None) -> Step:
    """Run it in the shell of somebody who has activated the environment."""
    environment = dict(os.environ) if path is None else {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    begun = time.monotonic()
    done = subprocess.run(["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    said = "works" if done.returncode == 0 else f"ends with {done.returncode}: {lines[-1][:160] if lines else ''}"
    print(f"{time.monotonic() - begun:7.1f} s  {command}: {said}", file=sys.stderr, flush=True)
    return Step(document=document, written=asked, run=command, seconds=time.monotonic() - begun, said=said)


def protocol(place: Path, *, make: bool, only: str | None) -> list[Step]:
    """All steps, in a clone of this checkout's last commit."""
    clone, steps = place / "nasvit", []
    if make:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for command in (f"git clone --quiet {ROOT} nasvit", "cd nasvit && make search"):
            steps.append(execute(command, document="README.md", asked=command.replace(str(ROOT), "URL"), place=place, path=None))
    path = clone / ".venv" / "bin"
    runs = sorted((clone / "reports" / "runs").glob("*/summary.json"))
    first = runs[0].parent if runs else clone / "reports" / "runs" / "digits"
    for document, names in (
        ("docs/tutorial.md", {}),
        ("README.md", {"reports/runs/RUN": str(first), "reports/runs/OTHER": "reports/runs/*-digits-hybrid_tiny",
                       "photo.jpg": "photos/disc/000.png"}),
    ):
        if only is not None and only not in document:
            continue
        for asked in written(document):
            why = next((reason for mark, reason in ELSEWHERE.items() if mark in asked), None)
            if why is not None:
                steps.append(Step(document=document, written=asked, run=None, said=f"not run: {why}"))
            else:
                command = shortened(asked, names={"python examples/": f"python {clone}/examples/", **names})
                steps.append(execute(command, document=document, asked=asked, place=place, path=path))
    return steps


def table(steps: list[Step]) -> str:
    """Markdown."""
    lines = ["# A newcomer's first hour", "",
             "`python experiments/newcomer.py` runs every command of the README and the tutorial in a fresh clone with a fresh",
             "environment, as it is written or, where the table says so, with a smaller budget. "
             f"Here on {cpu_model()}, {len(os.sched_getaffinity(0))} core(s).", "",
             "| from | command | run as | seconds | |", "|---|---|---|---|---|"]
    for step in steps:
        run = re.sub(r"/[^ ]*/(reports|examples)/", r"\1/", step.run or step.written)
        as_run = "" if run == step.written else f"`{run}`"
        lines.append(f"| {step.document} | `{step.written}` | {as_run} | {f'{step.seconds:.0f}' if step.run else ''} | {step.said} |")
    bad = sum(step.said.startswith("ends") for step in steps)
    return "\n".join([*lines, "", f"{sum(s.run is not None for s in steps)} commands run, {bad} failed.", ""])


def main() -> int:
    """Print the table; 1 where a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--skip-make", action="store_true")
    parser.add_argument("--only", choices=("tutorial", "README"))
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    steps = protocol(asked.place.resolve(), make=not asked.skip_make, only=asked.only)
    text = table(steps)
    print(text)
    if asked.markdown:
        asked.markdown.write_text(text, encoding="utf-8")
    return int(any(step.said.startswith("ends") for step in steps))


if __name__ == "__main__":
    sys.exit(main())
