"""Which sampler finds the front with the fewest trials? Any table, or a synthetic hierarchical space.

    python experiments/compare_samplers.py --table T.parquet --choices a,b --objectives acc:max,ms:min --known ms \\
        --samplers random,nsga2,tpe,surrogate --budget 300 --seeds 20 --reference-point auto --out DIR
    python experiments/compare_samplers.py --preset nb201-cifar100-gold --benchmarks DIR --samplers tpe,surrogate
    python experiments/compare_samplers.py --problem hierarchical:0 --samplers tpe,surrogate,surrogate:modelled

Prints the tables of docs/samplers.md; with --out also writes trials.csv (every seed and trial), other tables, a report and a figure.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: CPU time a proposal is that of one thread

import judging
import optuna
import pandas as pd
import peers
from presets import PRESETS
from tabular import load_problem

from nasvit.errors import ConfigError, NasvitError

COLOURS = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#eeca3b", "#b279a2", "#ff9da6", "#9d755d", "#8a8a8a", "#1b1b1b",
           "#00805e", "#6a3d9a")
"""Of the figure's lines: the usual ten are too few."""
COLUMNS = ("problem", "key", "sampler", "version", "seed", "trial", "config", "values", "hv", "hv_full", "cpu_ms")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--table", help=".parquet or .csv: one row a configuration")
    made.add_argument("--choices", default="", help="col[:ordinal],...: the search space")
    made.add_argument("--objectives", default="", help="col:max,col:min,...")
    made.add_argument("--known", default="", help="objectives that need no trial: told to nasvit's sampler beforehand")
    made.add_argument("--samplers", default="random,nsga2,tpe,surrogate", help="of: " + ", ".join(peers.peers()))
    made.add_argument("--budget", type=int, default=300, help="trials a search")
    made.add_argument("--seeds", type=int, default=20, help="searches a sampler, seeds 0, 1, ...")
    made.add_argument("--slow-seeds", type=int, default=5, help="the same for samplers that take about a second a proposal")
    made.add_argument("--reference-point", default="auto", help="auto: 1.1 of the true front's box; or a value for each objective")
    made.add_argument("--out", type=Path, help="folder for trials.csv, summary.csv, tests.csv, reach.csv, report.md, figure.png")
    made.add_argument("--exclude", help="true/false column: rows that are on no front (default: `disconnected` if there is one); none")
    made.add_argument("--when", action="append", default=[], metavar="CHOICE:PARENT=V|V", help="asked only where the parent has this value")
    made.add_argument("--join", metavar="FILE:COLUMN", help="a second table, joined on a column")
    made.add_argument("--missing", choices=("error", "drop"), default="error")
    made.add_argument("--duplicates", choices=("error", "mean", "first"), default="error")
    made.add_argument("--problem", help="hierarchical:SEED, instead of a table")
    made.add_argument("--preset", help="of: " + ", ".join(PRESETS))
    made.add_argument("--benchmarks", type=Path, default=Path("../shared/benchmarks"), help="where a preset's table lies")
    made.add_argument("--ours", help="the sampler that is tested against the others (default: the first surrogate, else the first)")
    made.add_argument("--reuse", action="append", default=[], type=Path, metavar="CSV", help="trials.csv of an earlier run")
    made.add_argument("--again", default="", help="samplers to run anew whatever --reuse holds")
    made.add_argument("--no-run", action="store_true", help="only tables and figure of what --reuse holds; the rest is named as not run")
    made.add_argument("--jobs", type=int, default=1, help="searches at a time")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        compare(args)
    except NasvitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def compare(args: argparse.Namespace) -> None:
    """The whole comparison: problem, searches, tables."""
    if min(args.budget, args.seeds, args.slow_seeds, args.jobs) < 1:
        raise ConfigError("--budget, --seeds, --slow-seeds and --jobs must be at least 1")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise ConfigError(f"--out {args.out} is a file; say a folder")
    build = problem_maker(args)
    problem = build()
    chosen = peers.choose(_split(args.samplers))
    done = reusable(args.reuse, key=problem.key, budget=args.budget, again=_split(args.again))
    wanted, missing = plan(args, chosen, problem, done=done)
    ready = list(dict.fromkeys(name for name, _ in wanted))
    if not ready:
        raise ConfigError("none of the samplers can run here: " + "; ".join(missing.values()))
    ours = args.ours or next((name for name in ready if name.startswith("surrogate")), ready[0])
    if ours not in ready:
        raise ConfigError(f"--ours {ours} is not among the samplers that run: {', '.join(ready)}")
    runs = searches(build, wanted, done=done, budget=args.budget, jobs=args.jobs, path=args.out / "trials.csv" if args.out else None)
    text, tables = report(problem, runs, ours=ours, budget=args.budget, missing=missing,
                          settings={name: (chosen[name].what, runs[runs["sampler"] == name]["version"].iloc[0]) for name in ready})
    print(text)
    if args.out:
        (args.out / "report.md").write_text(text + "\n", encoding="utf-8")
        for name, table in tables.items():
            table.to_csv(args.out / f"{name}.csv", index=False)
        draw(runs, problem, path=args.out / "figure.png")


