"""Every goal of pruning in one report: runs the parts that are asked for, and writes what all parts have printed so far.

    python experiments/prune_bench.py --work DIR [--only models speed ...] [--minutes 20] [--out reports/published/pruning.md]

A part is a script beside this one; what it prints is kept in DIR/PART.md, so that parts can be run on different days and one of
them again. `--only` without names writes the report alone. speed, tokens, targets and trials want a quiet machine; models, targets and
quality go on where they stopped.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SPEED = ("experiments/prune_speed.py", "--pairs", "12")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One section. commands: arguments of python; WORK stands for the folder, MINUTES for the time it may begin new work in."""

    title: str
    goal: str
    commands: tuple[tuple[str, ...], ...]


PRUNED = ("mlp and heads", "merge in 3", "topk_fuse in 3", "topk_fuse, mlp")
PARTS = {
    "models": Part(
        title="Models that can be pruned",
        goal="of 60 named timm models at ratios 0.3 and 0.5 at least 57 prune, run forward and backward, and export; the rest are refused "
             "by name; none is left broken",
        commands=(("experiments/prune_models.py", "--out", "WORK/models.jsonl", "--resume", "--minutes", "MINUTES"),
                  ("experiments/prune_rival.py", "--shallow"))),
    "speed": Part(
        title="Speed at half of the multiply-adds",
        goal="one thread: DeiT-S at least 1.85x (batch 1) and 2.0x (batch 8), DeiT-T at least 1.75x, Swin-T at least 2.1x",
        commands=((*SPEED, "--model", "deit_small_patch16_224", "--only", *PRUNED),
                  (*SPEED, "--model", "deit_tiny_patch16_224", "--only", *PRUNED, "two thirds"),
                  (*SPEED, "--model", "swin_tiny_patch4_window7_224", "--only", "mlp and heads", "uniform", "depth"))),
    "tokens": Part(
        title="Speed of tokens alone, at the multiply-adds of ToMe with r = 13",
        goal="DeiT-S: torch at least 1.55x (batch 1) and 1.75x (batch 8), ONNX Runtime at least 1.75x and 1.65x",
        commands=((*SPEED, "--share", "0.586", "--onnx", "--only", "merge in", "topk_fuse in"),)),
    "targets": Part(
        title="Latency targets",
        goal="the final model, measured again, takes 0.90 to 1.00 of its target in at least 38 of 40 runs",
        commands=(("experiments/prune_targets.py", "--out", "WORK/targets.jsonl", "--minutes", "MINUTES"),)),
    "quality": Part(
        title="Search against uniform schedules, and what recovers",
        goal="better than the best uniform schedule at equal latency on at least 3 of 4 (5 seeds, one-sided p < 0.05); at 0.6x latency at "
             "least 98 % of the dense accuracy within 10 % of the dense steps",
        commands=(("experiments/prune_dense.py", "--out", "WORK/dense"),
                  ("experiments/prune_quality.py", "--dense", "WORK/dense", "--out", "WORK/quality.jsonl", "--minutes", "MINUTES"))),
    "trials": Part(
        title="Time of a trial",
        goal="without recovery at most 20 s for DeiT-S and 5 s for DeiT-T; a run of 60 at most 30 minutes",
        commands=(("experiments/prune_trial_time.py",),)),
    "siblings": Part(title="The sibling verdict", goal="right on 20 planted cases", commands=(("experiments/prune_siblings.py",),))}


def run(name: str, work: Path, *, minutes: float) -> None:
    """Run a part; its section replaces the one before once all commands ended well."""
    lines = []
    for command in PARTS[name].commands:
        words = [word.replace("WORK", str(work)).replace("MINUTES", f"{minutes:g}") for word in command]
        done = subprocess.run([sys.executable, *words], cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)})
        print(done.stdout, flush=True)
        if done.returncode:
            raise SystemExit(f"{name}: {' '.join(words)} ended with {done.returncode}; its section stays as it was")
        shown = " ".join(f"'{word}'" if " " in word else word for word in command).replace("WORK", "DIR").replace("MINUTES", "20")
        lines += [f"`python {shown}`", "", done.stdout.strip(), ""]
    when = datetime.date.today().isoformat()
    (work / f"{name}.md").write_text("\n".join([*lines, f"({when}, {platform.processor() or platform.machine()}, one thread)", ""]))


def report(work: Path) -> str:
    """All sections that there are."""
    lines = ["# Pruning", "", "Made by `python experiments/prune_bench.py --work DIR`; every section says by which command, and each can "
             "be made again by itself (`--only`). What is promised stands in [docs/pruning.md](../../docs/pruning.md).", ""]
    for name, part in PARTS.items():
        path = work / f"{name}.md"
        text = path.read_text().strip() if path.exists() else "Not run."
        lines += [f"## {part.title}", "", f"Goal: {part.goal}.", "", text, ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=1e9, help="of each part that goes on where it stopped")
    parser.add_argument("--out", type=Path, default=Path("reports/published/pruning.md"))
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        run(name, work, minutes=given.minutes)
    given.out.write_text(report(work), encoding="utf-8")


if __name__ == "__main__":
    main()
