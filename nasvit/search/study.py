"""The Optuna side of a search: ask for an architecture not seen yet, tell results once, rebuild from records.

The study lives in memory; the records are the truth. A rejected trial is told as complete with a constraint above 0, because
every sampler ignores failed trials, while TPE, NSGA and GP learn from infeasible ones. What it does not have (its accuracy)
is told pessimistically. A failed trial is told as failed.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import optuna
from optuna.trial import FixedTrial, TrialState, create_trial

from nasvit.arch import Arch
from nasvit.errors import ArchError, RunError
from nasvit.results.objectives import objective
from nasvit.results.record import TrialRecord, latest
from nasvit.search.bounded import BoundedStorage
from nasvit.search.domain import INITIAL, LOWER, RUNG, ArchDomain, Guesses
from nasvit.search.gone import blameless
from nasvit.search.objectives import excess, known_of, told
from nasvit.search.samplers import make_sampler
from nasvit.search.zero_cost import Scores
from nasvit.space import SearchSpace

NEIGHBOURS = 30
"""So many neighbours of a repeated proposal are tried, one, two, then three choices away, before one is drawn at random."""
SEEN = {"tpe": 160, "gp": 160, "surrogate": 400}
"""So many finished trials a sampler sees, up to SLACK times as many, whose proposals cost more with every trial. What a repeat is, is known
of all."""
DRAWS = 2000
"""So many random draws that are all known, and the space counts as exhausted."""


class Space(Protocol):
    """What a search needs of a search space."""

    def suggest(self, trial: Any) -> Arch: ...
    def sample(self, rng: random.Random) -> Arch: ...
    def from_parameters(self, params: Mapping[str, Any], *, rng: random.Random | None = None) -> Arch: ...
    def size(self) -> int: ...
    def arch_parameters(self, arch: Arch) -> Mapping[str, Any]: ...


class Recorded(FixedTrial):
    """A trial on record, to ask the space again with: it shows all parameters beforehand, as a space needs that solves for some of them."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(dict(params))
        self._all = dict(params)

    @property
    def params(self) -> dict[str, Any]:
        """All of them, asked or not."""
        return self._all


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A new architecture with what the sampler was asked for it; number is Optuna's."""

    number: int
    arch: Arch
    params: dict[str, Any]


