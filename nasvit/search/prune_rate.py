"""How fast a pruned model may learn: recovery's learning rate, tried instead of looked up.

Half of a network's units are gone, so it is not fine-tuned as a whole one is, and how much it bears depends on its width, its kind and
how well it was trained. So a tenth of the recovery is made at each of RATES, and the one with the least validation loss is taken. On
small models trained here the rate usual for fine-tuning ends 3 to 13 points below what this finds (experiments/LOG.md).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from nasvit.data import DataSet
from nasvit.devices import machine_lock
from nasvit.errors import ArchError, ConfigError, TrainingError
from nasvit.pruning.dense import Dense, slice_weights
from nasvit.pruning.space import APPETITES, STRENGTHS, PruneSpace
from nasvit.search.evaluate import derive_seed
from nasvit.training import Recipe, default_lr, train

RATES = (1 / 16, 1 / 4, 1.0)
"""Of the learning rate that the same network has from the start (`default_lr`)."""
SHARE, LEAST = 0.1, 20
"""Of the recovery's steps, and the fewest steps of a try (a shorter recovery: all of it)."""


def steps_of_a_try(recovery: int) -> int:
    """Steps at each rate, of the steps of a whole recovery."""
    return min(recovery, max(LEAST, round(SHARE * recovery)))


def recovery_rate(space: PruneSpace, dense: Dense, scores: Mapping[str, Tensor], data: DataSet, *, recipe: Recipe, steps: int, seed: int,
                  device: str) -> dict[float, float]:
    """The learning rates tried and the validation loss after each, infinite where a training failed; the best first. `steps`: of a try.

    The network is a middling plan of the space, every choice taken half, or a random one where that cannot be built. Raises ArchError where
    the space has none, ConfigError where no training succeeds.
    """
    rng, middling = random.Random(f"{seed} rate"), {name: APPETITES[len(APPETITES) // 2] for name in space.parameters()}
    try:
        plan = space.from_parameters({**middling, "strength": STRENGTHS // 2}, rng=rng)
    except ArchError:
        plan = space.sample(rng)
    found: dict[float, float] = {}
    failed: TrainingError | None = None
    for share in RATES:
        module = slice_weights(dense, plan, scores)
        rate = share * default_lr(module)
        try:
            found[rate] = train(module, data, steps=steps, seed=derive_seed(seed, plan.id, 0), recipe=replace(recipe, lr=rate),
                                device=device, teacher=dense.module, step_guard=machine_lock.training).val_loss
        except TrainingError as error:
            failed, found[rate] = error, float("inf")
    if not min(found.values()) < float("inf"):
        raise ConfigError(f"recovery fails at every learning rate that was tried ({', '.join(f'{rate:.2g}' for rate in found)}): {failed}; "
                          "give recipe: {lr: ..} in an experiment file, or --recover-epochs 0")
    return dict(sorted(found.items(), key=lambda one: one[1]))
