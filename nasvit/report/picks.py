"""Picks: from a word on the command line to records of a run."""

from __future__ import annotations

from nasvit.errors import ConfigError
from nasvit.experiment import parse_limit
from nasvit.report.tables import Run
from nasvit.results.record import TrialRecord, latest

ACCEPTED = "knee, best, all, max-latency:8ms, trial:12, an arch id or its first four digits, or several with commas"
_LEAST = 4  # digits of an arch id


def pick(run: Run, what: str) -> list[TrialRecord]:
    """The complete records meant by `what`, each network once: see ACCEPTED. `all` is the front.

    Raises ConfigError for a word that means nothing in this run, RunError where no network is within the limit.
    """
    chosen: dict[str, TrialRecord] = {}
    for word in what.split(","):
        for record in _one(run, word.strip()):
            chosen.setdefault(record.arch_id, record)
    return list(chosen.values())


def _one(run: Run, word: str) -> list[TrialRecord]:
    done = {trial: record for trial, record in latest(run.records).items() if record.status == "complete"}
    if not done:
        raise ConfigError(f"{run.path} has no complete trial to pick from; let the search go on")
    if word == "best":
        return [run.best()]
    if word.startswith("max-latency:"):
        name, limit = parse_limit(word.partition(":")[2])
        return [run.best(max_latency_ms=limit, device=name.partition("@")[2])]
    if word in ("knee", "all"):
        rows = run.front if word == "all" else run.front[run.front["knee"]]
        return [done[trial] for trial in rows["trial"]]
    if word.startswith("trial:") and word[6:].isdigit() and int(word[6:]) in done:
        return [done[int(word[6:])]]
    near = [record for record in done.values() if len(word) >= _LEAST and record.arch_id.startswith(word)]
    if len({record.arch_id for record in near}) == 1:
        return near[:1]
    hint = f"; {len(near)} networks begin so" if near else ""
    raise ConfigError(f"{run.path}: nothing is meant by the pick {word!r}{hint}; accepted: {ACCEPTED}")
