"""What a study has tried: the configurations of its trials, and that none of them is proposed again."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from nasvit.search.candidates import Key, key
from nasvit.search.domain import Domain, Params


class Tried(dict[Key, None]):
    """Keys of all that a study has, ever had (it may show a part of its trials), or is going to have. A plan is in it that is one of
    these, or would become one: it says all that a finished trial asked, and more that the trial did not need."""

    def __init__(self) -> None:
        super().__init__()
        self._lesser: list[Key] = []

    def __contains__(self, plan: object) -> bool:
        return super().__contains__(plan) or any(key <= plan for key in self._lesser)  # type: ignore[operator]

    def take(self, trials: Sequence[FrozenTrial], domain: Domain) -> list[Key]:
        """All trials are tried. Gives the key of each, of what plans decide."""
        moot = domain.moot
        keys = [key({n: v for n, v in t.params.items() if n not in moot} if moot else t.params) for t in trials]
        self.update((k, None) for k in keys if k)
        self._lesser = [k for t, k in zip(trials, keys, strict=True)
                        if k and t.state == TrialState.COMPLETE and any(name not in t.params for name in domain.unsure)]
        return keys


def configurations(trials: Sequence[FrozenTrial], states: Collection[TrialState], *, plans: Mapping[int, Params],
                   domain: Domain) -> list[Params]:
    """Those of the trials in these states. plans: by the trial's number. A trial that is in the midst of asking, or ended there with its
    process, is taken for its plan; without one it is left out."""
    found: list[Params] = []
    for trial in trials:
        if not trial.params or trial.state not in states:
            continue
        plan = plans.get(trial.number)
        needed = trial.params if trial.state == TrialState.COMPLETE else plan or domain.complete(trial.params, random.Random(0))
        if needed is not None and needed.keys() <= trial.params.keys():
            found.append(trial.params)
        elif plan is not None:
            found.append(plan)
    return found
