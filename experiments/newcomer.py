"""A newcomer's first hours: every command of the README and the tutorial in a fresh clone and environment, with the time each took.

    python experiments/newcomer.py --place /tmp/newcomer --markdown reports/published/newcomer.md [--skip-make] [--only tutorial]

Commands are read from the documents and run as they stand there, but for what SHORTER names (budgets, so that this ends today).
What a reader has and a fresh machine has not is made here, and is real: the device behind ssh is an sshd on 127.0.0.1, the cluster
a Ray head there that wants a token, the trained checkpoint a short training. The folder of --place is made anew; with --skip-make a
clone and environment there are used again, with the times that making them took.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from loopback_ssh import ssh_server
from scaling import Cluster

from nasvit.devices.machine import cpu_model

ROOT = Path(__file__).resolve().parents[1]
SHORTER = (
    ("--space hybrid_mobile --max-latency 20ms --budget 100", "--space hybrid_mobile --max-latency 20ms --budget 6"),
    ("--budget 300", "--budget 20"), ("--budget 60", "--budget 20"), ("--epochs 30", "--epochs 5"),
    ("nasvit train reports/runs/RUN --pick knee", "nasvit train reports/runs/RUN --pick knee --epochs 3"),
    ("--data photos/ --max-latency 0.6x", "--data photos/ --max-latency 0.6x --budget 12"),
    ("--workers 16 --out reports/runs/RUN", "--workers 2 --budget 8 --out reports/runs/on_a_cluster"),
    ("nasvit profile --space hybrid_tiny --device cpu", "nasvit profile --space hybrid_tiny --device cpu --minutes 1"),
)
SECTIONS = ("## Two commands", "## What you type", "## Installing by hand")
"""Those of the README that hold commands, in its order."""
CHECKPOINT = "nasvit train --model timm:deit_small_patch16_224 --data photos/ --epochs 5 --out trained"
"""What has to be run before the README's pruning can be: its user has a trained network."""
FETCH = """python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8080')" 2> seen"""
OPENED = f"nasvit dashboard RUN & for i in $(seq 60); do sleep 1; {FETCH} && break; done; seen=$?; kill $!; exit $seen"
"""A dashboard stays open until it is closed: its page is fetched, then it is closed."""
SET_UP = ("make ", "python3 -m venv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command: as it stands in the document, as it was run, how long it took and how it ended."""

    document: str
    written: str
    run: str
    seconds: float
    said: str


def written(document: str) -> list[str]:
    """The commands of a document in their order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if document == "README.md":
        parts = [text.partition(name)[2].partition("\n## ")[0] for name in SECTIONS]
        return [line.partition("#")[0].strip() for part in parts for line in part.splitlines() if line.startswith("    ")]
    return [line for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]


def shortened(command: str, *, names: Mapping[str, str]) -> str:
    """What is run for it."""
    for old, new in (*SHORTER, *names.items()):
        command = command.replace(old, new)
    return command


class Newcomer:
    """Somebody at a shell in `place`, whose home is a folder of its own, so that this user's files are kept out of it and as they are."""

    def __init__(self, place: Path) -> None:
        self.place, self.clone = place, place / "nasvit"
        self.home, self.python = place / "home", str(self.clone / ".venv" / "bin" / "python")
        self.steps: list[Step] = []
        self.plain = {**os.environ, "HOME": str(self.home)}
        self.activated = {**self.plain, "PATH": f"{self.clone / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def types(self, asked: str, *, document: str, command: str | None = None, at: Path | None = None, activated: bool = True) -> None:
        """Run `command`, or what is asked as it stands, and keep how it went."""
        command, begun = command or asked, time.monotonic()
        environment = self.activated if activated else self.plain
        done = subprocess.run(["bash", "-c", command], cwd=at or self.place, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = "works" if done.returncode == 0 else f"ends with {done.returncode}: {lines[-1][:160] if lines else ''}"
        step = Step(document=document, written=asked, run=command, seconds=time.monotonic() - begun, said=said)
        print(f"{step.seconds:7.1f} s  {command}: {said}", file=sys.stderr, flush=True)
        self.steps.append(step)

    def sets_up(self, asked: str, *, document: str) -> None:
        """What makes an environment: `make ..` in the clone, by hand in another one."""
        at = self.clone if asked.startswith("make ") else self.place / "by_hand"
        if not at.exists():
            clone = f"git clone --quiet {ROOT} {at.name}"
            self.types(clone.replace(str(ROOT), "URL"), document=document, command=clone, activated=False)
        self.types(asked, document=document, at=at, activated=False)

    def uses(self, asked: str, *, document: str, surroundings: ExitStack) -> None:
        """A command of nasvit, with what it needs made before."""
        runs = sorted((self.clone / "reports" / "runs").glob("*/summary.json"))
        names = {"reports/runs/RUN": str(runs[0].parent) if runs else "reports/runs/RUN",
                 "reports/runs/OTHER": "reports/runs/*-digits-hybrid_tiny", "photo.jpg": "photos/disc/000.png",
                 "python examples/": f"python {self.clone}/examples/"}
        if "best.safetensors" in asked:
            self.types(CHECKPOINT, document="(before it)")
            names["best.safetensors"] = next((str(file) for file in self.place.glob("trained/**/model.safetensors")), "best.safetensors")
        if "ssh://user@host/onnxruntime" in asked:
            target = surroundings.enter_context(ssh_server(self.place / "sshd", python=self.python)).spec
            names["ssh://user@host/onnxruntime"] = f"'{target}' && nasvit devices check pi"
        if "--ray-address" in asked:
            head = surroundings.enter_context(Cluster(cpus=2, python=self.python))
            head.add()
            self.activated |= head.environment
            names["10.0.0.10:6379"] = head.address
        if "nasvit show" in asked:  # a run with a network that selects tokens: the tutorial's
            names["reports/runs/RUN"] = "run"
        command = OPENED.replace("RUN", names["reports/runs/RUN"]) if "nasvit dashboard" in asked else shortened(asked, names=names)
        self.types(asked, document=document, command=command)


def protocol(place: Path, *, make: bool, only: str | None) -> list[Step]:
    """All steps, in a clone of this checkout's last commit: what makes the environment, the tutorial, the README."""
    newcomer, set_up = Newcomer(place), place / "set_up.json"
    if make:
        shutil.rmtree(place, ignore_errors=True)
        newcomer.home.mkdir(parents=True)
        for asked in written("README.md"):
            if asked.startswith(SET_UP):
                newcomer.sets_up(asked, document="README.md")
        set_up.write_text(json.dumps([asdict(step) for step in newcomer.steps]), encoding="utf-8")
    elif set_up.exists():
        newcomer.steps = [Step(**step) for step in json.loads(set_up.read_text(encoding="utf-8"))]
    with ExitStack() as surroundings:
        for document in ("docs/tutorial.md", "README.md"):
            if only is None or only in document:
                for asked in written(document):
                    if not asked.startswith(SET_UP):
                        newcomer.uses(asked, document=document, surroundings=surroundings)
    return newcomer.steps


def table(steps: list[Step], *, place: Path) -> str:
    """Markdown."""
    lines = ["# A newcomer's first hours", "",
             "`python experiments/newcomer.py --place FOLDER` runs every command of the README and the tutorial in a fresh clone and",
             "environment, as it is written or, where the table says so, with a smaller budget or what stands for another machine. "
             f"Here on {cpu_model()}, {len(os.sched_getaffinity(0))} core(s); wall seconds.", "",
             "| from | command | run as | seconds | |", "|---|---|---|---|---|"]
    for step in steps:
        run = step.run.replace(f"{place}/nasvit/", "").replace(f"{place}/", "").replace(str(ROOT), "URL")
        as_run = "" if run == step.written else f"`{run}`"
        lines.append(f"| {step.document} | `{step.written}` | {as_run} | {step.seconds:.0f} | {step.said} |")
    bad = sum(step.said != "works" for step in steps)
    return "\n".join([*lines, "", f"{len(steps)} commands run, {bad} failed, {sum(step.seconds for step in steps) / 60:.0f} minutes.", ""])


def main() -> int:
    """Print the table; 1 where a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--skip-make", action="store_true")
    parser.add_argument("--only", choices=("tutorial", "README"))
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    steps = protocol(asked.place.resolve(), make=not asked.skip_make, only=asked.only)
    text = table(steps, place=asked.place.resolve())
    print(text)
    if asked.markdown:
        asked.markdown.write_text(text, encoding="utf-8")
    return int(any(step.said != "works" for step in steps))


if __name__ == "__main__":
    sys.exit(main())