class Proposer:
    """Asks and tells. `seen` maps every proposed arch id to its record, or to None while it is being evaluated.

    due: from how many proposals are still to come, choices to be tried before the sampler is asked: the first that give something new.
    """

    def __init__(self, space: Space, *, sampler: str, seed: int, objectives: Sequence[str], limits: Mapping[str, float],
                 records: Sequence[TrialRecord] = (), scores: Scores | None = None, guesses: Guesses | None = None,
                 due: Callable[[int], Sequence[Mapping[str, Any]]] = lambda left: ()) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.due = space, due
        self.objectives = tuple(objectives)
        self.limits = dict(limits)
        self.scores, self._turned_down = scores, 0
        self.seen: dict[str, TrialRecord | None] = {}
        known = sorted(latest([r for r in records if not blameless(r)]).values(), key=lambda r: r.trial)
        # moved on by what was finished, so that a resumed search does not propose its beginning again
        shift = seed + len(known)
        self.rng = random.Random(shift)
        self._open: dict[int, optuna.Trial] = {}
        self._lower: dict[str, list[TrialRecord]] = {}  # by arch id, at the rungs below
        for record in sorted((r for r in records if r.status == "complete"), key=lambda r: r.rung):
            self._lower.setdefault(record.arch_id, []).append(record)
        domain = ArchDomain(space, objectives=self.objectives, scores=scores, guesses=guesses) if isinstance(space, SearchSpace) else None
        directions = [objective(name).direction for name in self.objectives]
        self.study = optuna.create_study(directions=directions, sampler=make_sampler(sampler, seed=shift % 2**32, domain=domain),
                                         storage=BoundedStorage(most=SEEN[sampler]) if sampler in SEEN else None)
        for record in known:
            self._replay(record)

    def propose(self, *, left: int = 1) -> Proposal | None:
        """The next architecture not seen yet, or None when the space is exhausted.

        A repeated proposal gives way to a new neighbour: the sampler's choices with one to three of them drawn again. The repeat
        itself is told as failed; told with its values it would pull the sampler to where it already is.
        """
        for choices in self.due(left):
            found = self._new(partial(self.space.from_parameters, choices))
            if found is not None:
                return found
        trial = self._ask()
        try:
            arch = self.space.suggest(trial)
        except ArchError:  # a combination the space could not rule out
            self.study.tell(trial, state=TrialState.FAIL)
            return self._draw()
        if arch.id not in self.seen and not self._dead(arch):
            return self._take(trial, arch)
        self.study.tell(trial, state=TrialState.FAIL)
        return self._neighbour(trial.params) or self._draw()

    def rises(self, proposal: Proposal, record: TrialRecord) -> None:
        """Its trial goes on from here: what it had is told with what it will have."""
        self._lower.setdefault(proposal.arch.id, []).append(record)

    def tell(self, proposal: Proposal, record: TrialRecord) -> None:
        """Once for each proposal, when its trial has stopped rising."""
        self.seen[proposal.arch.id] = record
        self._tell(self._open.pop(proposal.number), record)

    def expected_gain(self, *, proposals: int) -> float | None:
        """The share of the front's hypervolume that the next proposals are expected to add; None where the sampler has no model of it."""
        from nasvit.search.surrogate import expected_gain  # with scipy a third of a second, which Optuna's samplers do not wait for

        return expected_gain(self.study, proposals=proposals)

    def _dead(self, arch: Arch) -> bool:
        """Whether a first, random draw is not worth a trial: its zero-cost scores are degenerate. Never a ranking; and where nearly all
        draws are dead, what is wrong is not the draw: after so many as there are first trials no more are turned down."""
        if self.scores is None or len(self.seen) >= INITIAL or self._turned_down >= INITIAL or not self.scores.degenerate(arch):
            return False
        self._turned_down += 1
        return True

    def _take(self, trial: optuna.Trial, arch: Arch) -> Proposal:
        self.seen[arch.id] = None
        self._open[trial.number] = trial
        return Proposal(number=trial.number, arch=arch, params=dict(trial.params))

    def _neighbour(self, params: Mapping[str, Any]) -> Proposal | None:
        names = sorted(params)
        for attempt in range(NEIGHBOURS if names else 0):
            again = self.rng.sample(names, min(1 + 3 * attempt // NEIGHBOURS, len(names)))
            kept = {name: value for name, value in params.items() if name not in again}
            found = self._new(partial(self.space.from_parameters, kept, rng=self.rng))
            if found is not None:
                return found
        return None

    def _draw(self) -> Proposal | None:
        if len(self.seen) >= self.space.size():
            return None
        for _ in range(DRAWS):
            found = self._new(partial(self.space.sample, self.rng))
            if found is not None:
                return found
        return None

    def _new(self, make: Callable[[], Arch]) -> Proposal | None:
        """What `make` gives as a proposal of the study's, or None if it is known or cannot be built."""
        try:
            arch = make()
        except ArchError:
            return None
        if arch.id in self.seen or self._dead(arch):
            return None
        self.study.enqueue_trial(dict(self.space.arch_parameters(arch)))
        trial = self._ask()
        found = self.space.suggest(trial)
        assert found.id == arch.id, "what was enqueued is what the space gives"
        return self._take(trial, found)

    def _ask(self) -> optuna.Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's notes on experimental samplers, once for each proposal
            return self.study.ask()

    def _tell(self, trial: optuna.Trial, record: TrialRecord | None) -> None:
        if record is None or record.status == "failed":
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_constraint("limits", self._excess(record))
        for name, value in self._attributes(record).items():
            trial.set_user_attr(name, value)
        self.study.tell(trial, self._values(record))

    def _attributes(self, record: TrialRecord) -> dict[str, Any]:
        below = [self._values(r) for r in self._lower.get(record.arch_id, ()) if r.rung < record.rung]
        return {RUNG: record.rung, **({LOWER: below} if below else {})}

    def _excess(self, record: TrialRecord) -> float:
        return excess(known_of(record), self.limits)

    def _values(self, record: TrialRecord) -> list[float]:
        return told(record, self.objectives, limits=self.limits, seen=(r for r in self.seen.values() if r is not None))

    def _replay(self, record: TrialRecord) -> None:
        """Enter a record into the study as the trial it was; asking the space again recovers its distributions."""
        trial = Recorded(record.params)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna's note on a value out of range: told below, and better
                same = self.space.suggest(trial).id == record.arch_id
            failed = record.status == "failed"
            entered = create_trial(
                state=TrialState.FAIL if failed else TrialState.COMPLETE, values=None if failed else self._values(record),
                params=record.params, distributions=trial.distributions, user_attrs=self._attributes(record),
                constraints=None if failed else {"limits": self._excess(record)})
        except (ValueError, ArchError):
            same = False
        if not same:
            raise RunError(f"trial {record.trial}: the space no longer gives architecture {record.arch_id} for its parameters; "
                           "it has changed since the run began: start a new run with another --out")
        self.study.add_trial(entered)
        self.seen[record.arch_id] = record
