from __future__ import annotations

from nasvit.results.front import pareto
from tests.unit.search.fakes import record


def test_the_front_is_cheapest_first_wherever_latency_stands_among_the_objectives() -> None:
    records = [record(n, accuracy=0.5 + 0.1 * n, latency=1.0 + n) for n in (2, 0, 1)]
    for names in (["accuracy", "latency_ms"], ["latency_ms", "accuracy"]):
        assert [r.trial for r in pareto(records, names)] == [0, 1, 2]
