"""A search problem out of a table: any choice of its columns has the values of its row.

Inside, every objective is minimised (the sign is turned once, here). A table that does not hold every configuration is completed: a
configuration that it lacks has the values of the nearest row, so every searcher meets the same function.

Legend: n rows, c choices, m objectives; codes (n, c) int, the rank of each value among its column's, -1 where the choice is not asked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from judging import Goal, Objective, Outcome
from numpy.typing import NDArray

from nasvit.errors import ConfigError
from nasvit.registry import unknown
from nasvit.results.front import non_dominated
from nasvit.search.domain import Domain, LearnedDomain

Params = Mapping[str, Any]
MAXIMISE, MINIMISE = ("max", "maximize"), ("min", "minimize")
MISSING = ("", "nan", "NaN", "-nan", "-NaN", "NA", "N/A", "n/a", "<NA>", "#N/A", "null", "NULL")
"""What a cell of a .csv file says where it says nothing: pandas' list, but for None, which is an operation's name."""
INVALID = "disconnected"
"""A column of this name marks the rows that are no networks, unless --exclude says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A parameter: its values in order, whether the order means anything, and where it is asked (parent, its values)."""

    name: str
    values: tuple[Any, ...]
    ordinal: bool = False
    parent: str | None = None
    on: frozenset[Any] = frozenset()

    def suggest(self, trial: Any) -> Any:
        """Ask an Optuna trial for a value; an ordinal is asked by rank."""
        if self.ordinal:
            return self.values[trial.suggest_int(self.name, 0, len(self.values) - 1)]
        return trial.suggest_categorical(self.name, list(self.values))


@dataclass(frozen=True, kw_only=True)
class TableProblem:
    """See the file's top. values: (n, m) minimised; invalid: (n,) rows that are on no front; known: objectives computable beforehand."""

    name: str
    choices: tuple[Choice, ...]
    objectives: tuple[Objective, ...]
    known: tuple[int, ...]
    codes: NDArray[np.int64]
    values: NDArray[np.float64]
    invalid: NDArray[np.bool_]
    goal: Goal
    notes: tuple[str, ...] = ()
    _rows: dict[tuple[int, ...], int] = field(repr=False, default_factory=dict)

    @cached_property
    def key(self) -> str:
        """12 hex of everything that the figures depend on: results are reused only under the same key."""
        digest = hashlib.sha256(repr((self.choices, self.objectives, self.known, self.goal.key)).encode())
        for array in (self.codes, self.values, self.invalid):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    @cached_property
    def complete(self) -> bool:
        """Whether every configuration has a row of its own."""
        return len(self.codes) == size(self.choices)

    @cached_property
    def ordered(self) -> tuple[Choice, ...]:
        """Parents before children."""
        return tuple(sorted(self.choices, key=lambda c: _depth(c, {d.name: d for d in self.choices})))

    def suggest(self, trial: Any) -> Params:
        """Ask an Optuna trial for every choice that is there."""
        found: dict[str, Any] = {}
        for choice in self.ordered:
            if choice.parent is None or found.get(choice.parent) in choice.on:
                found[choice.name] = choice.suggest(trial)
        return found

    def row(self, params: Params) -> int:
        """The row of a configuration, or the nearest: differing categories count 1, ranks by their distance; the first of equals."""
        code = tuple(c.values.index(params[c.name]) if c.name in params else -1 for c in self.choices)
        if code not in self._rows:
            gaps = np.abs(self.codes - np.array(code))
            steps = np.array([1 / max(len(c.values) - 1, 1) if c.ordinal else np.inf for c in self.choices])
            absent = (self.codes < 0) != (np.array(code) < 0)
            far = np.where(gaps == 0, 0.0, np.where(absent, 1.0, np.minimum(gaps * np.where(gaps > 0, steps, 0.0), 1.0)))
            self._rows[code] = int(far.sum(axis=1).argmin())
        return self._rows[code]

    def params(self, row: int) -> Params:
        """The configuration of a row."""
        return {c.name: c.values[code] for c, code in zip(self.choices, self.codes[row], strict=True) if code >= 0}

    def evaluate(self, params: Params, *, seed: int) -> Outcome:
        """The values of a configuration; a table gives the same whatever the seed."""
        row = self.row(params)
        return Outcome(id=str(row), observed=self.values[row], true=self.values[row], valid=not self.invalid[row])

    def known_values(self, params: Params) -> Mapping[int, float]:
        """Objectives that need no trial, by index, in the table's units and direction. `params` are an Optuna trial's."""
        values = self.values[self.row({c.name: c.values[params[c.name]] if c.ordinal else params[c.name]
                                       for c in self.choices if c.name in params})]
        return {j: float(values[j] * self.objectives[j].sign) for j in self.known}

    def domain(self, *, known: bool, scores: bool = False) -> Domain:
        """What nasvit's sampler may know: with `known`, the objectives declared so. Raises ConfigError for `scores`."""
        if scores:
            raise ConfigError(f"{self.name}: a table has no zero-cost scores; leave surrogate:scores out")
        return LearnedDomain(self.known_values if known and self.known else None)


