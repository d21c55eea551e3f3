"""THE timing loop of the project, and what it needs to know about the process it runs in.

It stands alone: the standard library of Python 3.8 is enough, because this very file travels inside the agent to every device.
Every sample of a candidate is taken beside one of a fixed reference network, so that clocks, caches and neighbours that slow both
down cancel in the ratio.
"""

from __future__ import annotations

import math
import os
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Call = Callable[[], object]
    Clock = Callable[[Call], tuple[float, float]]  # runs a call once: its milliseconds, and its process CPU milliseconds

REPEATS = 5
PAIRS = 20
LEAST_PAIRS = 2
"""Pairs of a repeat: PAIRS where they take at most LONGEST_S, fewer for slow networks, more for the fastest."""
SHORTEST_S, LONGEST_S = 0.07, 0.12
"""Of a repeat. The machine's mood changes over seconds, so that many short repeats tell more than few long ones: of a network of 17 ms the
figures of 15 repeats of 6 pairs differ less than those of 10 repeats of 19, in half the time (experiments/LOG.md)."""
ALONE, ALONE_WARM = 10, 2
"""Calls of the reference alone, and how many of them find the candidate's leavings in the caches."""
REFERENCE_SHARE = 0.1
"""Of a slow candidate's time; the reference runs often enough beside it to see the same machine."""
WARM_UP_S = 0.3
SETTLED = 0.05


class Repeat(NamedTuple):
    """One group of interleaved calls: milliseconds of each candidate call, of the reference beside it, CPU ms of the candidate.

    alone_ms: calls of the reference by itself right after the group. Beside a candidate its time depends on what the candidate
    leaves in the caches; alone it tells the machine's speed at that moment.
    """

    candidate_ms: tuple[float, ...]
    reference_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    alone_ms: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """Candidate to reference, of medians."""
        return median(self.candidate_ms) / median(self.reference_ms)


class Usage(NamedTuple):
    """What happened to the process while it was timed.

    wall_s: how long. cpu_s: processor time of all its threads. waited_s: how long its threads were ready to run while others had
    the processor (None: the system does not tell). switches: times a thread was put aside though it was not done.
    """

    wall_s: float
    cpu_s: float
    waited_s: float | None
    switches: int


