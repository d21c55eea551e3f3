"""How long the trainings of a search have to be: a first network is trained until it has learned something of the images.

Two epochs of many images are a training, two epochs of six hundred are not: at 120 steps of 600 photographs in ten classes every
network of hybrid_tiny was near chance, latency decided, and Kendall's tau with longer trainings was -0.07
(reports/published/product_clothing). How long is long enough depends on the images and the space, so it is tried instead of looked up.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from nasvit.arch import Arch
from nasvit.data import DataSet
from nasvit.errors import TrainingError
from nasvit.models.build import build
from nasvit.models.estimate import estimate
from nasvit.proxies import short_train
from nasvit.search.evaluate import derive_seed
from nasvit.space import SearchSpace
from nasvit.training import Recipe

LEARNED = 0.25
"""Share of the way from chance to every image right that a network has to come for others to be told from it."""
LONGEST = 960
"""Steps at which a pilot ends in any case, and from which on two epochs are long enough without one: of 15,360 images in batches of 32."""
SHARE = 1 / 16
"""Of a search's minutes that the longest training of one network may take, so that dozens can be looked at."""
DRAWN = 9
FIRST, LEAST = 30, 120
"""Steps of the first cycle, and the fewest that the longest training of a search has."""
LADDERS = ((16, 8, 2, 1), (8, 2, 1), (4, 2, 1))
"""Rungs as what the top rung's steps are divided by; the first ladder whose lowest rung has 30 steps is taken."""


def two_epochs(images: int, *, batch_size: int) -> int:
    """Steps of two epochs of `images`, at least `LEAST`: the longest training of a search, where the images are learned in that time."""
    return max(LEAST, 2 * images // batch_size)


def ladder(top: int) -> tuple[int, ...]:
    """Cumulative steps up to `top` (at least `LEAST`): a sixteenth, an eighth, a half and all of it, or fewer.

    With eta 2 such rungs kept 99.1 % of the hypervolume for 32 % of the steps on 60 real trainings (reports/published/rungs_digits.md). A
    first rung of 30 steps is short, but every rung is a whole cosine cycle; fewer rank nothing. On the digits more than 120 in all (540)
    let nearly every network reach 98 %, which ranks nothing either.
    """
    shares = next(shares for shares in LADDERS if top // shares[0] >= 30)
    return tuple(top // share for share in shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What a first network showed. steps: the longest training to choose. chance: share of the commonest class of the validation images.

    accuracy: validation accuracy after each cycle, by its cumulative steps. seconds: of all its training. learned: whether it came as
    far as `LEARNED`; False where the steps or the time ended before, or its training failed, with the reason.
    """

    arch_id: str
    steps: int
    chance: float
    accuracy: dict[int, float]
    seconds: float
    learned: bool
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For env.json."""
        return {"arch_id": self.arch_id, "steps": self.steps, "chance": self.chance, "seconds": self.seconds, "learned": self.learned,
                "reason": self.reason, "accuracy": {str(steps): value for steps, value in self.accuracy.items()}, "told": self.told()}

    def told(self) -> tuple[str, ...]:
        """What a user should know: nothing where the images are learned as fast as most."""
        if self.learned and max(self.accuracy) <= LEAST:
            return ()
        if self.reason:
            return (f"a first network, for the length of the rungs, could not be trained ({self.reason}): the longest trainings have "
                    f"{self.steps} steps",)
        steps, value = list(self.accuracy.items())[-1]
        text = f"a first network was right on {value:.1%} of the validation images after {steps} steps (chance {self.chance:.1%})"
        if self.learned:
            return (f"{text}: the longest trainings have {self.steps} steps",)
        return (f"{text}, which is hardly learning: rungs of up to {self.steps} steps may tell networks from each other badly; look at the "
                "labels, give more minutes, or set rungs in the experiment file",)


def first_network(space: SearchSpace, *, seed: int) -> Arch:
    """The middle one, by MACs, of a few random networks: neither the quickest to learn nor the slowest."""
    rng = random.Random(derive_seed(seed, "pilot"))
    drawn = sorted((space.sample(rng) for _ in range(DRAWN)), key=lambda arch: (estimate(arch)[0], arch.id))
    return drawn[DRAWN // 2]


def fly(space: SearchSpace, data: DataSet, *, base: int, seed: int, recipe: Recipe, device: str, seconds: float | None,
        step_guard: Callable[[], AbstractContextManager[object]], told: Callable[[str], object] = lambda text: None) -> Pilot:
    """Train a first network in cycles, each as long as all before it, as rungs do, until it has learned.

    base: the steps of two epochs, and the fewest that are chosen. device: as for `Tensor.to`. seconds: what the longest training may take;
    None: no limit. The first cycle is made whatever it takes. told hears how far it is. A loss that is not finite ends it: it is one
    network's, as of a trial that fails.
    """
    arch = first_network(space, seed=seed)
    chance = float(torch.bincount(data.val.labels).max()) / len(data.val)
    module = build(arch, seed=derive_seed(seed, arch.id))
    torch.set_num_threads(1)  # as a worker has, whose time this foretells
    accuracy: dict[int, float] = {}
    done, cycle, spent = 0, FIRST, 0.0
    while True:
        told(f"for the length of the rungs: a first network is trained for {cycle} steps" + (f" more than {done}" if done else ""))
        try:
            score = short_train.fit(module, data, budget=cycle, seed=derive_seed(seed, arch.id, "pilot", done), recipe=recipe,
                                    device=device, step_guard=step_guard, steps_before=done)
        except TrainingError as error:
            return Pilot(arch_id=arch.id, steps=max(base, done), chance=chance, accuracy=accuracy, seconds=spent, learned=False,
                         reason=str(error))
        done, spent = done + cycle, spent + score.seconds
        cycle, accuracy[done] = done, score.value
        learned = score.value >= chance + LEARNED * (1 - chance)
        if learned or 2 * done > LONGEST or (seconds is not None and 2 * spent > seconds):
            return Pilot(arch_id=arch.id, steps=max(base, done), chance=chance, accuracy=accuracy, seconds=spent, learned=learned)