def plan(args: argparse.Namespace, chosen: dict[str, peers.Peer], problem: Any, *,
         done: dict[tuple[str, int], pd.DataFrame]) -> tuple[list[tuple[str, int]], dict[str, str]]:
    """The (sampler, seed) to compare, and why each of the other samplers is missing."""
    counts = {name: min(args.seeds, args.slow_seeds) if peer.slow else args.seeds for name, peer in chosen.items()}
    wanted = [(name, seed) for name, count in counts.items() for seed in range(count)]
    if args.no_run:
        held = [run for run in wanted if run in done]
        there = {name for name, _ in held}
        return held, {name: f"{name}: no search of it in the files that --reuse names" for name in chosen if name not in there}
    missing = {name: why for name, peer in chosen.items() if (why := peers.unavailable(name, peer, problem)) is not None}
    return [run for run in wanted if run[0] not in missing], missing


def problem_maker(args: argparse.Namespace) -> Callable[[], Any]:
    """Makes the problem that the command line names; picklable, for workers."""
    if sum(bool(x) for x in (args.table, args.problem, args.preset)) != 1:
        raise ConfigError("say one of --table, --problem and --preset")
    if args.problem:
        return _Maker("hierarchical", args.problem)
    if args.preset:
        if args.preset not in PRESETS:
            raise ConfigError(f"--preset: {peers.unknown('preset', args.preset, list(PRESETS))}")
        preset = dict(PRESETS[args.preset])
        return _Maker("table", args.benchmarks / preset.pop("table"), {"name": args.preset, **preset})
    if not args.choices or not args.objectives:
        raise ConfigError("--table needs --choices and --objectives")
    objectives = _split(args.objectives)
    reference = None if args.reference_point == "auto" else _reference(args.reference_point, len(objectives))
    return _Maker("table", args.table, {
        "choices": _split(args.choices), "objectives": objectives, "known": _split(args.known), "exclude": args.exclude,
        "when": args.when, "join": args.join, "missing": args.missing, "duplicates": args.duplicates, "reference": reference})


class _Maker:
    def __init__(self, kind: str, what: Any, options: dict[str, Any] | None = None) -> None:
        self.kind, self.what, self.options = kind, what, options or {}

    def __call__(self) -> Any:
        if self.kind == "table":
            return load_problem(self.what, **self.options)
        from hierarchical import load_hierarchical

        return load_hierarchical(self.what)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _reference(text: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in _split(text)]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ConfigError(f"--reference-point {text!r}: say auto, or one number for each of the {count} objectives")
    return values


# ---- searching --------------------------------------------------------------------------------------------------------


