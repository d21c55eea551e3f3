"""One report of several comparisons: which goals are met, then every table.

    python experiments/sampler_report.py reports/runs/samplers/* --markdown reports/published/samplers.md

Each folder is the --out of one `compare_samplers.py`. The goals: at 100 trials at least the best peer's value at 300 (of the peers' means),
at 300 at least 0.99 of a table's true front, and at no count significantly below any peer.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from judging import SIGNIFICANT, as_markdown

from nasvit.errors import ConfigError, NasvitError

EARLY, LATE, WHOLE = 100, 300, 0.99
COMMAND = "python experiments/compare_samplers.py --preset NAME --samplers .. --seeds 20 --out reports/runs/samplers/NAME"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--ours", default="surrogate")
    parser.add_argument("--note", action="append", default=[], help="a remark under the goals; repeatable")
    parser.add_argument("--markdown", type=Path, help="write it here instead of printing it")
    args = parser.parse_args(argv)
    try:
        text = compose(args.folders, ours=args.ours, notes=args.note, figures=args.markdown.parent if args.markdown else None)
    except NasvitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


def compose(folders: Sequence[Path], *, ours: str, notes: Sequence[str] = (), figures: Path | None = None) -> str:
    """The whole report. figures: a folder that each comparison's figure is copied to, and shown from."""
    rows, parts = [], []
    for folder in folders:
        names = ("summary.csv", "tests.csv", "report.md")
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise ConfigError(f"{folder} lacks {', '.join(missing)}: name the --out of a finished compare_samplers.py")
        text = (folder / "report.md").read_text(encoding="utf-8").strip()
        rows.append(goals(text.splitlines()[0].removeprefix("## "), pd.read_csv(folder / "summary.csv"), pd.read_csv(folder / "tests.csv"),
                          ours=ours))
        parts.append(text if figures is None else _with_figure(text, folder=folder, to=figures))
    head = ["# Samplers against each other", "", f"Made by `{COMMAND}`",
            "for each problem (synthetic ones by `--problem hierarchical:SEED`), then",
            "`python experiments/sampler_report.py reports/runs/samplers/* --markdown reports/published/samplers.md`.",
            "What the figures mean, and what each sampler is: [docs/samplers.md](../../docs/samplers.md).", "",
            "## Goals", "", f"Of `{ours}`: at {EARLY} trials at least what the best peer has at {LATE}; at {LATE} at least {WHOLE}; never "
            "significantly below a peer. Best peer: the highest mean, which over few seeds favours the peers.", "",
            as_markdown(pd.DataFrame(rows), formats={}), "", *(f"- {note}" for note in notes)]
    return "\n".join([*head, "", *("\n".join([part, ""]) for part in parts)])


def goals(problem: str, summary: pd.DataFrame, tests: pd.DataFrame, *, ours: str) -> dict[str, str]:
    """One row: the goals of a problem, with the figures."""
    table = summary.set_index("sampler")
    peers = table[[not str(name).startswith("surrogate") for name in table.index]]
    if not len(peers):
        raise ConfigError(f"{problem}: no peer beside {ours}")
    best = str(peers[f"hv@{LATE}"].idxmax())
    theirs = peers.loc[best]
    first = {"problem": problem, "seeds": "0", f"best peer at {LATE}": f"{best} {theirs[f'hv@{LATE}']:.3f}"}
    if ours not in table.index:
        return first | dict.fromkeys((f"{ours} at {EARLY}", f"{ours} at {LATE}", "significantly below", "significantly above"), "not run")
    mine = table.loc[ours]
    rivals = tests[~tests["peer"].str.startswith("surrogate")]
    below, above = rivals[rivals["verdict"] == "below"], rivals[rivals["verdict"] == "above"]
    can_tell = 2 * 0.5 ** int(tests["pairs"].max()) * len(tests) < SIGNIFICANT  # the smallest p that so many pairs can give, corrected
    none = "none: met" if can_tell else "too few seeds to tell"
    whole = "" if problem.startswith("hierarchical") else " " + _met(mine[f"hv@{LATE}"] >= WHOLE)  # its true front is not known
    return first | {
        "seeds": f"{mine['seeds']:.0f}",
        f"{ours} at {EARLY}": f"{mine[f'hv@{EARLY}']:.3f} {_met(mine[f'hv@{EARLY}'] >= theirs[f'hv@{LATE}'])}",
        f"{ours} at {LATE}": f"{mine[f'hv@{LATE}']:.3f}{whole}",
        "significantly below": ", ".join(f"{r.peer}@{r.trials}" for r in below.itertuples()) or none,
        "significantly above": f"{len(above)} of {len(rivals)}"}


def _with_figure(text: str, *, folder: Path, to: Path) -> str:
    """The report of a folder with its figure, where there is one, under the title."""
    if not (folder / "figure.png").exists():
        return text
    title, _, rest = text.partition("\n")
    name = f"samplers_{re.sub('[^a-z0-9]+', '_', title.removeprefix('## ').lower())}.png"
    shutil.copyfile(folder / "figure.png", to / name)
    return f"{title}\n\n![hypervolume over trials]({name})\n{rest}"


def _met(yes: Any) -> str:
    return "(met)" if yes else "(missed)"


if __name__ == "__main__":
    sys.exit(main())
