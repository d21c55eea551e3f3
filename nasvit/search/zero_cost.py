"""Zero-cost scores as the search asks for them: computed once for an architecture, beside the trainings, never beside a measurement.

They become features with a learned sign (nasvit.search.telling says which), and keep what is dead out of the first trials; never a ranking.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from nasvit.arch import Arch
from nasvit.devices import machine_lock
from nasvit.errors import MeasurementError
from nasvit.proxies.zero_cost import FLOOR, ZERO_COST, ZeroCost
from nasvit.search.evaluate import Settings, scored


def check(names: Sequence[str]) -> None:
    """Raises ConfigError for a name that no proxy has."""
    for name in names:
        ZERO_COST[name]


class Scores:
    """`scores(arch)` gives the named zero-cost scores of an Arch, computed once and remembered by its id.

    They are computed in the driver, as a training step as far as the machine lock is concerned, so that they disturb no measurement.
    seconds: what all of them took; waiting for the lock is not in it.
    """

    def __init__(self, names: Sequence[str], *, settings: Settings) -> None:
        check(names)
        self.names, self.settings = tuple(names), settings
        self.seconds = 0.0
        self._known: dict[str, ZeroCost | None] = {}

    def __call__(self, arch: Arch) -> dict[str, float]:
        """Name to score; FLOOR where a score is not finite: as dead as a network that passes nothing on."""
        found = self._scored(arch)
        return dict.fromkeys(self.names, FLOOR) if found is None else dict(found.values)

    def degenerate(self, arch: Arch) -> bool:
        """Whether nothing flows through the network, forwards or backwards, or its signals overflow: such a draw is not worth a trial."""
        found = self._scored(arch)
        return found is None or found.degenerate

    def summary(self) -> dict[str, object]:
        """For summary.json: names, how many architectures were scored, how many of them degenerate, and the seconds."""
        dead = sum(found is None or found.degenerate for found in self._known.values())
        return {"names": list(self.names), "scored": len(self._known), "degenerate": dead, "seconds": self.seconds}

    def _scored(self, arch: Arch) -> ZeroCost | None:
        if arch.id not in self._known:
            self._known[arch.id] = self._score(arch)
        return self._known[arch.id]

    def _score(self, arch: Arch) -> ZeroCost | None:
        with machine_lock.training():
            begun = time.perf_counter()
            try:
                return scored(arch, self.names, settings=self.settings)
            except MeasurementError:
                return None
            finally:
                self.seconds += time.perf_counter() - begun
