"""A study's memory of which a sampler sees a bounded part: what one proposal costs must not grow with all that was ever tried.

Of the finished trials a sampler sees the best ones, by non-dominated rank, and others spread evenly over the rest: what it takes for good
is as it was, what it takes for the rest is a sample of it. Below the bound nothing changes.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence

import numpy as np
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nasvit.results.front import ranks

RUNNING = 4
"""Of the running trials a fourth of `most` is shown: with a thousand workers they would be most of what a sampler looks at."""
SLACK = 2
"""The part shown grows by so much before it is chosen anew."""


class BoundedStorage(InMemoryStorage):
    """In memory, for one study. `get_all_trials` gives at most about `most` finished trials, a fourth as many running ones and all that
    wait; everything else is Optuna's: trials keep their numbers, and can be asked for one by one."""

    def __init__(self, *, most: int) -> None:
        super().__init__()
        self._most = most
        self._shown: list[int] = []  # trial ids of finished trials, in the order they finished
        self._begun: dict[int, None] = {}  # trial ids of open ones

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        made = super().create_new_trial(study_id, template_trial)
        if template_trial is not None and template_trial.state.is_finished():
            self._end(study_id, made)
        else:
            self._begun[made] = None
        return made

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        done = super().set_trial_state_values(trial_id, state, values)
        if done and state.is_finished():
            self._end(self._trial_id_to_study_id_and_number[trial_id][0], trial_id)
        return done

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        with self._lock:
            self._check_study_id(study_id)
            running = list(self._begun)
            if states == (TrialState.WAITING,):  # nothing that waits may be overlooked; a running one more or less tells little
                ids = running
            else:
                few = min(len(running), max(1, self._most // RUNNING))
                ids = sorted([*(running[i * len(running) // few] for i in range(few)), *self._shown])
            trials = [t for t in (self.get_trial(i) for i in ids) if states is None or t.state in states]
            return copy.deepcopy(trials) if deepcopy else trials

    def _end(self, study_id: int, trial_id: int) -> None:
        self._begun.pop(trial_id, None)
        self._shown.append(trial_id)
        if len(self._shown) > SLACK * self._most:
            self._shown = chosen([self.get_trial(i) for i in self._shown], self.get_study_directions(study_id), most=self._most)


def chosen(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], *, most: int) -> list[int]:
    """Ids of `most` finished trials, in their order: half of them the best that keep all limits, the others spread evenly over the rest.

    Failed ones teach nothing and go first.
    """
    known = [t for t in trials if t.state == TrialState.COMPLETE and np.all(np.isfinite(t.values))]
    signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])
    good = [t for t in known if max(t.constraints.values(), default=0.0) <= 0]
    points = np.array([t.values for t in good], dtype=float).reshape(len(good), len(signs)) * signs
    best = {good[i]._trial_id for i in np.argsort(ranks(points), kind="stable")[: most // 2]}
    rest = [t._trial_id for t in known if t._trial_id not in best]
    left = min(most - len(best), len(rest))
    spread = {rest[i * len(rest) // left] for i in range(left)}
    return [t._trial_id for t in known if t._trial_id in best or t._trial_id in spread]