class Attempt(NamedTuple):
    """Repeats of one network beside the reference, and what happened meanwhile."""

    repeats: tuple[Repeat, ...]
    usage: Usage

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; `attempt_of` is its inverse."""
        return {"repeats": [r._asdict() for r in self.repeats], "usage": self.usage._asdict()}


def attempt_of(raw: Mapping[str, Any]) -> Attempt:
    """The Attempt of its dict. Raises KeyError, TypeError or ValueError for anything else; numbers are not judged here."""
    repeats = tuple(Repeat(*(tuple(float(v) for v in one[name]) for name in Repeat._fields)) for one in raw["repeats"])
    usage = raw["usage"]
    waited = usage["waited_s"]
    return Attempt(repeats, Usage(float(usage["wall_s"]), float(usage["cpu_s"]), None if waited is None else float(waited),
                                  int(usage["switches"])))


def warm_up(call: Call, *, clock: Clock) -> float:
    """Call until two successive medians of three differ by under SETTLED, at most WARM_UP_S after six calls; the last median in ms."""
    start = time.perf_counter()
    last = math.inf
    while True:
        now = median(clock(call)[0] for _ in range(3))
        settled = abs(now - last) <= SETTLED * now
        if settled or (last < math.inf and time.perf_counter() - start > WARM_UP_S):
            return now
        last = now


def plan(candidate_ms: float, reference_ms: float) -> tuple[int, int]:
    """(pairs of a repeat, reference calls beside each candidate call) for these speeds; both are above 0."""
    beside = min(20, max(1, round(REFERENCE_SHARE * candidate_ms / reference_ms)))
    pair_s = (candidate_ms + beside * reference_ms) / 1e3
    seconds = min(max(SHORTEST_S, PAIRS * pair_s), LONGEST_S)
    return min(4 * PAIRS, max(LEAST_PAIRS, int(seconds / pair_s))), beside


def sample(candidate: Call, reference: Call, *, clock: Clock, pairs: int, beside: int) -> Repeat:
    """THE timing loop: one repeat of `pairs` candidate calls, each followed by `beside` calls of the reference, then a few of it alone."""
    candidate_ms: list[float] = []
    reference_ms: list[float] = []
    cpu_ms: list[float] = []
    for _ in range(pairs):
        wall, cpu = clock(candidate)
        candidate_ms.append(wall)
        cpu_ms.append(cpu)
        reference_ms.extend(clock(reference)[0] for _ in range(beside))
    alone = [clock(reference)[0] for _ in range(ALONE)]
    return Repeat(tuple(candidate_ms), tuple(reference_ms), tuple(cpu_ms), tuple(alone[ALONE_WARM:]))


def attempt(candidate: Call, reference: Call, *, clock: Clock, repeats: int = REPEATS) -> Attempt:
    """Warm both up, then time `repeats` groups. A clock that stands still gives times of 0, which the caller refuses."""
    speeds = warm_up(candidate, clock=clock), warm_up(reference, clock=clock)
    pairs, beside = plan(*speeds) if min(speeds) > 0 else (LEAST_PAIRS, 1)
    before = _Counters()
    groups = tuple(sample(candidate, reference, clock=clock, pairs=pairs, beside=beside) for _ in range(repeats))
    return Attempt(groups, before.until_now())


def rounds(call: Call, *, clock: Clock, seconds: float, size: int = PAIRS) -> list[float]:
    """Medians of `size` calls each, after a warm-up, as many as there is time for (at least 3); in ms."""
    warm_up(call, clock=clock)
    found: list[float] = []
    start = time.perf_counter()
    while len(found) < 3 or time.perf_counter() - start < seconds:
        found.append(median(clock(call)[0] for _ in range(size)))
    return found


def processor_time(wall_ms: float, thread_ms: float) -> float:
    """Wall time of a one-threaded call, less what it waited for the processor while another process had it.

    Where the two agree to 5 % and 0.02 ms the wall clock, which is the finer one, is believed.
    """
    return thread_ms if wall_ms - thread_ms > max(0.02, 0.05 * wall_ms) else wall_ms


def cpu_clock(call: Call, *, threads: int) -> tuple[float, float]:
    """A Clock for work that is done when the call returns.

    Waiting for the processor is taken off where the call works in one thread, the calling one; a runtime with workers of its own
    leaves the caller idle, and wall time is then all there is.
    """
    cpu, thread, start = time.process_time_ns(), time.thread_time_ns(), time.perf_counter_ns()
    call()
    wall_ms = (time.perf_counter_ns() - start) / 1e6
    thread_ms, cpu_ms = (time.thread_time_ns() - thread) / 1e6, (time.process_time_ns() - cpu) / 1e6
    in_caller = threads == 1 and thread_ms > 0.9 * cpu_ms
    return (processor_time(wall_ms, thread_ms) if in_caller else wall_ms), cpu_ms


class _Counters:
    """The process's counters at one moment."""

    def __init__(self) -> None:
        self.waited = _waiting()
        self.switches = _switches()
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def until_now(self) -> Usage:
        wall, cpu, switches, now = time.perf_counter() - self.wall, time.process_time() - self.cpu, _switches(), _waiting()
        waited = None
        if self.waited is not None and now is not None:
            waited = sum(ns - self.waited.get(thread, 0) for thread, ns in now.items()) / 1e9
        return Usage(wall, cpu, waited, switches - self.switches)


def _waiting() -> dict[str, int] | None:
    """Nanoseconds that each thread of this process has waited for a processor; None where the system does not tell (Linux does)."""
    found = {}
    try:
        for thread in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{thread}/schedstat") as file:
                    found[thread] = int(file.read().split()[1])
            except FileNotFoundError:  # the thread has just ended
                continue
    except (OSError, IndexError, ValueError):
        return None
    return found or None


def _switches() -> int:
    """Involuntary context switches of this process; 0 where the system does not count them."""
    if sys.platform == "win32":
        return 0
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)