def size(choices: Sequence[Choice]) -> int:
    """How many configurations there are."""
    by_parent: dict[str | None, list[Choice]] = {}
    for choice in choices:
        by_parent.setdefault(choice.parent, []).append(choice)

    def below(choice: Choice) -> int:
        children = by_parent.get(choice.name, [])
        return sum(math.prod(below(child) for child in children if value in child.on) for value in choice.values)

    return math.prod(below(choice) for choice in by_parent.get(None, []))


# ---- reading ----------------------------------------------------------------------------------------------------------


def load_problem(path: str | Path, *, choices: Sequence[str], objectives: Sequence[str], known: Sequence[str] = (),
                 exclude: str | None = None, when: Sequence[str] = (), join: str | None = None, name: str | None = None,
                 reference: Sequence[float] | None = None, missing: str = "error", duplicates: str = "error") -> TableProblem:
    """A problem out of a Parquet or CSV file.

    choices: `column` or `column:ordinal`; objectives: `column:max` or `column:min`; known: objectives that need no trial; exclude: a column
    that is true where a row is no network ("none": no such column); when: `choice:parent=value|value`, where a choice is asked; join:
    `FILE:column`, a second table joined on a column that both have. Raises ConfigError for what the table does not have or cannot mean.
    """
    table = _joined(read(path), join) if join else read(path)
    names = [c.partition(":")[0] for c in choices]
    goals = [_objective(text) for text in objectives]
    for what, wanted in (("--choices", names), ("--objectives", [g.name for g in goals]), ("--known", list(known)),
                         ("--exclude", [exclude] if exclude not in (None, "none") else [])):
        _check_columns(table, wanted, what=what, path=path)
    _check_roles(names, [g.name for g in goals], known)
    excluded = _excluding(table, exclude)
    made = _conditional([_choice(table, text) for text in choices], when)
    table, dropped = _without_missing(table, _asked(table, made), [g.name for g in goals], missing=missing, path=path)
    made = _conditional([_choice(table, text) for text in choices], when) if dropped else made
    codes = _codes(table, made)
    values = np.column_stack([_numbers(table, g.name) * g.sign for g in goals])
    invalid = table[excluded].to_numpy(bool) if excluded else np.zeros(len(table), dtype=bool)
    codes, values, invalid, merged = _without_duplicates(codes, values, invalid, duplicates=duplicates, names=names)
    if invalid.all():
        raise ConfigError(f"{path}: every row is excluded by {excluded}")
    goal = Goal.of_rows(values[~invalid], reference=None if reference is None else np.array(reference) * [g.sign for g in goals])
    if reference is not None and not goal.total > 0:
        front = (values[~invalid] * [g.sign for g in goals])[non_dominated(values[~invalid])]
        ends = "; ".join(f"{g.name} from {low:g} to {high:g}" for g, low, high in zip(goals, front.min(0), front.max(0), strict=True))
        given = ",".join(f"{v:g}" for v in reference)
        raise ConfigError(f"--reference-point {given}: no point of the true front is better than it in every objective "
                          f"({ends}); say auto, or values worse than these")
    total = size(made)
    notes = [f"{len(codes):,} of {total:,} configurations, {int(goal.front_size)} on the true front"]
    if excluded:
        notes.append(f"{int(invalid.sum()):,} rows where `{excluded}` is true are on no front")
    if len(codes) < total:
        notes.append("the table has gaps: a configuration that it lacks has the values of the nearest row")
    if dropped:
        notes.append(f"{dropped:,} rows with missing values left out")
    if merged:
        notes.append(f"{merged:,} repeated rows merged ({duplicates})")
    return TableProblem(
        name=name or f"{Path(path).stem}: {' x '.join(g.name for g in goals)}", choices=made, objectives=tuple(goals), codes=codes,
        known=tuple(j for j, g in enumerate(goals) if g.name in known), values=values, invalid=invalid, goal=goal, notes=tuple(notes),
        _rows={tuple(row): i for i, row in enumerate(codes.tolist())})