def search(problem: Any, name: str, *, seed: int, budget: int) -> pd.DataFrame:
    """One search, judged: a row for each trial, in COLUMNS."""
    peers.python_seed(seed)
    peer = peers.peers()[name]
    outcomes, times = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' notes on experimental parts, once a proposal
        searcher = peer.make(problem, seed)
        for _ in range(budget):
            clock = time.process_time()
            params = searcher.ask()
            asked = time.process_time() - clock
            outcome = problem.evaluate(params, seed=seed)
            clock = time.process_time()
            searcher.tell(params, outcome.observed)
            times.append(1e3 * (asked + time.process_time() - clock))
            outcomes.append(outcome)
    shares, full = judging.curves(problem.goal, outcomes)
    signs = [o.sign for o in problem.objectives]
    return pd.DataFrame({
        "problem": problem.name, "key": problem.key, "sampler": name, "version": peers.versions(peer), "seed": seed,
        "trial": range(1, budget + 1), "config": [o.id for o in outcomes],
        "values": [";".join(f"{v * s:.8g}" for v, s in zip(o.true, signs, strict=True)) for o in outcomes],
        "hv": shares.round(6), "hv_full": full.round(6), "cpu_ms": pd.Series(times).round(3)}, columns=list(COLUMNS))


def searches(build: Callable[[], Any], wanted: Sequence[tuple[str, int]], *, done: dict[tuple[str, int], pd.DataFrame], budget: int,
             jobs: int, path: Path | None) -> pd.DataFrame:
    """Every wanted (sampler, seed), from `done` or run now; each is appended to the file as it ends."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(COLUMNS)
    found: dict[tuple[str, int], pd.DataFrame] = {}

    def take(run: tuple[str, int], table: pd.DataFrame) -> None:
        found[run] = table
        if path is not None:
            table.to_csv(path, mode="a", header=False, index=False)

    for run in (r for r in wanted if r in done):
        take(run, done[run])
    todo = [run for run in wanted if run not in done]
    if jobs == 1:
        problem = build()
        for name, seed in todo:
            take((name, seed), search(problem, name, seed=seed, budget=budget))
            _progress(name, seed, found[(name, seed)], budget)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            for run, future in [(run, pool.submit(_search, build, *run, budget)) for run in todo]:
                take(run, future.result())
                _progress(*run, found[run], budget)
    return pd.concat([found[run] for run in wanted], ignore_index=True)


def _search(build: Callable[[], Any], name: str, seed: int, budget: int) -> pd.DataFrame:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return search(build(), name, seed=seed, budget=budget)


def _progress(name: str, seed: int, table: pd.DataFrame, budget: int) -> None:
    shown = " / ".join(f"{table['hv'].iloc[t - 1]:.3f}" for t in judging.checkpoints(budget))
    print(f"{name} seed {seed}: {shown}, {table['cpu_ms'].mean():.0f} CPU-ms a proposal", file=sys.stderr, flush=True)


def reusable(paths: Sequence[Path], *, key: str, budget: int, again: Sequence[str]) -> dict[tuple[str, int], pd.DataFrame]:
    """Earlier searches of the same problem with at least as many trials, cut to the budget."""
    found: dict[tuple[str, int], pd.DataFrame] = {}
    for path in paths:
        if not path.exists():
            raise ConfigError(f"--reuse: no file {path}")
        table = pd.read_csv(path, dtype={"config": str, "key": str, "values": str})
        strange = set(COLUMNS) - set(table.columns)
        if strange:
            raise ConfigError(f"--reuse {path}: not a trials.csv of this driver; it lacks {', '.join(sorted(strange))}")
        for _, rows in table[(table["key"] == key) & ~table["sampler"].isin(again)].groupby(["sampler", "seed"], sort=False):
            rows = rows.drop_duplicates("trial", keep="last")
            if len(rows) >= budget:
                run = (str(rows["sampler"].iloc[0]), int(rows["seed"].iloc[0]))
                found[run] = rows[rows["trial"] <= budget][list(COLUMNS)]
    return found


# ---- telling ----------------------------------------------------------------------------------------------------------


def report(problem: Any, runs: pd.DataFrame, *, ours: str, budget: int, missing: dict[str, str],
           settings: dict[str, tuple[str, str]]) -> tuple[str, dict[str, pd.DataFrame]]:
    """The text of a comparison, and its tables by name."""
    at = judging.checkpoints(budget)
    summary = judging.summary(runs, budget=budget)
    reach = judging.trials_to_reach(runs, budget=budget)
    tests = judging.comparisons(runs, ours=ours, at=[t for t in at if t != 200])
    shown = pd.DataFrame({"sampler": summary["sampler"], "seeds": summary["seeds"]})
    for t in at:
        shown[f"HV@{t} (sd)"] = [f"{m:.3f} ({s:.3f})" for m, s in zip(summary[f"hv@{t}"], summary[f"sd@{t}"], strict=True)]
    shown["full-range HV"] = [" / ".join(f"{row[f'full@{t}']:.3f}" for t in at) for _, row in summary.iterrows()]
    shown["CPU-ms a proposal (last tenth)"] = [f"{a:.1f} ({b:.1f})" for a, b in zip(summary["cpu_ms"], summary["cpu_ms_last"], strict=True)]
    shown["distinct"] = summary["distinct"].map("{:.0f}".format)
    order = list(summary["sampler"])
    goals = ", ".join(f"{o.name} ({'max' if o.maximise else 'min'})" for o in problem.objectives)
    known = ", ".join(problem.objectives[j].name for j in problem.known) or "none"
    lines = [f"## {problem.name}", "", f"Objectives: {goals}; known beforehand to nasvit's sampler: {known}. Key {problem.key}.",
             "; ".join(problem.notes) + ".", "", f"Hypervolume as a share of the true front's, mean (sd) over seeds, {budget} trials:", "",
             judging.as_markdown(shown, formats={}), "", f"Trials after which a row's mean curve has the column's value at {budget}:", "",
             judging.as_markdown(reach.loc[order, order].rename_axis("sampler").reset_index(), formats=dict.fromkeys(order, ".0f"))]
    if len(tests):
        lines += ["", f"{ours} against each peer: two-sided Wilcoxon signed-rank tests, paired by seed, Holm-corrected over these "
                  f"{len(tests)} (five pairs cannot reach 0.05):", "",
                  judging.as_markdown(tests, formats={"difference": "+.4f", "p": ".2g", "p_holm": ".2g"})]
    lines += ["", "Samplers: " + "; ".join(f"{name}: {what} ({version})" for name, (what, version) in settings.items()) + "."]
    lines += ["", *(f"NOT RUN {why}" for why in missing.values())] if missing else []
    return "\n".join(lines), {"summary": summary, "tests": tests, "reach": reach.reset_index()}


def draw(runs: pd.DataFrame, problem: Any, *, path: Path) -> None:
    """Mean curves with bands of one standard error."""
    import altair as alt

    alt.data_transformers.disable_max_rows()
    curve = runs.groupby(["sampler", "trial"], sort=False)["hv"].agg(["mean", "sem"]).reset_index()
    curve = curve[(curve["trial"] % 5 == 0) | (curve["trial"] < 20)].fillna(0.0)
    curve["low"], curve["high"] = curve["mean"] - curve["sem"], curve["mean"] + curve["sem"]
    low = float(curve[curve["trial"] >= 20]["low"].min()) if (curve["trial"] >= 20).any() else 0.0
    scale = alt.Scale(domain=[max(0.0, low - 0.02), max(1.0, float(curve["high"].max()))], clamp=True, nice=False)
    names = list(curve[curve["trial"] == curve["trial"].max()].sort_values("mean", ascending=False)["sampler"])  # as the lines end
    legend = alt.Legend(symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2)
    colour = alt.Color("sampler:N", sort=names, legend=legend, scale=alt.Scale(range=COLOURS))
    base = alt.Chart(curve, title=problem.name).encode(x=alt.X("trial:Q", title="trials"), color=colour)
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    line = base.mark_line().encode(y=alt.Y("mean:Q", scale=scale, title="hypervolume, share of the true front's"),
                                   strokeDash=alt.StrokeDash("sampler:N", sort=names, legend=None))
    (band + line).properties(width=640, height=380).save(str(path), ppi=144)


if __name__ == "__main__":
    sys.exit(main())