def read(path: str | Path) -> pd.DataFrame:
    """The table of a .parquet or .csv file."""
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"no table at {path}")
    try:
        if path.suffix in (".parquet", ".pq"):
            table = pd.read_parquet(path)
        elif path.name.endswith((".csv", ".csv.gz")):
            table = pd.read_csv(path, keep_default_na=False, na_values=list(MISSING))
        else:
            raise ConfigError(f"{path} is neither .parquet nor .csv")
    except (OSError, ValueError) as error:  # pandas' and pyarrow's own are kinds of these
        raise ConfigError(f"{path} cannot be read as a table: {error}") from None
    if not len(table):
        raise ConfigError(f"{path} has no rows")
    return table


def _joined(table: pd.DataFrame, join: str) -> pd.DataFrame:
    path, _, column = join.rpartition(":")
    if not path:
        raise ConfigError(f"--join {join!r}: say FILE:COLUMN, a column that both tables have")
    other = read(path)
    for one, what in ((table, "the table"), (other, path)):
        _check_columns(one, [column], what="--join", path=what)
        if one[column].duplicated().any():
            raise ConfigError(f"--join {column}: {what} has repeated values there, e.g. {one[column][one[column].duplicated()].iloc[0]!r}")
    both = table.merge(other, on=column, how="inner", suffixes=("", "_2"))
    if not len(both):
        raise ConfigError(f"--join {column}: the two tables have no value in common")
    return both


def _check_columns(table: pd.DataFrame, wanted: Sequence[str], *, what: str, path: str | Path) -> None:
    for name in wanted:
        if name not in table.columns:
            raise ConfigError(f"{what}: {path}: {unknown('column', name, [str(c) for c in table.columns])}")


def _check_roles(choices: Sequence[str], objectives: Sequence[str], known: Sequence[str]) -> None:
    for what, names in (("--choices", choices), ("--objectives", objectives)):
        twice = {n for n in names if list(names).count(n) > 1}
        if twice:
            raise ConfigError(f"{what} names {', '.join(sorted(twice))} twice")
    if set(choices) & set(objectives):
        raise ConfigError(f"{', '.join(sorted(set(choices) & set(objectives)))} cannot be a choice and an objective")
    strange = [k for k in known if k not in objectives]
    if strange:
        raise ConfigError(f"--known {', '.join(strange)}: only objectives can be known; they are {', '.join(objectives)}")
    if len(objectives) < 2:
        raise ConfigError("--objectives needs two or more: the samplers are compared by hypervolume")
    if set(known) == set(objectives):
        raise ConfigError("--known names every objective: nothing is left to search for")


def _objective(text: str) -> Objective:
    name, _, direction = text.rpartition(":")
    if direction not in (*MAXIMISE, *MINIMISE) or not name:
        raise ConfigError(f"--objectives {text!r}: say COLUMN:max or COLUMN:min")
    return Objective(name=name, maximise=direction in MAXIMISE)


def _excluding(table: pd.DataFrame, exclude: str | None) -> str | None:
    if exclude == "none" or (exclude is None and INVALID not in table.columns):
        return None
    column = exclude or INVALID
    if not set(table[column].dropna().unique()) <= {0, 1} or table[column].isna().any():
        raise ConfigError(f"--exclude {column}: the column must be true or false in every row")
    return column


def _asked(table: pd.DataFrame, choices: Sequence[Choice]) -> pd.DataFrame:
    """(n, c) whether each choice is asked in each row."""
    named, asked = {c.name: c for c in choices}, pd.DataFrame(index=table.index)
    for choice in sorted(choices, key=lambda c: _depth(c, named)):
        asked[choice.name] = True if choice.parent is None else asked[choice.parent] & table[choice.parent].isin(choice.on)
    return asked


def _without_missing(table: pd.DataFrame, asked: pd.DataFrame, objectives: Sequence[str], *, missing: str,
                     path: str | Path) -> tuple[pd.DataFrame, int]:
    names = [*asked.columns, *objectives]
    gaps = table[names].replace([np.inf, -np.inf], np.nan).isna()
    gaps[asked.columns] &= asked
    bad = gaps.any(axis=1)
    if bad.any() and missing == "error":
        counts = ", ".join(f"{name} ({count})" for name, count in gaps.sum().items() if count)
        raise ConfigError(f"{path}: missing or infinite values in {counts}; leave those {int(bad.sum())} rows out with --missing drop")
    if bad.all():
        raise ConfigError(f"{path}: no row has a value in all of {', '.join(names)}")
    return table[~bad].reset_index(drop=True), int(bad.sum())


def _numbers(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    try:
        return table[name].to_numpy(dtype=float)
    except (TypeError, ValueError):
        raise ConfigError(f"--objectives: column {name} is not numeric, e.g. {table[name].iloc[0]!r}") from None


def _choice(table: pd.DataFrame, text: str) -> Choice:
    name, _, kind = text.partition(":")
    if kind not in ("", "ordinal", "categorical"):
        raise ConfigError(f"--choices {text!r}: say COLUMN, COLUMN:ordinal or COLUMN:categorical")
    there = table[name].dropna().unique().tolist()
    if there and all(isinstance(v, float) and v.is_integer() for v in there):  # whole numbers, read as these beside empty cells
        there = [int(v) for v in there]
    if not there:
        raise ConfigError(f"--choices {name}: the column is empty")
    values = tuple(sorted(there, key=lambda v: (str(type(v)), v)))
    return Choice(name=name, values=values, ordinal=kind == "ordinal")


def _conditional(choices: Sequence[Choice], when: Sequence[str]) -> tuple[Choice, ...]:
    """The choices with their conditions."""
    made = {c.name: c for c in choices}
    for text in when:
        name, _, condition = text.partition(":")
        parent, _, listed = condition.partition("=")
        for one in (name, parent):
            if one not in made:
                raise ConfigError(f"--when {text!r}: {unknown('choice', one, list(made))}")
        texts = {str(v): v for v in made[parent].values}
        wanted = listed.split("|")
        if not set(wanted) <= set(texts):
            raise ConfigError(f"--when {text!r}: {parent} has the values {', '.join(texts)}")
        made[name] = Choice(name=name, values=made[name].values, ordinal=made[name].ordinal, parent=parent,
                            on=frozenset(texts[w] for w in wanted))
    for choice in made.values():
        _depth(choice, made)
    return tuple(made.values())


def _depth(choice: Choice, choices: Mapping[str, Choice]) -> int:
    depth, at = 0, choice
    while at.parent is not None:
        depth, at = depth + 1, choices[at.parent]
        if depth > len(choices):
            raise ConfigError(f"--when: the conditions of {choice.name} go round in a circle")
    return depth


def _codes(table: pd.DataFrame, choices: Sequence[Choice]) -> NDArray[np.int64]:
    """(n, c) ranks; -1 where a choice is not asked."""
    codes = {c.name: table[c.name].map({v: i for i, v in enumerate(c.values)}).fillna(-1).to_numpy(np.int64) for c in choices}
    named = {c.name: c for c in choices}
    for choice in sorted(choices, key=lambda c: _depth(c, named)):
        if choice.parent is not None:
            on = [named[choice.parent].values.index(v) for v in choice.on]
            codes[choice.name] = np.where(np.isin(codes[choice.parent], on), codes[choice.name], -1)
    return np.column_stack([codes[c.name] for c in choices])


def _without_duplicates(codes: NDArray[np.int64], values: NDArray[np.float64], invalid: NDArray[np.bool_], *, duplicates: str,
                        names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_], int]:
    """One row for each configuration: the first, or the mean of its values, in the order of first appearance."""
    _, first, group = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    merged = len(codes) - len(first)
    if not merged:
        return codes, values, invalid, 0
    if duplicates == "error":
        raise ConfigError(f"{merged} rows repeat the configuration ({', '.join(names)}) of another; name the choices that tell them apart, "
                          "or say --duplicates mean or --duplicates first")
    group = group.reshape(-1)
    counts = np.bincount(group)
    means = np.column_stack([np.bincount(group, weights=column) / counts for column in values.T])
    ever = np.bincount(group, weights=invalid) > 0
    order = np.argsort(first)
    kept = first[order]
    if duplicates == "mean":
        return codes[kept], means[order], ever[order], merged
    return codes[kept], values[kept], invalid[kept], merged
